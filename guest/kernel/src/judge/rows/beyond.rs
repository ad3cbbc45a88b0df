//! Rows on what section 5.15 of virtio 1.3 leaves to the rest of the specification, or to good sense: X1 to X7, X9.

use alloc::format;

use super::Row;
use crate::judge::answer::{Answer, Came, PLUG, STATE, Stop, UNPLUG, UNPLUG_ALL, fail, name, reject};
use crate::judge::queue::{Descriptor, FILLER, NEXT, WRITE};
use crate::judge::rig::{BASE_BLOCKS, Rig, request};

pub const ROWS: &[Row] = &[
    Row {
        id: "X1",
        sent: "STATE in 1, 2, 3 and 24 readable buffers, its answer in 1, 2 and 10",
        run: framing,
    },
    Row {
        id: "X2",
        sent: "chains without room for the answer, without a request, too short",
        run: malformed,
    },
    Row { id: "X3", sent: "requests of type 4, 256 and 65535", run: unknown },
    Row {
        id: "X4",
        sent: "PLUG, STATE, UNPLUG, UNPLUG_ALL, errors; 10 and 32 bytes of room",
        run: used_length,
    },
    Row { id: "X5", sent: "PLUG, UNPLUG and STATE at addresses whose sums and differences wrap", run: wraps },
    Row { id: "X6", sent: "PLUG that is wrong in two ways", run: order },
    Row { id: "X7", sent: "targets, PLUG and UNPLUG; a read of the generation", run: generation },
    Row { id: "X9", sent: "PLUG; as soon as it is back, the answer, STATE and the memory", run: before_used },
];

/// Describes buffers of `sizes`, one descriptor each from `first` on, at `addr` one behind the other.
fn describe(rig: &Rig, first: u16, mut addr: u64, sizes: &[u32], flags: u16, more: bool) -> u16 {
    let mut index = first;
    for (nr, &len) in sizes.iter().enumerate() {
        let last = nr + 1 == sizes.len() && !more;
        let flags = if last { flags } else { flags | NEXT };
        rig.queue.describe(index, Descriptor { addr, len, flags, next: index + 1 });
        addr += u64::from(len);
        index += 1;
    }
    index
}

/// Sends `request` in buffers of these sizes, with room for the answer in buffers of those.
fn send_split(rig: &mut Rig, bytes: &[u8], readable: &[u32], writable: &[u32]) -> Answer {
    let (request, response) = (rig.queue.put_request(0, bytes), rig.queue.clear_response(0));
    let next = describe(rig, 0, request, readable, 0, !writable.is_empty());
    describe(rig, next, response, writable, WRITE, false);
    rig.queue.offer(0);
    rig.notify();
    rig.take(0).0
}

fn framing(rig: &mut Rig) -> Came {
    let bytes = request(STATE, rig.address(0), 1);
    let whole: (&[u32], &[u32]) = (&[24], &[10]);
    let splits: [(&[u32], &[u32]); 6] = [
        whole,
        (&[2, 22], &[10]),
        (&[8, 8, 8], &[2, 8]),
        (&[1; 24], &[10]),
        (&[24], &[1; 10]),
        (&[24, 0], &[10]),
    ];
    for (readable, writable) in splits {
        let answer = send_split(rig, &bytes, readable, writable);
        // The zero length of the last one is no driver's; any answer to it will do, if the device lives.
        let is_odd = readable.contains(&0);
        if answer != Answer::Ack && !is_odd {
            return fail!("{answer} to {} and {} buffers", readable.len(), writable.len());
        }
    }
    rig.must_live()?;
    Ok("ACK".into())
}

fn malformed(rig: &mut Rig) -> Came {
    let bytes = request(STATE, rig.address(0), 1);
    let mut kept = true;
    let chains: [(&[u32], &[u32]); 5] =
        [(&[24], &[]), (&[24], &[9]), (&[], &[10]), (&[23], &[10]), (&[2], &[10])];
    for (readable, writable) in chains {
        let answer = send_split(rig, &bytes, readable, writable);
        if answer == Answer::Ack {
            return fail!("ACK to {readable:?} readable and {writable:?} writable bytes");
        }
        if answer == Answer::Nothing {
            kept = false;
            rig.must_live()?;
        }
    }
    if !kept {
        return reject!("a chain does not come back, and the device works after a reset");
    }
    let answer = rig.ask(STATE, rig.address(0), 1);
    rig.must_be(answer, Answer::Ack, || "STATE after the chains".into())?;
    Ok("each chain comes back without ACK, and the device goes on".into())
}

fn unknown(rig: &mut Rig) -> Came {
    for kind in [4, 256, u16::MAX] {
        match rig.ask(kind, rig.address(0), 1) {
            Answer::Error => {}
            Answer::Nothing => {
                rig.must_live()?;
                return reject!("no answer, and the device works after a reset");
            }
            Answer::Empty => {
                rig.must_live()?;
                return reject!("the chain comes back empty, and the device works on");
            }
            answer => return fail!("{answer} to type {kind}"),
        }
    }
    rig.expect(STATE, 0, 1, Answer::Ack)?;
    Ok("ERROR".into())
}

fn used_length(rig: &mut Rig) -> Came {
    let at = rig.address(0);
    let requests = [
        (PLUG, at, 1),
        (STATE, at, 1),
        (PLUG, at, 1),
        (UNPLUG, at, 1),
        (STATE, at + 1, 1),
        (UNPLUG_ALL, 0, 0),
    ];
    for (kind, addr, count) in requests {
        for room in [10, 32] {
            rig.offer(0, &request(kind, addr, count), room);
            rig.notify();
            let (answer, written) = rig.take(0);
            if written != 10 {
                return fail!("{answer} to {} with {room} bytes of room: {written} bytes", name(kind));
            }
            if rig.queue.response(0)[10..].iter().any(|&byte| byte != FILLER) {
                return fail!("{} wrote behind its 10 bytes", name(kind));
            }
        }
    }
    Ok("10".into())
}

fn wraps(rig: &mut Rig) -> Came {
    let (block, start) = (rig.block(), rig.address(0));
    let top = 0_u64.wrapping_sub(block);
    let before = rig.config()?.plugged_size;
    for kind in [PLUG, UNPLUG, STATE] {
        for addr in [0, block, start.wrapping_sub(block), top, 1 << 63, start.wrapping_sub(1 << 63)] {
            for count in [1, 2, u16::MAX] {
                let answer = rig.ask(kind, addr, count);
                rig.must_be(answer, Answer::Error, || {
                    format!("{} of {count} blocks at {addr:#x}", name(kind))
                })?;
            }
        }
    }
    let after = rig.config()?.plugged_size;
    if after == before { Ok("ERROR".into()) } else { fail!("ERROR, but plugged_size became {after:#x}") }
}

fn order(rig: &mut Rig) -> Came {
    let over = BASE_BLOCKS as u16 + 1;
    rig.plug(0, 4)?;
    let end = rig.config()?.usable_region_size / rig.block();
    let requests = [
        ("misaligned and too much", rig.address(0) + 1, over),
        ("outside and too much", rig.address(end) - rig.block(), over),
        ("plugged in part and too much", rig.address(3), over),
    ];
    for (what, addr, count) in requests {
        let answer = rig.ask(PLUG, addr, count);
        rig.must_be(answer, Answer::Error, || format!("PLUG {what}"))?;
    }
    Ok("ERROR".into())
}

fn generation(rig: &mut Rig) -> Came {
    let mut before = rig.registers.generation();
    // A device may put a change off until the configuration is read (4.1.4.3.1).
    let mut must_change = |rig: &Rig, what: &str| -> Result<(), Stop> {
        rig.config()?;
        let now = rig.registers.generation();
        if core::mem::replace(&mut before, now) == now { fail!("{what} does not change it") } else { Ok(()) }
    };
    for blocks in [64, 16, BASE_BLOCKS] {
        rig.resize_and_see(blocks)?;
        must_change(rig, "a target")?;
    }
    let now = rig.registers.generation();
    rig.expect(STATE, 0, 1, Answer::Ack)?;
    rig.config()?;
    if rig.registers.generation() != now {
        return fail!("STATE changes it");
    }
    // No notification is wanted of `plugged_size`, so that only the generation tells a driver that its halves do not match.
    rig.plug(0, 1)?;
    must_change(rig, "a PLUG")?;
    rig.unplug(0, 1)?;
    must_change(rig, "an UNPLUG")?;
    Ok("the generation changes with the configuration, and only then".into())
}

fn before_used(rig: &mut Rig) -> Came {
    for round in 0..8 {
        rig.plug(round, 2)?;
        let window = rig.window(round, 2)?;
        window.span().set(0, round);
        window.span().set(2 * rig.block() - 8, !round);
        if window.span().get::<u64>(0) != round || window.span().get::<u64>(2 * rig.block() - 8) != !round {
            return fail!("the memory does not hold what is written as soon as PLUG is back");
        }
        drop(window);
        rig.must_have(round, 2, 0)?;
        rig.must_have_plugged(2)?;
        rig.unplug(round, 2)?;
        rig.must_have(round, 2, 1)?;
        rig.must_have_plugged(0)?;
    }
    Ok("all three are as PLUG and UNPLUG say".into())
}
