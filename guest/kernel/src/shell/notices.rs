//! Reports as lines on the console, for a guest on a VMM without a control channel.

use tidevm_abi::{Counted, Named, Report, ResizeState};

use crate::console::{print, println};
use crate::job::{Job, Progress};
use crate::mailbox;
use crate::shell::names;

/// The job that prints reports. It runs on the boot CPU, and only where no control channel takes them.
pub struct Notices;

impl Job for Notices {
    fn step(&mut self) -> Progress {
        print_waiting();
        Progress::Idle(None)
    }
}

/// Prints the reports that wait.
pub fn print_waiting() {
    mailbox::deliver_reports(|report| {
        show(report);
        true
    });
}

fn show(report: Report) {
    match report {
        Report::Ready { cpus, mem_devices } => {
            let devices = Counted(mem_devices.into(), "virtio-mem device");
            println!("tidevm guest: {}, {devices}", Counted(cpus.into(), "CPU"));
        }
        Report::Resize(resize) => {
            let (plugged, requested) = (resize.plugged.0 >> 20, resize.requested.0 >> 20);
            print!("virtio-mem at {:#x}: {plugged} of {requested} MiB plugged", resize.region);
            match resize.state {
                ResizeState::Reached => println!(""),
                reason => println!(", stopped: {}", Named::new(&reason, &names::name_of)),
            }
        }
        Report::Done { .. } | Report::Pressure(_) | Report::Speaks { .. } => {
            unreachable!(
                "only a VMM on the control channel makes such calls, and only an agent in Linux says its version"
            )
        }
    }
}
