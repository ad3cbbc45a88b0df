//! Rows on what names a device, on its status and on its reset (virtio 1.3, sections 2.1 to 2.4, 3.1, 4.1, 4.2): T1 to T16.

use alloc::format;

use super::Row;
use crate::judge::answer::{Answer, Came, STATE, Stop, fail};
use crate::judge::line::wait;
use crate::judge::registers::{
    ACKNOWLEDGE, CONFIGURATION, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, INACCESSIBLE, Registers, USED_BUFFER,
    VERSION_1,
};
use crate::judge::rig::{PATIENCE, Rig, SILENCE, request};

pub const ROWS: &[Row] = &[
    Row { id: "T1", sent: "a read of the magic value, or of PCI's vendor", run: magic },
    Row { id: "T2", sent: "a read of the version, or of PCI's revision", run: version },
    Row { id: "T3", sent: "a read of the device type, or of PCI's device", run: device_type },
    Row { id: "T4", sent: "a read of the features", run: version_1 },
    Row { id: "T5", sent: "the configuration in 8, 16 and 32 bits", run: widths },
    Row { id: "T6", sent: "0 into the status", run: reset_status },
    Row { id: "T7", sent: "ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, one after the other", run: steps },
    Row { id: "T8", sent: "FEATURES_OK with a feature that is not offered", run: unknown_feature },
    Row { id: "T9", sent: "FEATURES_OK without VIRTIO_F_VERSION_1", run: without_version_1 },
    Row { id: "T10", sent: "a request with a status of DRIVER_OK without FEATURES_OK", run: no_features },
    Row { id: "T11", sent: "a request and a notification before DRIVER_OK", run: early_request },
    Row { id: "T12", sent: "a target before DRIVER_OK, then DRIVER_OK", run: early_target },
    Row { id: "T13", sent: "FAILED, then a reset", run: failed },
    Row { id: "T14", sent: "a reset, then a target", run: told_after_reset },
    Row { id: "T15", sent: "a request whose interrupt is not acknowledged, then a reset", run: reset_clears },
    Row { id: "T16", sent: "a choice of queue 1", run: one_queue },
];

/// The type of a memory device (5.15.1).
const MEMORY_DEVICE: u32 = 24;
/// PCI devices of virtio 1 have this number plus that of their type (4.1.2).
const PCI_DEVICE: u32 = 0x1040;

fn must_be(found: u32, wanted: u32) -> Came {
    if found == wanted { Ok(format!("{found:#x}")) } else { fail!("{found:#x}, not {wanted:#x}") }
}

fn magic(rig: &mut Rig) -> Came {
    let wanted = match rig.registers {
        Registers::Mmio(_) => 0x7472_6976,
        Registers::Pci(_) => 0x1af4,
    };
    must_be(rig.registers.identity()[0], wanted)
}

fn version(rig: &mut Rig) -> Came {
    match (&rig.registers, rig.registers.identity()) {
        (Registers::Mmio(_), [_, version, _]) => must_be(version, 2),
        (Registers::Pci(_), [.., 0]) => fail!("revision 0"),
        (Registers::Pci(_), [.., revision]) => Ok(format!("revision {revision}")),
    }
}

fn device_type(rig: &mut Rig) -> Came {
    match (&rig.registers, rig.registers.identity()) {
        (Registers::Mmio(_), [.., kind]) => must_be(kind, MEMORY_DEVICE),
        (Registers::Pci(_), [_, device, _]) => must_be(device, PCI_DEVICE + MEMORY_DEVICE),
    }
}

fn version_1(rig: &mut Rig) -> Came {
    match rig.registers.features() & VERSION_1 {
        0 => fail!("VIRTIO_F_VERSION_1 is not offered"),
        _ => Ok("VIRTIO_F_VERSION_1 is offered".into()),
    }
}

fn widths(rig: &mut Rig) -> Came {
    rig.plug(0, 3)?;
    for offset in (0..56).step_by(4) {
        let word = rig.registers.config_32(offset);
        let halves = [0, 2].map(|part| rig.registers.config_16(offset + part));
        let bytes = [0, 1, 2, 3].map(|part| rig.registers.config_8(offset + part));
        let of_halves = u32::from(halves[0]) | u32::from(halves[1]) << 16;
        if of_halves != word || u32::from_le_bytes(bytes) != word {
            return fail!("{word:#x} at {offset}, {of_halves:#x} in halves, {bytes:x?} in bytes");
        }
    }
    Ok("the same in every width".into())
}

fn reset_status(rig: &mut Rig) -> Came {
    rig.reset()?;
    Ok("the status is 0".into())
}

fn steps(rig: &mut Rig) -> Came {
    rig.reset()?;
    let mut status = 0;
    for step in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
        if step == FEATURES_OK {
            rig.registers.accept(rig.registers.features() & (VERSION_1 | INACCESSIBLE));
        }
        if step == DRIVER_OK {
            rig.set_up_queue(rig.queue.entries());
        }
        status |= step;
        rig.registers.set_status(status);
        let found = rig.registers.status();
        if found != status {
            return fail!("{found:#x} after {status:#x} was written");
        }
    }
    rig.expect(STATE, 0, 1, Answer::Ack)?;
    Ok("each step can be read, and the device works".into())
}

/// Whether the device agrees on `features`, which a driver accepts.
fn agrees(rig: &mut Rig, features: u64) -> Result<bool, Stop> {
    rig.reset()?;
    rig.registers.set_status(ACKNOWLEDGE);
    rig.registers.set_status(ACKNOWLEDGE | DRIVER);
    rig.registers.accept(features);
    rig.registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    Ok(rig.registers.status() & FEATURES_OK != 0)
}

fn unknown_feature(rig: &mut Rig) -> Came {
    let offered = rig.registers.features();
    // A feature of the device type that no version of the specification has.
    let unknown = 1_u64 << 20;
    if offered & unknown != 0 {
        return fail!("feature 20 is offered, which is none");
    }
    let agreed = agrees(rig, offered & (VERSION_1 | INACCESSIBLE) | unknown)?;
    rig.must_live()?;
    if agreed { fail!("FEATURES_OK") } else { Ok("FEATURES_OK is refused".into()) }
}

fn without_version_1(rig: &mut Rig) -> Came {
    let offered = rig.registers.features();
    let agreed = agrees(rig, offered & INACCESSIBLE)?;
    rig.must_live()?;
    Ok(if agreed { "FEATURES_OK" } else { "FEATURES_OK is refused" }.into())
}

fn no_features(rig: &mut Rig) -> Came {
    rig.reset()?;
    rig.registers.set_status(ACKNOWLEDGE);
    rig.registers.set_status(ACKNOWLEDGE | DRIVER);
    rig.set_up_queue(rig.queue.entries());
    rig.registers.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    let bytes = request(STATE, rig.address(0), 1);
    rig.offer(0, &bytes, 10);
    rig.notify();
    rig.interrupted(USED_BUFFER, SILENCE);
    let served = rig.queue.used() != 0;
    rig.must_live()?;
    Ok(if served { "it is served" } else { "it is not served" }.into())
}

fn early_request(rig: &mut Rig) -> Came {
    rig.negotiate(VERSION_1 | INACCESSIBLE)?;
    rig.set_up_queue(rig.queue.entries());
    let bytes = request(STATE, rig.address(0), 1);
    rig.offer(0, &bytes, 10);
    rig.notify();
    if rig.interrupted(USED_BUFFER, SILENCE) || rig.queue.used() != 0 {
        return fail!("it is served");
    }
    rig.go();
    rig.notify();
    let (answer, _) = rig.take(0);
    rig.must_be(answer, Answer::Ack, || "after DRIVER_OK, STATE".into())?;
    Ok("it is served after DRIVER_OK".into())
}

fn early_target(rig: &mut Rig) -> Came {
    rig.negotiate(VERSION_1 | INACCESSIBLE)?;
    rig.set_up_queue(rig.queue.entries());
    rig.interrupts();
    rig.resize(64)?;
    let early = rig.interrupted(CONFIGURATION | USED_BUFFER, SILENCE);
    rig.go();
    let requested = rig.resize_and_see(64)?.requested_size;
    rig.interrupted(CONFIGURATION, SILENCE);
    if requested != 64 * rig.block() {
        return fail!("requested_size is {requested:#x}");
    }
    let when = if early { "is told before DRIVER_OK" } else { "is not told before DRIVER_OK" };
    Ok(format!("the target {when}, and is there after it"))
}

fn failed(rig: &mut Rig) -> Came {
    rig.registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
    rig.must_live()?;
    Ok("the device works after the reset".into())
}

fn told_after_reset(rig: &mut Rig) -> Came {
    rig.must_hear()?;
    rig.reset()?;
    rig.interrupted(CONFIGURATION | USED_BUFFER, SILENCE);
    rig.resize(64)?;
    if rig.interrupted(CONFIGURATION | USED_BUFFER, SILENCE) {
        return fail!("a notification");
    }
    let status = rig.registers.interrupt_status();
    if status != 0 {
        return fail!("an interrupt status of {status:#x}");
    }
    rig.must_live()?;
    Ok("no notification".into())
}

fn reset_clears(rig: &mut Rig) -> Came {
    let bytes = request(STATE, rig.address(0), 1);
    rig.offer(0, &bytes, 10);
    rig.notify();
    if !rig.all_back() {
        return fail!("STATE does not come back within {PATIENCE} ms");
    }
    rig.registers.set_status(0);
    let registers = &rig.registers;
    if !wait(PATIENCE, || registers.status() == 0) {
        return fail!("the status stays {:#x}", registers.status());
    }
    let interrupts = registers.interrupt_status();
    registers.select(0);
    let ready = registers.is_ready();
    rig.interrupts();
    if interrupts != 0 || ready {
        return fail!("interrupt status {interrupts:#x}, queue ready {ready}");
    }
    rig.must_live()?;
    Ok("no interrupt status, and no queue is ready".into())
}

fn one_queue(rig: &mut Rig) -> Came {
    rig.registers.select(1);
    let most = rig.registers.most_entries();
    rig.registers.select(0);
    if most == 0 { Ok("it has 0 entries".into()) } else { fail!("it has {most} entries") }
}
