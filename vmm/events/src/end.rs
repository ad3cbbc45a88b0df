//! `end`: how a session ended, and the vCPUs of a guest that did not answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The session is over. A machine that was not started has zeros.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// The exit status of tidevm.
    pub status: u8,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, if it did not end well; null if all steps were run.
    pub reason: Option<String>,
    /// The number of the signal that ended it.
    pub signal: Option<i32>,
    /// From the start of the session to its end, without powering off.
    pub seconds: f64,
    /// From the start of the VM to the guest's first report.
    pub boot_seconds: Option<f64>,
    /// Steps that were run.
    pub steps: u64,
    /// Steps that failed.
    pub failed: u64,
    /// Of the resizes that reached their targets; null if nothing was plugged.
    pub plug_seconds_per_gib: Option<f64>,
    /// Of the resizes that reached their targets; null if nothing was unplugged.
    pub unplug_seconds_per_gib: Option<f64>,
    /// Exits of all vCPUs.
    pub exits: Exits,
    /// How often the guest was reset.
    pub resets: u64,
    /// Accesses of the guest to addresses without a device or memory.
    pub stray_accesses: u64,
    /// Messages of the guest that were invalid or answered no call.
    pub bad_records: u64,
    /// The folder of the snapshot, if the machine was saved in place of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
    /// Every vCPU, if the guest did not answer before the first step, or when it was to power off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vcpus: Vec<Vcpu>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every step did what its text says.
    #[default]
    Done,
    /// A step failed, or the guest did not power off.
    Failed,
    /// A line of a script that came while it ran is wrong.
    Script,
    /// The guest died, or the host refused what it needed to go on.
    Died,
    /// The time for all of it was over.
    TimedOut,
    /// A signal ended it.
    Signal,
    /// The machine was not started: wrong usage, a wrong script, or a host that cannot run it.
    NotStarted,
}

impl Outcome {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Script => "script",
            Self::Died => "died",
            Self::TimedOut => "timed_out",
            Self::Signal => "signal",
            Self::NotStarted => "not_started",
        }
    }
}

/// Exits of vCPUs by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// Port accesses.
    pub io: u64,
    /// Accesses to registers of devices.
    pub mmio: u64,
    /// Accesses to nothing.
    pub stray: u64,
    /// By a signal of the VMM.
    pub interrupted: u64,
    /// All others.
    pub other: u64,
}

/// A vCPU of a guest that did not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Its number.
    pub vcpu: usize,
    /// What it does.
    pub state: String,
    /// Its registers, if it left the guest.
    #[serde(flatten)]
    pub details: Option<VcpuDetails>,
}

/// What a vCPU does. Registers are hexadecimal text, because they do not fit into the numbers of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuDetails {
    /// The guest's interrupt flag.
    pub interrupts: bool,
    /// The instruction pointer.
    pub rip: String,
    /// The function there, if the kernel's file names it.
    pub symbol: Option<String>,
    /// Vectors that the local APIC has requested.
    pub irr: Vec<u8>,
    /// Vectors in service.
    pub isr: Vec<u8>,
    /// The exception that is being injected.
    pub exception: Option<u8>,
    /// The interrupt that is being injected.
    pub interrupt: Option<u8>,
    /// Whether an NMI is pending.
    pub nmi: bool,
    /// Addresses that it uses whose memory is not plugged, in words.
    pub unplugged: Vec<String>,
    /// The others.
    pub registers: BTreeMap<String, String>,
}
