//! What a session tells: one report a step and a summary at its end.

use std::io;
use std::time::Duration;

use tidevm_abi::{Answer, Command, Stats, ZoneName};
use tidevm_machine::{Death, ExitCounts, Ready};

use super::failure::StepFailure;

/// Takes in the reports of a session as they come.
pub trait Observer {
    /// The guest is up.
    ///
    /// # Errors
    /// It cannot be shown; the session ends.
    fn boot(&mut self, report: &BootReport) -> io::Result<()>;

    /// A step is over.
    ///
    /// # Errors
    /// It cannot be shown; the session ends.
    fn step(&mut self, report: &StepReport) -> io::Result<()>;

    /// The session is over.
    ///
    /// # Errors
    /// It cannot be shown.
    fn end(&mut self, summary: &Summary) -> io::Result<()>;
}

/// The guest is up, as far as can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootReport {
    /// The guest's first report and when it came; `None` of a kernel that makes none.
    pub ready: Option<Ready>,
    /// The machine then.
    pub sample: Sample,
}

/// A step is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// Line of the script, from 1; 0 for what the session does by itself at its end.
    pub line: usize,
    /// Column, in characters from 1; 0 with line 0.
    pub column: usize,
    /// What was done.
    pub command: Command,
    /// How long it took, without the look at the machine afterwards.
    pub took: Duration,
    /// A note for people if the step is done, or the reason why it failed.
    pub result: Result<Option<String>, StepFailure>,
    /// The guest's last answer to it, if it was asked anything but its counters.
    pub answer: Option<Answer>,
    /// The machine afterwards.
    pub sample: Sample,
}

impl StepReport {
    /// Whether the step did what its text says.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.result.is_ok()
    }
}

/// The machine at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// One entry a hotplug device.
    pub devices: Vec<DeviceSample>,
    /// The guest's counters, if there is a guest to ask.
    pub guest: Option<Stats>,
}

impl Sample {
    /// The counters of one zone.
    #[must_use]
    pub fn zone(&self, name: ZoneName) -> Option<tidevm_abi::ZoneStats> {
        self.guest.and_then(|stats| stats.zones.into_iter().find(|zone| zone.name == name))
    }
}

/// A hotplug device at one moment; all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSample {
    /// Size of the region.
    pub region_size: u64,
    /// What the device asks for.
    pub requested: u64,
    /// What is plugged.
    pub plugged: u64,
    /// Host memory that the region really holds, if the host tells.
    pub held: Option<u64>,
}

/// A session in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How it ended.
    pub ended: Ended,
    /// Time from the start of the machine to the guest's first report, if there was one.
    pub boot: Option<Duration>,
    /// Time from the start of the session to its end, without powering off.
    pub total: Duration,
    /// Steps that were run.
    pub steps: u64,
    /// Steps that failed.
    pub failed: u64,
    /// Memory plugged by the resizes that reached their targets.
    pub plug: Rate,
    /// Memory unplugged by the resizes that reached their targets.
    pub unplug: Rate,
    /// Exits of all vCPUs.
    pub exits: ExitCounts,
    /// How often the guest reset its machine.
    pub resets: u64,
    /// Accesses of the guest to addresses at which there is nothing.
    pub stray_accesses: u64,
    /// Messages of the guest that made no sense.
    pub bad_records: u64,
}

/// How a session ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// Every step did what it says.
    #[default]
    Done,
    /// A step failed, or the guest did not power off.
    Failed {
        /// What ended the session early, if it did not run to its end.
        reason: Option<String>,
    },
    /// The guest died.
    Died(Death),
    /// A signal ended it.
    Signal {
        /// Its number.
        signal: i32,
    },
}

impl Ended {
    /// The process's exit status.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Ended::Done => 0,
            Ended::Failed { .. } => 1,
            Ended::Died(_) => 4,
            Ended::Signal { signal } => {
                u8::try_from(*signal).map_or(u8::MAX, |signal| signal.saturating_add(128))
            }
        }
    }
}

/// Bytes moved in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// How much.
    pub bytes: u64,
    /// In what time.
    pub time: Duration,
}

impl Rate {
    /// Counts a move, unless it moved nothing.
    pub(super) fn add_move(&mut self, bytes: u64, time: Duration) {
        if bytes == 0 {
            return;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.time += time;
    }

    /// Seconds for a GiB; `None` if nothing was moved.
    #[must_use]
    pub fn seconds_per_gib(self) -> Option<f64> {
        (self.bytes > 0).then(|| self.time.as_secs_f64() * (1 << 30) as f64 / self.bytes as f64)
    }
}
