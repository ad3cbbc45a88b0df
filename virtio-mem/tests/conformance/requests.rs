//! Requirements on the answer of a device to each kind of request.

use virtio_mem::device::Refusal;
use virtio_mem::wire::REQUEST_SIZE;
use virtio_mem::{BlockState, ResponseType};

use super::Row;
use super::device::{ADDR, BLOCK, BUSY, MIB, PLUG, REGION, Rig, STATE, UNPLUG, UNPLUG_ALL, bytes};

pub const ROWS: &[Row] = &[
    ("D24/25", "PLUG: other bytes are ignored", || other_bytes(PLUG)),
    ("D26", "PLUG: misaligned is ERROR", || misaligned(PLUG)),
    ("D27", "PLUG: no blocks is ERROR", || no_blocks(PLUG)),
    ("D28", "PLUG: beyond the usable region is ERROR", || beyond_usable(PLUG)),
    ("D29", "PLUG: plugged already is ERROR", plugged_already),
    ("D30", "PLUG: BUSY when the host cannot", plug_busy),
    ("D31", "PLUG: ACK when all are plugged, the last block too", plug_ack),
    ("D32", "PLUG: more than requested is NACK", over_ask),
    ("D33", "UNPLUG: other bytes are ignored", || other_bytes(UNPLUG)),
    ("D34", "UNPLUG: misaligned is ERROR", || misaligned(UNPLUG)),
    ("D35", "UNPLUG: no blocks is ERROR", || no_blocks(UNPLUG)),
    ("D36", "UNPLUG: beyond the usable region is ERROR", || beyond_usable(UNPLUG)),
    ("D37", "UNPLUG: unplugged already is ERROR", unplugged_already),
    ("D38", "UNPLUG: BUSY when the host cannot", unplug_busy),
    ("D39", "UNPLUG: ACK when all are unplugged", unplug_ack),
    ("D40", "UNPLUG_ALL: everything but the type is ignored", unplug_all_ignores),
    ("D41", "UNPLUG_ALL: BUSY when the host cannot", unplug_all_busy),
    ("D42/43", "UNPLUG_ALL: ACK when nothing is plugged any more", unplug_all_ack),
    ("D44", "UNPLUG_ALL: the usable region shrinks to what is needed", unplug_all_usable),
    ("D45", "STATE: other bytes are ignored", || other_bytes(STATE)),
    ("D46", "STATE: misaligned, none or unusable is ERROR", state_errors),
    ("D47", "STATE: plugged, unplugged or mixed", state),
];

fn other_bytes(kind: u16) {
    let mut rig = Rig::new(64);
    if kind == UNPLUG {
        rig.ack(PLUG, 0, 1);
    }
    let mut long = vec![0xa5; 64];
    long[..REQUEST_SIZE].copy_from_slice(&bytes(kind, ADDR, 1));
    long[2..8].fill(0xa5);
    long[18..24].fill(0xa5);
    assert_eq!(rig.send(&long).kind, ResponseType::Ack);
    assert_eq!(rig.plugged(), if kind == PLUG { 2 } else { 0 });
}

fn misaligned(kind: u16) {
    let mut rig = Rig::new(64);
    for offset in [1, 4096, MIB, BLOCK - 1] {
        rig.error(kind, ADDR + offset, 1, Refusal::Misaligned);
    }
}

fn no_blocks(kind: u16) {
    Rig::new(64).error(kind, ADDR, 0, Refusal::NoBlocks);
}

fn beyond_usable(kind: u16) {
    let mut rig = Rig::new(64);
    let end = ADDR + rig.usable() * MIB;
    for (addr, nb_blocks) in [
        (0, 1),
        (ADDR - BLOCK, 1),
        (ADDR - BLOCK, 2),
        (end, 1),
        (end - BLOCK, 2),
        (ADDR, u16::MAX),
        (ADDR + REGION, 1),
        (u64::MAX - BLOCK + 1, 1),
    ] {
        rig.error(kind, addr, nb_blocks, Refusal::NotUsable);
    }
}

fn plugged_already() {
    let mut rig = Rig::new(64);
    rig.ack(PLUG, 16, 4);
    for (mib, nb_blocks) in [(16, 4), (16, 1), (22, 1), (14, 2), (22, 2), (0, 16)] {
        rig.error(PLUG, ADDR + mib * MIB, nb_blocks, Refusal::AlreadyPlugged);
    }
}

fn plug_busy() {
    let mut rig = Rig::new(64);
    rig.memory.fail_after = Some(0);
    rig.refuse(PLUG, ADDR, 4, ResponseType::Busy, BUSY);
    rig.memory.fail_after = None;
    rig.ack(PLUG, 0, 4);
}

fn plug_ack() {
    let mut rig = Rig::new(2048);
    rig.ack(PLUG, 0, 1);
    rig.ack(PLUG, 2046, 1);
    rig.ack(PLUG, 2, 1022);
    assert_eq!((rig.plugged(), rig.memory.plugged.count()), (2048, 1024));
}

fn over_ask() {
    let mut rig = Rig::new(64);
    rig.refuse(PLUG, ADDR, 33, ResponseType::Nack, Refusal::OverAsk);
    rig.ack(PLUG, 0, 32);
    rig.refuse(PLUG, ADDR + 64 * MIB, 1, ResponseType::Nack, Refusal::OverAsk);
    // The requested size falls below the plugged size.
    rig.device.resize(32 * MIB).unwrap();
    rig.ack(UNPLUG, 0, 1);
    rig.refuse(PLUG, ADDR, 1, ResponseType::Nack, Refusal::OverAsk);
}

fn unplugged_already() {
    let mut rig = Rig::new(64);
    rig.ack(PLUG, 16, 4);
    for (mib, nb_blocks) in [(0, 1), (14, 1), (24, 1), (14, 2), (22, 2), (0, 16)] {
        rig.error(UNPLUG, ADDR + mib * MIB, nb_blocks, Refusal::AlreadyUnplugged);
    }
}

fn unplug_busy() {
    let mut rig = Rig::new(64);
    rig.ack(PLUG, 0, 4);
    rig.memory.fail_after = Some(0);
    rig.refuse(UNPLUG, ADDR, 4, ResponseType::Busy, BUSY);
    rig.memory.fail_after = None;
    rig.ack(UNPLUG, 0, 4);
}

fn unplug_ack() {
    let mut rig = Rig::new(64);
    rig.ack(PLUG, 0, 32);
    rig.ack(UNPLUG, 62, 1);
    rig.ack(UNPLUG, 0, 31);
    assert_eq!(rig.plugged(), 0);
}

fn unplug_all_ignores() {
    let mut rig = Rig::new(64);
    rig.ack(PLUG, 0, 4);
    let mut garbage = [0xa5; REQUEST_SIZE];
    garbage[..2].copy_from_slice(&UNPLUG_ALL.to_le_bytes());
    assert_eq!(rig.send(&garbage).kind, ResponseType::Ack);
    assert_eq!(rig.plugged(), 0);
}

fn unplug_all_busy() {
    let mut rig = Rig::new(64);
    rig.ack(PLUG, 0, 4);
    rig.ack(PLUG, 16, 4);
    let usable = rig.usable();
    rig.memory.fail_after = Some(0);
    rig.refuse(UNPLUG_ALL, 0, 0, ResponseType::Busy, BUSY);
    assert_eq!((rig.plugged(), rig.usable()), (16, usable), "nothing has changed");
    // There is no second operation that could fail.
    rig.memory.fail_after = Some(1);
    rig.ack(UNPLUG_ALL, 0, 0);
    // Where nothing is plugged there is nothing that the host could refuse.
    rig.memory.fail_after = Some(0);
    rig.ack(UNPLUG_ALL, 0, 0);
}

fn unplug_all_ack() {
    let mut rig = Rig::new(64);
    for blocks in [0, 1, 32] {
        if blocks > 0 {
            rig.ack(PLUG, 0, blocks);
        }
        rig.ack(UNPLUG_ALL, 0, 0);
        assert_eq!(rig.plugged(), 0);
    }
    rig.ack(UNPLUG_ALL, 0, 0);
}

fn unplug_all_usable() {
    let mut rig = Rig::new(1024);
    rig.ack(PLUG, 0, 512);
    for (requested, usable) in [(100, 356), (0, 0)] {
        rig.device.resize(requested * MIB).unwrap();
        assert!(rig.usable() > usable);
        rig.ack(UNPLUG_ALL, 0, 0);
        assert_eq!(rig.usable(), usable);
    }
}

fn state_errors() {
    misaligned(STATE);
    no_blocks(STATE);
    beyond_usable(STATE);
}

fn state() {
    let mut rig = Rig::new(512);
    rig.ack(PLUG, 0, 1);
    rig.ack(PLUG, 100, 70);
    for (mib, nb_blocks, state) in [
        (0, 1, BlockState::Plugged),
        (2, 1, BlockState::Unplugged),
        (0, 2, BlockState::Mixed),
        (100, 70, BlockState::Plugged),
        (98, 71, BlockState::Mixed),
        (100, 71, BlockState::Mixed),
        (2, 49, BlockState::Unplugged),
        (0, (768 / 2) as u16, BlockState::Mixed),
    ] {
        assert_eq!(rig.state(mib, nb_blocks), state, "{nb_blocks} blocks at {mib} MiB");
    }
    rig.ack(UNPLUG_ALL, 0, 0);
    assert_eq!(rig.state(0, (768 / 2) as u16), BlockState::Unplugged);
}
