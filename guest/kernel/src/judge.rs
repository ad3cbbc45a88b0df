//! The judge: a guest that drives a virtio-mem device raw and says whether it keeps to its rules.
//!
//! Takes the place of the virtio-mem driver, the shell and the job loop when the command line says so
//! (`tidevm_abi::cmdline::JUDGE`). Mirrors KVM-Unit-Tests: a kernel whose only purpose is to try a machine. The host names
//! the rows and sets targets (`tidevm_abi::judge`); `docs/conformance.md` lists the rows.
//!
//! | file | has |
//! | --- | --- |
//! | `registers`, `pci` | the device, one access at a time |
//! | `queue`, `memory` | rings, buffers and plugged memory, as the row wants them |
//! | `line` | the serial line, and waits |
//! | `rig`, `answer` | how a device is started and asked, and what it answers |
//! | `rows` | the rows |

mod answer;
mod line;
mod memory;
mod pci;
mod queue;
mod registers;
mod rig;
mod rows;

use tidevm_abi::judge::{FromGuest, ToGuest, Verdict};

use self::answer::Stop;
use self::line::Talk;
use self::registers::Registers;
use self::rig::Rig;
use crate::boot::cmdline::CommandLine;
use crate::cpu;
use crate::cpu::ioapic::{Line, Trigger};
use crate::mem::span::Span;
use crate::virtio::source::Source;

/// Judges the first virtio-mem device, a row at a time, as long as the host asks. Does not return.
pub fn run(command_line: &CommandLine) -> ! {
    let Some(talk) = Talk::new() else { cpu::halt() };
    let Some((registers, source)) = find(command_line) else {
        talk.say(FromGuest::Unable("there is no virtio-mem device, on virtio-mmio or on PCI"));
        cpu::halt();
    };
    let transport = registers.transport();
    let mut rig = Rig::new(registers, source, talk);
    rig.talk.say(FromGuest::Ready(transport));
    loop {
        let asked = rig.talk.next();
        if let Some(ToGuest::Row { id, again }) = ToGuest::parse(&asked) {
            rig.again = again;
            judge(&mut rig, id);
        }
    }
}

/// The device to judge: the first one on virtio-mmio, or else on PCI.
fn find(command_line: &CommandLine) -> Option<(Registers, Option<Source>)> {
    for place in command_line.devices.iter().flatten() {
        let span = Span::registers(place.address, place.size).ok()?;
        let registers = Registers::Mmio(span);
        if registers.is_mem() {
            return Some((registers, Line::route(place.irq, Trigger::Edge).map(Source::Line)));
        }
    }
    command_line.pci.then(pci::find).flatten()
}

/// Judges row `id`, and says what came of it.
fn judge(rig: &mut Rig, id: &str) {
    let Some(row) = rows::find(id) else {
        let came = "the guest does not know this row";
        rig.talk.say(FromGuest::Result { id, sent: "", came, verdict: Verdict::Skip });
        return;
    };
    let came = rig.prepare().and_then(|()| (row.run)(rig));
    let (verdict, came) = match came {
        Ok(came) => (Verdict::Pass, came),
        Err(Stop::Fail(came)) => (Verdict::Fail, came),
        Err(Stop::Reject(came)) => (Verdict::Reject, came),
        Err(Stop::Skip(came)) => (Verdict::Skip, came),
    };
    rig.talk.say(FromGuest::Result { id, sent: row.sent, came: &came, verdict });
}
