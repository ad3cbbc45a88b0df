//! Rows on PLUG (virtio 1.3, section 5.15.6.3.2): D24 to D29, D31, D32.

use alloc::format;

use super::Row;
use crate::judge::answer::{Answer, Came, PLUG, Stop, fail, name};
use crate::judge::rig::{BASE_BLOCKS, Rig, request};

pub const ROWS: &[Row] = &[
    Row {
        id: "D24",
        sent: "PLUG with 16 bytes of garbage behind the request",
        run: |rig| garbage_behind(rig, PLUG),
    },
    Row { id: "D25", sent: "PLUG with garbage in the padding", run: |rig| padding(rig, PLUG) },
    Row {
        id: "D26",
        sent: "PLUG at the block plus 1, 4096 and half a block",
        run: |rig| misaligned(rig, PLUG),
    },
    Row { id: "D27", sent: "PLUG of 0 blocks", run: |rig| no_blocks(rig, PLUG) },
    Row {
        id: "D28",
        sent: "PLUG below the region, at the end of the usable region, across it, at 0, near 2^64",
        run: |rig| outside(rig, PLUG),
    },
    Row { id: "D29", sent: "PLUG of the same blocks, and of some that are plugged", run: already },
    Row { id: "D31", sent: "PLUG of 1 block, of the last one that is wanted, of all others", run: ack },
    Row { id: "D32", sent: "PLUG of one block more than requested", run: over_ask },
];

/// A request with garbage behind its 24 bytes.
pub fn garbage_behind(rig: &mut Rig, kind: u16) -> Came {
    let mut bytes = [0xa5; 40];
    bytes[..24].copy_from_slice(&request(kind, rig.address(0), 1));
    let (answer, _) = rig.send(&bytes);
    rig.must_be(answer, Answer::Ack, || format!("{} with bytes behind it", name(kind)))?;
    Ok("ACK".into())
}

/// A request with garbage in its padding.
pub fn padding(rig: &mut Rig, kind: u16) -> Came {
    let mut bytes = request(kind, rig.address(0), 1);
    bytes[2..8].fill(0xa5);
    bytes[18..24].fill(0x5a);
    let (answer, _) = rig.send(&bytes);
    rig.must_be(answer, Answer::Ack, || format!("{} with padding", name(kind)))?;
    Ok("ACK".into())
}

/// Requests that do not begin with a block.
pub fn misaligned(rig: &mut Rig, kind: u16) -> Came {
    let before = rig.config()?.plugged_size;
    for offset in [1, 4096, rig.block() / 2] {
        let answer = rig.ask(kind, rig.address(1) + offset, 1);
        rig.must_be(answer, Answer::Error, || format!("{} at the block plus {offset}", name(kind)))?;
    }
    unchanged(rig, before)
}

/// Requests of no blocks.
pub fn no_blocks(rig: &mut Rig, kind: u16) -> Came {
    let before = rig.config()?.plugged_size;
    rig.expect(kind, 0, 0, Answer::Error)?;
    unchanged(rig, before)
}

/// Requests for blocks outside of the usable region.
pub fn outside(rig: &mut Rig, kind: u16) -> Came {
    let config = rig.config()?;
    let (block, end) = (rig.block(), config.addr + config.usable_region_size);
    let places = [
        ("below the region", config.addr.wrapping_sub(block), 1),
        ("from below into the region", config.addr.wrapping_sub(block), 2),
        ("at the end of the usable region", end, 1),
        ("across the end of the usable region", end - block, 2),
        ("at 0", 0, 1),
        ("near 2^64", 0_u64.wrapping_sub(block), 1),
        ("across 2^64", 0_u64.wrapping_sub(block), 2),
        ("of 65535 blocks", config.addr, u16::MAX),
    ];
    for (what, addr, count) in places {
        let answer = rig.ask(kind, addr, count);
        rig.must_be(answer, Answer::Error, || format!("{} {what}", name(kind)))?;
    }
    unchanged(rig, config.plugged_size)
}

/// All requests were answered by ERROR, and nothing has changed.
fn unchanged(rig: &Rig, plugged: u64) -> Came {
    let now = rig.config()?.plugged_size;
    if now == plugged { Ok("ERROR".into()) } else { fail!("ERROR, but plugged_size became {now:#x}") }
}

fn already(rig: &mut Rig) -> Came {
    rig.plug(2, 4)?;
    let plugged = rig.config()?.plugged_size;
    for (index, count) in [(2, 4), (3, 1), (0, 3), (5, 4), (0, 8)] {
        rig.expect(PLUG, index, count, Answer::Error)?;
    }
    for (index, count, state) in [(0, 2, 1), (2, 4, 0), (6, 2, 1)] {
        rig.must_have(index, count, state)?;
    }
    unchanged(rig, plugged)
}

fn ack(rig: &mut Rig) -> Came {
    let last = BASE_BLOCKS - 1;
    for (index, count, all) in [(0, 1, 1), (last, 1, 2), (1, last as u16 - 1, BASE_BLOCKS)] {
        rig.plug(index, count)?;
        rig.must_have_plugged(all)?;
    }
    rig.must_have(0, BASE_BLOCKS as u16, 0)?;
    Ok("ACK, and plugged_size has them".into())
}

fn over_ask(rig: &mut Rig) -> Came {
    let more = |rig: &mut Rig, index, count| -> Result<Answer, Stop> {
        let answer = rig.ask(PLUG, rig.address(index), count);
        match answer {
            Answer::Nack => Ok(answer),
            _ => fail!("PLUG of {count} blocks from block {index} beyond the target: {answer}, not NACK"),
        }
    };
    // The usable region may end with the target. A target that has shrunk leaves it as it is.
    rig.resize_and_see(2 * BASE_BLOCKS)?;
    rig.resize_and_see(BASE_BLOCKS)?;
    more(rig, 0, BASE_BLOCKS as u16 + 1)?;
    rig.plug(0, BASE_BLOCKS as u16)?;
    more(rig, BASE_BLOCKS, 1)?;
    rig.must_have_plugged(BASE_BLOCKS)?;
    Ok("NACK".into())
}
