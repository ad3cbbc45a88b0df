//! Rows on what plugged and unplugged memory holds, and on resets (virtio 1.3, section 5.15.6.2): D13, D14, D16 to D22.

use alloc::format;

use tidevm_abi::judge::FromGuest;

use super::Row;
use crate::cpu;
use crate::judge::answer::{Answer, Came, STATE, Stop, fail, skip};
use crate::judge::line::wait;
use crate::judge::memory::Window;
use crate::judge::registers::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, INACCESSIBLE, VERSION_1};
use crate::judge::rig::{PATIENCE, Rig};
use crate::mem::span::Span;

pub const ROWS: &[Row] = &[
    Row { id: "D13", sent: "PLUG of blocks 1 and 3, a device reset, STATE", run: states_survive },
    Row { id: "D14", sent: "PLUG, a pattern, a device reset", run: content_survives },
    Row { id: "D16", sent: "PLUG; accesses of 1, 2, 4 and 8 bytes, some across pages", run: properties },
    Row { id: "D17", sent: "PLUG, a pattern, UNPLUG, PLUG", run: unplugged_content },
    Row { id: "D18", sent: "PLUG of 5 blocks, a pattern, UNPLUG of the middle", run: neighbours },
    Row { id: "D19", sent: "PLUG of 8 blocks; first and last word of each", run: reachable },
    Row { id: "D20", sent: "a driver without VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE; a read", run: readable },
    Row { id: "D21", sent: "PLUG, a reset of the machine, STATE", run: system_reset_states },
    Row { id: "D22", sent: "PLUG, a pattern, a reset of the machine, PLUG", run: system_reset },
];

/// The keyboard controller's port, and its command that resets the machine.
const I8042: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// Where patterns lie in each block: its ends, and a page in between.
pub fn places(block: u64) -> [u64; 3] {
    [0, block / 2 + 0x1230, block - 8]
}

/// The pattern of a place.
fn pattern(place: u64) -> u64 {
    0x7469_6465_0000_0001 ^ place << 8
}

/// Writes a pattern into `count` blocks of a window.
pub fn fill(span: &Span, block: u64, count: u64) {
    for place in (0..count).flat_map(|index| places(block).map(|place| index * block + place)) {
        span.set(place, pattern(place));
    }
}

/// Fails unless block `index` of a window has its pattern.
///
/// # Errors
/// It has not.
pub fn must_hold(span: &Span, block: u64, index: u64) -> Result<(), Stop> {
    for place in places(block).map(|place| index * block + place) {
        let found = span.get::<u64>(place);
        if found != pattern(place) {
            return fail!("{found:#x} at {:#x} of block {index}", place - index * block);
        }
    }
    Ok(())
}

fn states_survive(rig: &mut Rig) -> Came {
    rig.plug(1, 1)?;
    rig.plug(3, 1)?;
    rig.start()?;
    for (block, state) in [(0, 1), (1, 0), (2, 1), (3, 0), (4, 1)] {
        rig.must_have(block, 1, state)?;
    }
    rig.must_have_plugged(2)?;
    Ok("all states stay".into())
}

fn content_survives(rig: &mut Rig) -> Came {
    rig.plug(0, 3)?;
    let window = rig.window(0, 3)?;
    fill(window.span(), rig.block(), 3);
    rig.start()?;
    for block in 0..3 {
        must_hold(window.span(), rig.block(), block)?;
    }
    Ok("the pattern stays".into())
}

fn properties(rig: &mut Rig) -> Came {
    rig.plug(0, 2)?;
    let (window, block) = (rig.window(0, 2)?, rig.block());
    let span = window.span();
    for start in [0, 0xff8, block - 8, block, 2 * block - 8] {
        span.set(start, 0x0807_0605_0403_0201_u64);
        for (offset, byte) in (start..start + 8).zip(1_u8..) {
            if span.get::<u8>(offset) != byte {
                return fail!("byte {offset:#x} is {:#x}", span.get::<u8>(offset));
            }
        }
        span.set(start + 2, 0xbbaa_u16);
        span.set(start + 4, 0xffee_ddcc_u32);
        let found = span.get::<u64>(start);
        if found != 0xffee_ddcc_bbaa_0201 {
            return fail!("{found:#x} at {start:#x}");
        }
    }
    Ok("reads give what was written, in every width".into())
}

/// What a block holds that was unplugged and plugged again is the host's choice; it must be memory.
fn unplugged_content(rig: &mut Rig) -> Came {
    let block = rig.block();
    rig.plug(0, 2)?;
    let window = rig.window(0, 2)?;
    fill(window.span(), block, 2);
    drop(window);
    rig.unplug(0, 1)?;
    rig.plug(0, 1)?;
    let window = rig.window(0, 2)?;
    let kept = must_hold(window.span(), block, 0).is_ok();
    let zero = places(block).iter().all(|&place| window.span().get::<u64>(place) == 0);
    must_hold(window.span(), block, 1)?;
    fill(window.span(), block, 2);
    must_hold(window.span(), block, 0)?;
    let what = if zero {
        "zero"
    } else if kept {
        "its old content"
    } else {
        "something else"
    };
    Ok(format!("the block holds {what}, and can be written"))
}

fn neighbours(rig: &mut Rig) -> Came {
    let block = rig.block();
    rig.plug(0, 5)?;
    let window = rig.window(0, 5)?;
    fill(window.span(), block, 5);
    rig.unplug(2, 1)?;
    for index in [0, 1, 3, 4] {
        must_hold(window.span(), block, index)?;
    }
    Ok("the other blocks keep their pattern".into())
}

fn reachable(rig: &mut Rig) -> Came {
    const BLOCKS: u64 = 8;
    let block = rig.block();
    rig.plug(0, BLOCKS as u16)?;
    let window = rig.window(0, BLOCKS)?;
    fill(window.span(), block, BLOCKS);
    for index in 0..BLOCKS {
        must_hold(window.span(), block, index)?;
    }
    Ok("all words are as they were written".into())
}

fn readable(rig: &mut Rig) -> Came {
    rig.reset()?;
    rig.registers.set_status(ACKNOWLEDGE);
    rig.registers.set_status(ACKNOWLEDGE | DRIVER);
    rig.registers.accept(VERSION_1);
    rig.registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if rig.registers.status() & FEATURES_OK == 0 {
        return skip!("the device does not go on without the feature");
    }
    if rig.registers.features() & INACCESSIBLE != 0 {
        return skip!("the device offers the feature, and a guest that reads all the same may be ended");
    }
    rig.set_up_queue(rig.queue.entries());
    rig.registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let window: Window = rig.window(0, 1)?;
    let words = places(rig.block()).map(|place| window.span().get::<u64>(place));
    rig.expect(STATE, 0, 1, Answer::Ack)?;
    Ok(if words == [0; 3] { "reads give zero" } else { "reads give something" }.into())
}

/// Resets the machine in the first half of a row, and does not return then.
fn reset_machine(rig: &mut Rig, id: &'static str) -> Came {
    rig.talk.say(FromGuest::Resets(id));
    cpu::port_write(I8042, I8042_RESET);
    wait(PATIENCE, || false);
    skip!("the machine has no keyboard controller that resets it")
}

fn system_reset_states(rig: &mut Rig) -> Came {
    if !rig.again {
        rig.plug(0, 4)?;
        return reset_machine(rig, "D21");
    }
    // The row begins with nothing plugged, so what matters was read before.
    let left = rig.plugged_at_boot();
    Ok(if left == 0 { "nothing is plugged" } else { "blocks stay plugged" }.into())
}

fn system_reset(rig: &mut Rig) -> Came {
    let block = rig.block();
    if !rig.again {
        rig.plug(0, 4)?;
        let window = rig.window(0, 4)?;
        fill(window.span(), block, 4);
        drop(window);
        return reset_machine(rig, "D22");
    }
    let left = rig.plugged_at_boot();
    if left != 0 {
        return fail!("{} blocks stay plugged", left / block);
    }
    rig.plug(0, 4)?;
    let window = rig.window(0, 4)?;
    let kept = (0..4).any(|index| must_hold(window.span(), block, index).is_ok());
    if kept {
        return fail!("nothing is plugged, but the old content is there");
    }
    Ok("nothing is plugged, and the old content is gone".into())
}
