//! [`Observer`] and the values that a session tells it: the boot, each step that was run, and a summary.
//!
//! The table for people (`table`), the JSON lines (`json`) and the record for judges ([`Record`](super::Record))
//! are observers. They get values and never see the VM, so a text cannot differ from the facts behind it.
//!
//! Invariants: the boot comes first, and at most once; the steps come in the order in which they were run; the
//! summary comes last, and once. An observer that cannot write ends the session and is told nothing more.

use std::io;
use std::time::Duration;

use tidevm_abi::{Answer, BlockRun, Command, Size, Stats, ZoneName};
use tidevm_machine::{Death, ExitCounts, Ready, RequestCounts, Saved, VcpuReport};

use super::failure::StepFailure;
use crate::script::ScriptErrors;

/// Is told of a session while it runs.
pub trait Observer {
    /// Whether it follows the VM closely: it is told what changes within steps, and of the guest's memory blocks after
    /// each step. That costs calls of the guest and of the host.
    fn follows(&self) -> bool {
        false
    }

    /// Something changed within a step, or since the boot in a session without steps.
    ///
    /// # Errors
    /// The observer cannot write. The session finds out when it tells the next step, or its end.
    fn sample(&mut self, at: Duration, sample: &Sample) -> io::Result<()> {
        let _ = (at, sample);
        Ok(())
    }

    /// The guest is up.
    ///
    /// # Errors
    /// The observer cannot write; the session ends.
    fn boot(&mut self, booted: &Booted) -> io::Result<()>;

    /// A step was run.
    ///
    /// # Errors
    /// The observer cannot write; the session ends.
    fn step(&mut self, run: &StepRun) -> io::Result<()>;

    /// The session is over.
    ///
    /// # Errors
    /// The observer cannot write.
    fn end(&mut self, summary: &Summary) -> io::Result<()>;
}

/// Two observers of one session.
#[derive(Clone, Debug)]
pub struct Both<A, B>(pub A, pub B);

impl<A: Observer, B: Observer> Observer for Both<A, B> {
    fn follows(&self) -> bool {
        self.0.follows() || self.1.follows()
    }

    fn sample(&mut self, at: Duration, sample: &Sample) -> io::Result<()> {
        self.0.sample(at, sample)?;
        self.1.sample(at, sample)
    }

    fn boot(&mut self, booted: &Booted) -> io::Result<()> {
        self.0.boot(booted)?;
        self.1.boot(booted)
    }

    fn step(&mut self, run: &StepRun) -> io::Result<()> {
        self.0.step(run)?;
        self.1.step(run)
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        let first = self.0.end(summary);
        self.1.end(summary).and(first)
    }
}

/// The guest is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booted {
    /// When, since the start of the session.
    pub at: Duration,
    /// The guest's first report and its time; `None` for a kernel without an agent, which sends none.
    pub ready: Option<Ready>,
    /// The VM at that moment.
    pub sample: Sample,
}

/// A step that was run, and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRun {
    /// Line of the script, from 1; 0 for a step that the session adds at its end.
    pub line: usize,
    /// Column, in characters from 1; 0 with line 0.
    pub column: usize,
    /// The last `step "NAME"` before it, or itself.
    pub name: Option<String>,
    /// The command.
    pub command: Command,
    /// When it began, since the start of the session.
    pub start: Duration,
    /// How long it took, without the sample afterwards.
    pub took: Duration,
    /// A note for people if the step is done, or the reason why it failed.
    pub result: Result<Option<String>, StepFailure>,
    /// The guest's last answer, if the step asked it for anything but counters.
    pub answer: Option<Answer>,
    /// All memory blocks of the guest, if the step listed them.
    pub listed: Option<Vec<BlockRun>>,
    /// The VM afterwards.
    pub sample: Sample,
    /// Every vCPU, if the step failed because the guest did not answer.
    pub vcpus: Vec<VcpuReport>,
}

impl StepRun {
    /// Whether the step did what its text says.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.result.is_ok()
    }
}

/// The VM at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// One entry per hotplug device.
    pub devices: Vec<DeviceSample>,
    /// How often the guest was reset.
    pub resets: u64,
    /// The guest's counters, if the guest has an agent and lives.
    pub guest: Option<Stats>,
    /// The guest's memory blocks after a step, for an observer that follows the VM.
    pub blocks: Option<Blocks>,
}

/// The first memory blocks of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// Neighbours that are alike share an entry. Ascending by address.
    pub runs: Vec<BlockRun>,
    /// Whether these are all.
    pub complete: bool,
}

impl Sample {
    /// The counters of one zone.
    #[must_use]
    pub fn zone(&self, name: ZoneName) -> Option<tidevm_abi::ZoneStats> {
        self.guest.and_then(|stats| stats.zones.into_iter().find(|zone| zone.name == name))
    }
}

/// A hotplug device at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceSample {
    /// Guest-physical address of the region.
    pub region: u64,
    /// Size of the region.
    pub region_size: Size,
    /// Requested by the device.
    pub requested: Size,
    /// Plugged.
    pub plugged: Size,
    /// What the guest's driver had in use at its last report.
    pub guest_usable: Option<Size>,
    /// Host memory that the region really holds, if the host reports it.
    pub held: Option<Size>,
    /// What the device has counted since the start.
    pub requests: RequestCounts,
}

/// A session in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How it ended.
    pub ended: Ended,
    /// Time from the start of the VM to the guest's first report, if there was one.
    pub boot: Option<Duration>,
    /// Time from the start of the VM to the end of the session: its boot is in it, and powering off is not.
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
    /// How often the guest reset the VM.
    pub resets: u64,
    /// Accesses of the guest to addresses without a device or memory.
    pub stray_accesses: u64,
    /// Messages of the guest that were invalid or answered no call.
    pub bad_records: u64,
    /// Every vCPU, if the guest did not answer before the first step, or when it was to power off.
    pub vcpus: Vec<VcpuReport>,
    /// The snapshot, if the machine was saved in place of its end.
    pub saved: Option<Saved>,
}

/// How a session ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// Every step did what its text says.
    #[default]
    Done,
    /// A step failed, or the guest did not power off.
    Failed {
        /// The failure that ended the session early; `None` if all steps were run.
        reason: Option<String>,
    },
    /// A line of a script that came line by line is wrong.
    Misread(ScriptErrors),
    /// The guest died.
    Died(Death),
    /// The time for all of it was over.
    TimedOut {
        /// The time, and what was waited for.
        reason: String,
    },
    /// A signal ended it.
    Signal {
        /// Its number.
        signal: i32,
    },
}

impl Ended {
    /// The exit status of `tidevm`, which is also in the JSON line `end`. `docs/scripts.md` lists them all.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Ended::Done => 0,
            Ended::Failed { .. } => 1,
            Ended::Misread(_) => 2,
            Ended::Died(death) if death.kind.is_refusal() => 3,
            Ended::Died(_) => 4,
            // As of `timeout`.
            Ended::TimedOut { .. } => 124,
            Ended::Signal { signal } => {
                u8::try_from(*signal).map_or(u8::MAX, |signal| signal.saturating_add(128))
            }
        }
    }
}

/// Bytes moved in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// The bytes.
    pub bytes: u64,
    /// The time.
    pub time: Duration,
}

impl Rate {
    /// Adds a move, unless it moved nothing.
    pub(super) fn add_move(&mut self, moved: Size, time: Duration) {
        if moved == Size(0) {
            return;
        }
        self.bytes = self.bytes.saturating_add(moved.0);
        self.time += time;
    }

    /// Seconds per GiB; `None` if nothing was moved.
    #[must_use]
    pub fn seconds_per_gib(self) -> Option<f64> {
        (self.bytes > 0).then(|| self.time.as_secs_f64() * (1 << 30) as f64 / self.bytes as f64)
    }
}
