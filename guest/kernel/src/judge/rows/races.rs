//! Rows on races of host and guest that have hit devices which others shipped: R1 to R4, R8 to R10, R12.
//!
//! The host's part of a race is a target that it sets at some moment while the row sends requests. So a row makes sure that
//! both orders are right, and does not count which of them came.

use alloc::format;

use tidevm_abi::judge::FromGuest;

use super::Row;
use super::content::{fill, must_hold};
use crate::cpu::time::Instant;
use crate::judge::answer::{Answer, Came, PLUG, STATE, Stop, UNPLUG, UNPLUG_ALL, fail, reject, skip};
use crate::judge::line::wait;
use crate::judge::queue::{Descriptor, NEXT, WRITE};
use crate::judge::rig::{BASE_BLOCKS, PATIENCE, REQUESTED_SIZE, Rig, request};

pub const ROWS: &[Row] = &[
    Row {
        id: "R1",
        sent: "PLUG of single blocks, 8 at a time, while the target shrinks",
        run: shrink_in_burst,
    },
    Row { id: "R2", sent: "targets of 256 and 8 blocks at once, then PLUG of 16", run: grow_then_shrink },
    Row { id: "R3", sent: "UNPLUG_ALL with a target, PLUG of all of it", run: unplug_all_then_plug },
    Row { id: "R4", sent: "targets on both sides of 4 GiB; requested_size in two halves", run: torn_read },
    Row {
        id: "R8",
        sent: "UNPLUG of the middle of three blocks; meanwhile, accesses of the other two",
        run: neighbours_under_way,
    },
    Row { id: "R9", sent: "UNPLUG_ALL, 16 in the queue at once", run: unplug_all_again },
    Row { id: "R10", sent: "PLUG, a notification, a device reset at once", run: reset_under_way },
    Row { id: "R12", sent: "UNPLUG of the block that holds the request and its answer", run: own_buffers },
];

/// Longest time of the host's part of a race, in milliseconds.
const RACE_MILLIS: u64 = 10_000;

/// Calls `act` until the host has set a target of `blocks` blocks.
fn while_resizing(
    rig: &mut Rig,
    blocks: u64,
    mut act: impl FnMut(&mut Rig) -> Result<(), Stop>,
) -> Result<(), Stop> {
    rig.talk.say(FromGuest::Resize(blocks * rig.block()));
    let end = Instant::in_millis(RACE_MILLIS);
    loop {
        act(rig)?;
        match rig.talk.poll_host() {
            Some(Ok(())) => return Ok(()),
            Some(Err(reason)) => return skip!("the VMM refuses a target: {reason}"),
            None if end.has_passed() => return skip!("the host did not answer"),
            None => {}
        }
    }
}

/// Sends `count` requests of single blocks from block `first` on, all of them before one notification.
fn burst(rig: &mut Rig, kind: u16, first: u64, count: u16) -> Result<(), Stop> {
    for slot in 0..count {
        let bytes = request(kind, rig.address(first + u64::from(slot)), 1);
        rig.offer(slot, &bytes, 10);
    }
    rig.notify();
    if rig.all_back() { Ok(()) } else { fail!("chains do not come back") }
}

/// The answer in slot `slot` of a burst.
fn answer(rig: &Rig, slot: u16) -> Answer {
    Answer::of(&rig.queue.response(slot), 10)
}

fn shrink_in_burst(rig: &mut Rig) -> Came {
    const AT_ONCE: u16 = 8;
    for _ in 0..4 {
        rig.resize_and_see(BASE_BLOCKS)?;
        let mut first = 0;
        while_resizing(rig, 4, |rig| {
            burst(rig, PLUG, first, AT_ONCE)?;
            for slot in 0..AT_ONCE {
                match answer(rig, slot) {
                    Answer::Ack | Answer::Nack | Answer::Busy => {}
                    other => return fail!("{other} to a PLUG that a smaller target overtook"),
                }
            }
            first = (first + u64::from(AT_ONCE)) % BASE_BLOCKS;
            // The next round of the burst finds its blocks unplugged again.
            if first == 0 { rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack) } else { Ok(()) }
        })?;
        rig.resize_and_see(4)?;
        rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
        rig.plug(0, 4)?;
        rig.expect(PLUG, 4, 1, Answer::Nack)?;
        rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
        rig.must_have_plugged(0)?;
    }
    Ok("only ACK, NACK and BUSY, and then NACK".into())
}

fn grow_then_shrink(rig: &mut Rig) -> Came {
    rig.resize(256)?;
    rig.resize(8)?;
    let answer = rig.ask(PLUG, rig.address(0), 16);
    rig.must_be(answer, Answer::Nack, || "PLUG of 16 blocks with a target of 8".into())?;
    rig.plug(0, 8)?;
    rig.must_have_plugged(8)?;
    Ok("NACK, and ACK for 8 blocks".into())
}

fn unplug_all_then_plug(rig: &mut Rig) -> Came {
    for round in 0..3 {
        rig.plug(0, BASE_BLOCKS as u16)?;
        rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
        let answer = rig.ask(PLUG, rig.address(0), BASE_BLOCKS as u16);
        rig.must_be(answer, Answer::Ack, || format!("PLUG of the whole target, round {round}"))?;
        rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
    }
    Ok("ACK".into())
}

fn torn_read(rig: &mut Rig) -> Came {
    let border = (4 << 30) / rig.block();
    let (low, high) = (border - 1, border + 1);
    if rig.blocks() < high {
        return skip!("the region has less than 4 GiB");
    }
    rig.resize_and_see(low)?;
    let sizes = [low, high].map(|blocks| blocks * rig.block());
    for round in 0..8 {
        let target = if round % 2 == 0 { high } else { low };
        while_resizing(rig, target, |rig| {
            let before = rig.registers.generation();
            let half = |offset| u64::from(rig.registers.config_32(REQUESTED_SIZE + offset));
            let size = half(0) | half(4) << 32;
            if rig.registers.generation() == before && !sizes.contains(&size) {
                return fail!("requested_size {size:#x}, and the generation says that it is whole");
            }
            Ok(())
        })?;
        rig.resize_and_see(target)?;
    }
    rig.resize_and_see(BASE_BLOCKS)?;
    Ok("each read of one generation is whole".into())
}

fn neighbours_under_way(rig: &mut Rig) -> Came {
    let block = rig.block();
    for round in 0..16 {
        rig.plug(0, 3)?;
        let [first, last] = [rig.window(0, 1)?, rig.window(2, 1)?];
        let mut count = round << 32;
        rig.offer(0, &request(UNPLUG, rig.address(1), 1), 10);
        rig.notify();
        let end = rig.queue.offered();
        while rig.queue.used() != end && count < (round << 32) + 100_000 {
            count += 1;
            for (window, value) in [(&first, count), (&last, !count)] {
                window.span().set(block / 2, value);
                let found = window.span().get::<u64>(block / 2);
                if found != value {
                    return fail!("a block that stays plugged holds {found:#x}, not {value:#x}");
                }
            }
        }
        let (answer, _) = rig.take(0);
        rig.must_be(answer, Answer::Ack, || "UNPLUG of the block between".into())?;
        drop((first, last));
        rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
    }
    Ok("no access of them is lost".into())
}

fn unplug_all_again(rig: &mut Rig) -> Came {
    const AT_ONCE: u16 = 16;
    rig.plug(0, BASE_BLOCKS as u16)?;
    for slot in 0..AT_ONCE {
        rig.offer(slot, &request(UNPLUG_ALL, 0, 0), 10);
    }
    rig.notify();
    if !rig.all_back() {
        return fail!("chains do not come back");
    }
    for slot in 0..AT_ONCE {
        let answer = answer(rig, slot);
        rig.must_be(answer, Answer::Ack, || format!("UNPLUG_ALL number {slot}"))?;
    }
    rig.must_have_plugged(0)?;
    rig.plug(0, BASE_BLOCKS as u16)?;
    Ok("ACK each, and the target can be plugged".into())
}

fn reset_under_way(rig: &mut Rig) -> Came {
    for round in 0..16 {
        let index = u64::from(round % 4 == 0);
        rig.offer(0, &request(PLUG, rig.address(index), 1), 10);
        rig.notify();
        rig.start()?;
        // The request was carried out or was not, and the device knows which.
        let plugged = rig.state_of(index, 1)? == 0;
        rig.must_have_plugged(plugged.into())?;
        if rig.queue.used() != rig.queue.offered() {
            return fail!("chains of before the reset come back after it");
        }
        rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
    }
    Ok("the device starts again, and plugged_size is that of STATE".into())
}

fn own_buffers(rig: &mut Rig) -> Came {
    rig.plug(0, 2)?;
    let window = rig.window(0, 2)?;
    fill(window.span(), rig.block(), 2);
    let (place, at) = (0x2000, rig.address(1));
    for (offset, byte) in (rig.block() + place..).zip(request(UNPLUG, at, 1)) {
        window.span().set(offset, byte);
    }
    drop(window);
    let buffer = at + place;
    rig.queue.describe(0, Descriptor { addr: buffer, len: 24, flags: NEXT, next: 1 });
    rig.queue.describe(1, Descriptor { addr: buffer + 64, len: 10, flags: WRITE, next: 0 });
    rig.queue.offer(0);
    rig.notify();
    if !wait(PATIENCE, || rig.queue.used() == rig.queue.offered()) {
        rig.must_live()?;
        return reject!("the chain does not come back, and the device works after a reset");
    }
    let answer = rig.ask(STATE, rig.address(0), 1);
    rig.must_be(answer, Answer::Ack, || "STATE after it".into())?;
    rig.must_have(0, 1, 0)?;
    let window = rig.window(0, 1)?;
    must_hold(window.span(), rig.block(), 0)?;
    drop(window);
    Ok("the chain comes back, and the device goes on".into())
}
