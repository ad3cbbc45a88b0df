//! One session on two guests, Linux and tidevm's own, on the same VMs: the cost of plugging and unplugging,
//! and whether both count their memory alike.
//!
//! | module | what it is | what it does not know |
//! | --- | --- | --- |
//! | [`measured_vm`] | one interface to all VMs | what is measured |
//! | [`measure`] | the session on one VM: costs and counters | the other VMs |
//! | [`judge`] | the differences between the counters of two guests | how they are shown |
//! | [`table`] | measurements and differences, for people | VMs |

pub mod judge;
pub mod measure;
pub mod measured_vm;
pub mod table;

use serde::{Deserialize, Serialize};
use tidevm_abi::{MEMORY_BLOCK_SIZE, PAGE_SIZE, Size};

use crate::zoneinfo::Zone;

/// Sizes, in GiB, at which the guests are compared.
const SIZES: [u64; 2] = [1, 4];

/// Pages of memmap per memory block: 64 bytes for each of its pages.
const MEMMAP_PAGES: u64 = MEMORY_BLOCK_SIZE / PAGE_SIZE * 64 / PAGE_SIZE;

/// The host of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Host {
    /// QEMU's emulator with its virtio-mem-pci.
    Qemu,
    /// The same, counting instructions. Its times mean nothing.
    QemuCounting,
    /// tidevm with its virtio-mem on this host's KVM.
    Tidevm,
}

/// The guest of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guest {
    /// A stock Linux.
    Linux,
    /// tidevm's own.
    Tidevm,
}

/// The measurement of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// Its host.
    pub host: Host,
    /// Its guest.
    pub guest: Guest,
    /// The boot, and then each phase that was run.
    pub phases: Vec<Phase>,
    /// Why the session ended before the last of [`phases`], if it did.
    pub error: Option<String>,
}

/// A phase of a session, and the guest after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Phase {
    /// [`PlannedPhase::name`], or [`BOOT`].
    pub name: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Instructions that the guest executed, where they are counted.
    pub instructions: Option<u64>,
    /// The guest's counters afterwards.
    pub zones: Vec<Zone>,
}

/// What a phase does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseKind {
    /// The host plugs memory.
    Plug,
    /// The host unplugs memory.
    Unplug,
    /// The guest carries out a command.
    Guest,
}

/// A phase as it is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPhase {
    /// For people. Unique.
    pub name: String,
    /// What it does.
    pub kind: PhaseKind,
    /// A command of tidevm's scripts.
    pub command: String,
    /// How much is plugged afterwards.
    pub plugged: Size,
    /// How much holds data afterwards.
    pub data: Size,
    /// GiB that it plugs or unplugs, if its cost is of interest.
    pub costs: Option<u64>,
}

impl PlannedPhase {
    /// Whether the host carries it out, not the guest.
    fn is_resize(&self) -> bool {
        matches!(self.kind, PhaseKind::Plug | PhaseKind::Unplug)
    }
}

/// Name of the first entry of [`Measurement::phases`].
pub const BOOT: &str = "boot";

/// The session.
#[must_use]
pub fn phases() -> Vec<PlannedPhase> {
    let mut phases = Vec::new();
    for gib in SIZES {
        let (size, half, none) = (Size::gib(gib), Size::mib(gib * 512), Size(0));
        let mut add = |name: &str, kind, command: String, plugged, data, costs: bool| {
            let costs = costs.then_some(gib);
            phases.push(PlannedPhase {
                name: name.replace('N', &gib.to_string()),
                kind,
                command,
                plugged,
                data,
                costs,
            });
        };
        let resize = |gib| format!("resize {gib}G");
        add("plug N GiB", PhaseKind::Plug, resize(gib), size, none, true);
        add("unplug N GiB, empty", PhaseKind::Unplug, resize(0), none, none, true);
        add("plug N GiB again", PhaseKind::Plug, resize(gib), size, none, false);
        add(
            "fill half of N GiB",
            PhaseKind::Guest,
            format!("hog {}M movable full as data", half.0 >> 20),
            size,
            half,
            false,
        );
        add("unplug N GiB, half full", PhaseKind::Unplug, resize(0), none, half, true);
        add("verify what filled N GiB", PhaseKind::Guest, "verify data".to_owned(), none, half, false);
        add("release what filled N GiB", PhaseKind::Guest, "release data".to_owned(), none, none, false);
    }
    phases
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tidevm_abi::Command;
    use tidevm_session::script::Script;

    use super::phases;

    #[test]
    fn the_session_is_a_script() {
        let phases = phases();
        let text: Vec<_> = phases.iter().map(|phase| phase.command.as_str()).collect();
        Script::parse("session", &text.join("\n")).unwrap();
        let names: BTreeSet<_> = phases.iter().map(|phase| &phase.name).collect();
        assert_eq!(names.len(), phases.len());
        for phase in &phases {
            let resizes = matches!(phase.command.parse(), Ok(Command::Resize(_)));
            assert_eq!(phase.is_resize(), resizes, "{}", phase.name);
        }
    }
}
