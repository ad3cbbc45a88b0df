//! Rows on queues, interrupts and the configuration's generation as a good driver uses them (virtio 1.3, sections 2.5 to 2.7,
//! 4.1.4 and 4.2.2): T17 to T30.

use alloc::format;

use super::Row;
use crate::judge::answer::{Answer, Came, STATE, Stop, fail, skip};
use crate::judge::line::wait;
use crate::judge::queue::NO_INTERRUPT;
use crate::judge::registers::{CONFIGURATION, INACCESSIBLE, Registers, USED_BUFFER, VERSION_1};
use crate::judge::rig::{BASE_BLOCKS, PATIENCE, REQUESTED_SIZE, Rig, SILENCE, request};

pub const ROWS: &[Row] = &[
    Row { id: "T17", sent: "a read of the most entries of queue 0", run: entries },
    Row { id: "T18", sent: "a queue made ready, then a reset", run: ready },
    Row { id: "T19", sent: "a queue of 4 entries, and 20 requests", run: |rig| small(rig, 4) },
    Row { id: "T20", sent: "a queue of 2 entries, and 20 requests", run: |rig| small(rig, 2) },
    Row { id: "T21", sent: "a request; a read of the interrupt status, and an acknowledgement", run: status },
    Row { id: "T22", sent: "a request and a target; an acknowledgement of one reason", run: two_reasons },
    Row { id: "T23", sent: "requests with VIRTQ_AVAIL_F_NO_INTERRUPT", run: no_interrupt },
    Row { id: "T24", sent: "requests; a read of the flags of the device's ring", run: device_flags },
    Row { id: "T25", sent: "32 requests and one notification", run: batch },
    Row { id: "T26", sent: "notifications without a request", run: nothing_new },
    Row { id: "T27", sent: "notifications of queues 1, 7 and 65535", run: no_such_queue },
    Row { id: "T28", sent: "writes to the configuration", run: read_only },
    Row { id: "T29", sent: "targets that differ by 4 GiB", run: high_half },
    Row { id: "T30", sent: "a reset, and another size of the queue", run: set_up_again },
];

fn entries(rig: &mut Rig) -> Came {
    rig.reset()?;
    rig.registers.select(0);
    let most = rig.registers.most_entries();
    if most.is_power_of_two() && most <= 32768 { Ok(format!("{most}")) } else { fail!("{most}") }
}

fn ready(rig: &mut Rig) -> Came {
    rig.registers.select(0);
    let before = rig.registers.is_ready();
    rig.reset()?;
    rig.registers.select(0);
    let after = rig.registers.is_ready();
    if before && !after {
        return Ok("ready, and not ready after the reset".into());
    }
    fail!("ready {before}, after the reset {after}")
}

fn small(rig: &mut Rig, size: u16) -> Came {
    rig.start_with(VERSION_1 | INACCESSIBLE, size)?;
    for round in 0..20 {
        let answer = rig.ask(STATE, rig.address(0), 1);
        rig.must_be(answer, Answer::Ack, || format!("STATE number {round}"))?;
    }
    Ok("ACK each".into())
}

/// Sends STATE, and waits for it without a look at interrupts.
fn one_request(rig: &mut Rig) -> Result<(), Stop> {
    let bytes = request(STATE, rig.address(0), 1);
    rig.offer(0, &bytes, 10);
    rig.notify();
    if rig.all_back() { Ok(()) } else { fail!("STATE does not come back within {PATIENCE} ms") }
}

fn status(rig: &mut Rig) -> Came {
    rig.must_have_status()?;
    rig.interrupted(USED_BUFFER | CONFIGURATION, SILENCE);
    one_request(rig)?;
    let registers = &rig.registers;
    let mut status = 0;
    wait(PATIENCE, || {
        status |= registers.interrupt_status();
        status != 0
    });
    registers.acknowledge(status);
    let after = registers.interrupt_status();
    rig.interrupts();
    match (status, after) {
        (USED_BUFFER, 0) => Ok("bit 0, and 0 after it".into()),
        _ => fail!("{status:#x}, and {after:#x} after it was acknowledged"),
    }
}

fn two_reasons(rig: &mut Rig) -> Came {
    rig.must_have_status()?;
    rig.interrupted(USED_BUFFER | CONFIGURATION, SILENCE);
    rig.resize_and_see(64)?;
    one_request(rig)?;
    // Both are there before the first read, which acknowledges over PCI.
    wait(SILENCE, || false);
    let before = rig.registers.interrupt_status();
    rig.registers.acknowledge(USED_BUFFER);
    let after = rig.registers.interrupt_status();
    rig.registers.acknowledge(CONFIGURATION);
    rig.interrupts();
    let left = match rig.registers {
        Registers::Mmio(_) => CONFIGURATION,
        Registers::Pci(_) => 0,
    };
    if before == USED_BUFFER | CONFIGURATION && after == left {
        return Ok("both bits, and what was not acknowledged stays".into());
    }
    fail!("{before:#x}, and {after:#x} after one was acknowledged")
}

fn no_interrupt(rig: &mut Rig) -> Came {
    rig.must_hear()?;
    rig.interrupted(USED_BUFFER | CONFIGURATION, SILENCE);
    rig.queue.set_flags(NO_INTERRUPT);
    for _ in 0..4 {
        one_request(rig)?;
    }
    if rig.interrupted(USED_BUFFER, SILENCE) {
        return fail!("an interrupt");
    }
    rig.queue.set_flags(0);
    one_request(rig)?;
    if !rig.interrupted(USED_BUFFER, PATIENCE) {
        return fail!("none, and none without the flag either");
    }
    Ok("none, and one without the flag".into())
}

fn device_flags(rig: &mut Rig) -> Came {
    for _ in 0..4 {
        one_request(rig)?;
        let flags = rig.queue.device_flags();
        if flags > 1 {
            return fail!("{flags:#x}");
        }
    }
    Ok("0 or 1".into())
}

fn batch(rig: &mut Rig) -> Came {
    const COUNT: u16 = 32;
    for slot in 0..COUNT {
        let bytes = request(STATE, rig.address(u64::from(slot)), 1);
        rig.offer(slot, &bytes, 10);
    }
    rig.notify();
    if !rig.all_back() {
        return fail!("{} of {COUNT} come back", rig.queue.used());
    }
    let mut heads = 0_u64;
    for index in 0..COUNT {
        let (head, written) = rig.queue.used_entry(rig.queue.used() - COUNT + index);
        if written != 10 || head % 2 != 0 || head / 2 >= u32::from(COUNT) {
            return fail!("head {head} with {written} bytes");
        }
        heads |= 1 << (head / 2);
    }
    if heads.count_ones() == u32::from(COUNT) {
        return Ok("each comes back once".into());
    }
    fail!("{} different ones come back", heads.count_ones())
}

fn nothing_new(rig: &mut Rig) -> Came {
    let before = rig.queue.used();
    for _ in 0..8 {
        rig.notify();
    }
    wait(SILENCE, || false);
    if rig.queue.used() != before {
        return fail!("something comes back");
    }
    rig.expect(STATE, 0, 1, Answer::Ack)?;
    Ok("nothing comes back, and the device goes on".into())
}

fn no_such_queue(rig: &mut Rig) -> Came {
    for queue in [1, 7, u16::MAX] {
        rig.registers.notify(queue);
    }
    wait(SILENCE, || false);
    rig.expect(STATE, 0, 1, Answer::Ack)?;
    Ok("the device goes on".into())
}

fn read_only(rig: &mut Rig) -> Came {
    let before = rig.config()?;
    for offset in (0..56).step_by(4) {
        rig.registers.set_config_32(offset, 0xffff_ffff);
    }
    let after = rig.config()?;
    rig.expect(STATE, 0, 1, Answer::Ack)?;
    if after == before {
        Ok("the configuration stays".into())
    } else {
        fail!("{before:x?} became {after:x?}")
    }
}

fn high_half(rig: &mut Rig) -> Came {
    let more = BASE_BLOCKS + (4 << 30) / rig.block();
    if more > rig.blocks() {
        return skip!("the region has less than 4 GiB");
    }
    let before = rig.registers.generation();
    rig.resize_and_see(more)?;
    let high = rig.registers.config_32(REQUESTED_SIZE + 4);
    let after = rig.registers.generation();
    rig.resize_and_see(BASE_BLOCKS)?;
    let again = rig.registers.generation();
    if high == 1 && after != before && again != after {
        return Ok("the generation changes with the high half alone".into());
    }
    fail!("generation {before}, {after}, {again}; high half {high:#x}")
}

fn set_up_again(rig: &mut Rig) -> Came {
    for size in [8, 64, 16] {
        rig.start_with(VERSION_1 | INACCESSIBLE, size)?;
        for _ in 0..size / 2 + 2 {
            rig.expect(STATE, 0, 1, Answer::Ack)?;
        }
    }
    Ok("ACK each".into())
}
