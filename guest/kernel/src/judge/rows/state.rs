//! Rows on STATE (virtio 1.3, section 5.15.6.6.2): D45 to D47.

use super::{Row, plug};
use crate::judge::answer::{Came, STATE, fail};
use crate::judge::rig::Rig;

pub const ROWS: &[Row] = &[
    Row { id: "D45", sent: "STATE with garbage behind the request and in its padding", run: ignored },
    Row { id: "D46", sent: "STATE misaligned, of 0 blocks, and outside of the usable region", run: errors },
    Row { id: "D47", sent: "STATE of 1 block, of 2, of the whole usable region", run: states },
];

fn ignored(rig: &mut Rig) -> Came {
    plug::garbage_behind(rig, STATE)?;
    plug::padding(rig, STATE)
}

fn errors(rig: &mut Rig) -> Came {
    plug::misaligned(rig, STATE)?;
    plug::no_blocks(rig, STATE)?;
    plug::outside(rig, STATE)
}

fn states(rig: &mut Rig) -> Came {
    let usable = rig.config()?.usable_region_size / rig.block();
    let Ok(all) = u16::try_from(usable) else {
        return fail!("{usable} usable blocks with the smallest target");
    };
    rig.must_have(0, all, 1)?;
    rig.plug(1, 3)?;
    for (index, count, state) in
        [(0, 1, 1), (1, 1, 0), (0, 2, 2), (1, 3, 0), (1, 4, 2), (4, 2, 1), (0, all, 2)]
    {
        rig.must_have(index, count, state)?;
    }
    Ok("PLUGGED, UNPLUGGED and MIXED as the blocks are".into())
}
