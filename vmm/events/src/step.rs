//! `ready` and `step`: the guest is up, and what a step of the script did.

use serde::{Deserialize, Serialize};

use crate::{Block, Sampled, Vcpu};

/// The guest is up. The first three are null for a kernel that does not report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// From the start of the VM to the guest's first report.
    pub seconds: Option<f64>,
    /// CPUs that run.
    pub cpus: Option<u32>,
    /// virtio-mem devices that the guest found.
    pub mem_devices: Option<u32>,
    /// The VM at that moment.
    #[serde(flatten)]
    pub sampled: Sampled,
}

/// A step was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Line of the script, from 1; 0 for a step that the session adds at its end.
    pub line: usize,
    /// Column, in characters from 1; 0 with line 0.
    pub column: usize,
    /// The last `step "NAME"` before it, or itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The command.
    pub command: String,
    /// When it began, in seconds since the session began.
    pub start_seconds: f64,
    /// How long it took, without the sample afterwards.
    pub seconds: f64,
    /// Whether it did what its text says.
    pub ok: bool,
    /// A note for people.
    pub note: Option<String>,
    /// Why it failed.
    pub reason: Option<String>,
    /// What the guest answered; null if it was asked for nothing.
    pub result: Option<StepResult>,
    /// The VM afterwards.
    #[serde(flatten)]
    pub sampled: Sampled,
    /// Every vCPU, if the step failed because the guest did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vcpus: Vec<Vcpu>,
}

/// What the guest answered to a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StepResult {
    /// To `blocks`: all memory blocks, neighbours that are alike together.
    Blocks {
        /// Ascending by address.
        blocks: Vec<Block>,
    },
    /// To `check`.
    Checked {
        /// Pages whose struct pages were checked.
        pages: u64,
        /// Pages of deferred memory.
        deferred: u64,
    },
    /// To `hog` and `pmem hold`.
    Hogged {
        /// Pages held.
        pages: u64,
    },
    /// To `verify`.
    Verified {
        /// Pages whose content was checked.
        pages: u64,
        /// Pages whose content was wrong.
        corrupt: u64,
    },
    /// To `release`.
    Released {
        /// Pages given back.
        pages: u64,
    },
    /// To `meminfo`, in bytes.
    Meminfo {
        /// Memory that the allocator manages.
        total: u64,
        /// Memory that is free.
        free: u64,
        /// Memory that a new workload can have.
        available: u64,
    },
    /// To `race`.
    Raced {
        /// Cycles that were run.
        cycles: u32,
        /// Cycles in which the pageblock could not be taken.
        failures: u32,
        /// Pages that were found on per-CPU lists although they were isolated.
        stranded: u64,
    },
    /// To `pmem map`.
    PmemMapped {
        /// Pages that can be used, of all ranges together.
        pages: u64,
        /// Struct pages that were written with the memory hotplug lock held.
        locked_pages: u64,
        /// How long that lock was held.
        locked_seconds: f64,
        /// From the call until all pages could be used.
        total_seconds: f64,
        /// CPUs that initialised struct pages.
        cpus: u32,
    },
    /// To `pmem unmap`.
    PmemUnmapped {
        /// Pages that could be used.
        pages: u64,
    },
}
