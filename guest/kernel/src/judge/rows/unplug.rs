//! Rows on UNPLUG and UNPLUG_ALL (virtio 1.3, sections 5.15.6.4.2 and 5.15.6.5.2): D33 to D37, D39, D40, D42 to D44.

use alloc::format;

use super::{Row, plug};
use crate::judge::answer::{Answer, Came, UNPLUG, UNPLUG_ALL, fail};
use crate::judge::rig::{BASE_BLOCKS, Rig, request};

pub const ROWS: &[Row] = &[
    Row { id: "D33", sent: "UNPLUG with garbage behind the request and in its padding", run: ignored },
    Row {
        id: "D34",
        sent: "UNPLUG at the block plus 1, 4096 and half a block",
        run: |rig| with_plugged(rig, |rig| plug::misaligned(rig, UNPLUG)),
    },
    Row {
        id: "D35",
        sent: "UNPLUG of 0 blocks",
        run: |rig| with_plugged(rig, |rig| plug::no_blocks(rig, UNPLUG)),
    },
    Row {
        id: "D36",
        sent: "UNPLUG below the region, at the end of the usable region, across it, at 0, near 2^64",
        run: |rig| with_plugged(rig, |rig| plug::outside(rig, UNPLUG)),
    },
    Row { id: "D37", sent: "UNPLUG of unplugged blocks, and of some that are", run: already },
    Row { id: "D39", sent: "UNPLUG of 1 block, of the last one, of all others", run: ack },
    Row { id: "D40", sent: "UNPLUG_ALL with garbage in all other bytes", run: all_ignores },
    Row { id: "D42", sent: "UNPLUG_ALL with blocks plugged, and with none", run: all_ack },
    Row { id: "D43", sent: "UNPLUG_ALL; a read of plugged_size after it came back", run: all_plugged_size },
    Row { id: "D44", sent: "UNPLUG_ALL after a target that shrank", run: all_usable },
];

fn with_plugged(rig: &mut Rig, row: impl FnOnce(&mut Rig) -> Came) -> Came {
    rig.plug(0, 4)?;
    row(rig)
}

fn ignored(rig: &mut Rig) -> Came {
    rig.plug(0, 1)?;
    plug::garbage_behind(rig, UNPLUG)?;
    rig.plug(0, 1)?;
    plug::padding(rig, UNPLUG)?;
    rig.must_have_plugged(0)?;
    Ok("ACK".into())
}

fn already(rig: &mut Rig) -> Came {
    rig.plug(2, 4)?;
    for (index, count) in [(0, 1), (1, 2), (5, 2), (0, 8), (2, 5)] {
        rig.expect(UNPLUG, index, count, Answer::Error)?;
    }
    rig.must_have(2, 4, 0)?;
    rig.must_have_plugged(4)?;
    Ok("ERROR".into())
}

fn ack(rig: &mut Rig) -> Came {
    let last = BASE_BLOCKS - 1;
    rig.plug(0, BASE_BLOCKS as u16)?;
    for (index, count, left) in [(0, 1, last), (last, 1, last - 1), (1, last as u16 - 1, 0)] {
        rig.unplug(index, count)?;
        rig.must_have_plugged(left)?;
    }
    rig.must_have(0, BASE_BLOCKS as u16, 1)?;
    Ok("ACK, and plugged_size has them no more".into())
}

fn all_ignores(rig: &mut Rig) -> Came {
    rig.plug(1, 2)?;
    let mut bytes = [0xa5; 40];
    bytes[..2].copy_from_slice(&UNPLUG_ALL.to_le_bytes());
    let (answer, _) = rig.send(&bytes);
    rig.must_be(answer, Answer::Ack, || "UNPLUG_ALL with garbage".into())?;
    let answer = rig.send(&request(UNPLUG_ALL, u64::MAX, u16::MAX)).0;
    rig.must_be(answer, Answer::Ack, || "UNPLUG_ALL with an address and a number".into())?;
    rig.must_have_plugged(0)?;
    Ok("ACK".into())
}

fn all_ack(rig: &mut Rig) -> Came {
    rig.plug(0, 3)?;
    rig.plug(7, 2)?;
    for _ in 0..3 {
        rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
    }
    rig.must_have(0, BASE_BLOCKS as u16, 1)?;
    Ok("ACK, and every block is unplugged".into())
}

fn all_plugged_size(rig: &mut Rig) -> Came {
    for count in [1, 5, BASE_BLOCKS as u16] {
        rig.plug(0, count)?;
        rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
        rig.must_have_plugged(0)?;
    }
    Ok("0".into())
}

fn all_usable(rig: &mut Rig) -> Came {
    let before = rig.resize_and_see(512)?.usable_region_size;
    rig.resize_and_see(BASE_BLOCKS)?;
    rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
    let after = rig.config()?;
    if after.usable_region_size < after.requested_size {
        return fail!(
            "usable_region_size {:#x} with requested_size {:#x}",
            after.usable_region_size,
            after.requested_size
        );
    }
    let how = if after.usable_region_size < before { "shrinks" } else { "stays" };
    Ok(format!("the usable region {how}, and has room for the target"))
}
