//! Rows on the configuration and its notifications (virtio 1.3, sections 5.15.4 to 5.15.6.2): D1 to D12.

use alloc::format;

use virtio_mem::wire::Config;

use super::Row;
use crate::judge::answer::{Answer, Came, Stop, UNPLUG_ALL, fail, skip};
use crate::judge::registers::{
    ACKNOWLEDGE, CONFIGURATION, DRIVER, FEATURES_OK, INACCESSIBLE, USED_BUFFER, VERSION_1,
};
use crate::judge::rig::{BASE_BLOCKS, PATIENCE, Rig, SILENCE};

pub const ROWS: &[Row] = &[
    Row { id: "D1", sent: "targets of 64 and 16 blocks", run: targets_change },
    Row { id: "D2", sent: "targets, PLUG, UNPLUG, UNPLUG_ALL, a device reset", run: fixed_fields },
    Row { id: "D3", sent: "PLUG of 3 and 2 blocks, UNPLUG of 1 and of 2, UNPLUG_ALL", run: plugged_size },
    Row { id: "D4", sent: "targets, PLUG, UNPLUG_ALL with a target", run: usable_holds_requested },
    Row { id: "D5", sent: "a read of block_size", run: block_size },
    Row { id: "D6", sent: "targets, PLUG, UNPLUG, UNPLUG_ALL", run: multiples },
    Row { id: "D8", sent: "targets of 256 and 16 blocks, PLUG and UNPLUG of 16", run: usable_grows },
    Row { id: "D9", sent: "targets of 64 and 16 blocks", run: notification },
    Row { id: "D10", sent: "PLUG, UNPLUG, UNPLUG_ALL", run: no_notification },
    Row { id: "D11", sent: "the target that there is", run: same_target },
    Row {
        id: "D12",
        sent: "features without VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE",
        run: without_inaccessible,
    },
];

/// Looks at the configuration after each step of a life of the device.
fn life(rig: &mut Rig, mut look: impl FnMut(&Config) -> Result<(), Stop>) -> Result<(), Stop> {
    look(&rig.config()?)?;
    for blocks in [64, 16, 300] {
        look(&rig.resize_and_see(blocks)?)?;
        rig.plug(0, 8)?;
        look(&rig.config()?)?;
        rig.unplug(2, 3)?;
        look(&rig.config()?)?;
        rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
        look(&rig.config()?)?;
    }
    rig.plug(4, 4)?;
    rig.start()?;
    look(&rig.config()?)
}

fn targets_change(rig: &mut Rig) -> Came {
    rig.resize_and_see(64)?;
    rig.resize_and_see(16)?;
    Ok("requested_size follows".into())
}

fn fixed_fields(rig: &mut Rig) -> Came {
    let fields = |config: &Config| (config.block_size, config.node_id, config.addr, config.region_size);
    let first = fields(&rig.config()?);
    life(rig, |config| {
        let now = fields(config);
        if now == first { Ok(()) } else { fail!("{first:x?} became {now:x?}") }
    })?;
    Ok("the four fields stay".into())
}

fn plugged_size(rig: &mut Rig) -> Came {
    rig.must_have_plugged(0)?;
    rig.plug(0, 3)?;
    rig.must_have_plugged(3)?;
    rig.plug(5, 2)?;
    rig.must_have_plugged(5)?;
    rig.unplug(1, 1)?;
    rig.must_have_plugged(4)?;
    rig.unplug(5, 2)?;
    rig.must_have_plugged(2)?;
    for (block, state) in [(0, 0), (1, 1), (2, 0), (3, 1), (5, 1), (6, 1)] {
        rig.must_have(block, 1, state)?;
    }
    rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
    rig.must_have_plugged(0)?;
    Ok("plugged_size is that of the blocks whose STATE is PLUGGED".into())
}

fn usable_holds_requested(rig: &mut Rig) -> Came {
    life(rig, |config| {
        let (usable, requested) = (config.usable_region_size, config.requested_size);
        if usable >= requested {
            Ok(())
        } else {
            fail!("usable_region_size {usable:#x} with requested_size {requested:#x}")
        }
    })?;
    Ok("usable_region_size is never less".into())
}

fn block_size(rig: &mut Rig) -> Came {
    let size = rig.config()?.block_size;
    if size.is_power_of_two() { Ok(format!("{size:#x}")) } else { fail!("{size:#x}") }
}

fn multiples(rig: &mut Rig) -> Came {
    life(rig, |config| {
        let sizes = [
            config.addr,
            config.region_size,
            config.usable_region_size,
            config.plugged_size,
            config.requested_size,
        ];
        match sizes.into_iter().find(|size| size % config.block_size != 0) {
            Some(size) => fail!("{size:#x} is no multiple of {:#x}", config.block_size),
            None => Ok(()),
        }
    })?;
    Ok("all are multiples".into())
}

fn usable_grows(rig: &mut Rig) -> Came {
    let most = rig.resize_and_see(256)?.usable_region_size;
    let fewer = rig.resize_and_see(16)?.usable_region_size;
    rig.plug(0, 16)?;
    rig.unplug(0, 16)?;
    let after = rig.config()?.usable_region_size;
    if fewer == most && after == most {
        return Ok("usable_region_size stays when the target shrinks and when blocks are unplugged".into());
    }
    fail!("usable_region_size {most:#x}, {fewer:#x} with the smaller target, {after:#x} after UNPLUG")
}

fn notification(rig: &mut Rig) -> Came {
    rig.must_hear()?;
    for blocks in [64, 16] {
        rig.interrupts();
        rig.resize(blocks)?;
        if !rig.interrupted(CONFIGURATION, PATIENCE) {
            return fail!("no notification for a target of {blocks} blocks");
        }
    }
    Ok("a configuration notification each".into())
}

fn no_notification(rig: &mut Rig) -> Came {
    rig.must_hear()?;
    rig.interrupted(CONFIGURATION, SILENCE);
    rig.plug(0, 4)?;
    rig.unplug(0, 2)?;
    rig.expect(UNPLUG_ALL, 0, 0, Answer::Ack)?;
    // The used buffers may have had their notifications already: all that matters is the other reason.
    let reasons = rig.interrupts();
    if reasons & CONFIGURATION != 0 || rig.interrupted(CONFIGURATION, SILENCE) {
        return fail!("a configuration notification");
    }
    let heard = if reasons & USED_BUFFER != 0 { "notifications of used buffers only" } else { "none" };
    Ok(heard.into())
}

fn same_target(rig: &mut Rig) -> Came {
    rig.must_hear()?;
    rig.interrupts();
    let bytes = BASE_BLOCKS * rig.block();
    if let Err(reason) = rig.talk.resize(bytes) {
        return Ok(format!("the VMM refuses it: {reason}"));
    }
    let told = rig.interrupted(CONFIGURATION, 10 * SILENCE);
    Ok(if told { "a notification" } else { "no notification" }.into())
}

fn without_inaccessible(rig: &mut Rig) -> Came {
    if rig.registers.features() & INACCESSIBLE == 0 {
        return skip!("the device does not offer the feature");
    }
    rig.reset()?;
    rig.registers.set_status(ACKNOWLEDGE);
    rig.registers.set_status(ACKNOWLEDGE | DRIVER);
    rig.registers.accept(VERSION_1);
    rig.registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    let agreed = rig.registers.status() & FEATURES_OK != 0;
    rig.must_live()?;
    Ok(if agreed { "FEATURES_OK" } else { "FEATURES_OK is refused" }.into())
}
