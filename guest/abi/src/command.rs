//! The one grammar: what a session and the guest's shell can be told to do, as values and as text.
//!
//! [`VERBS`] lists the commands. `resize`, `plug`, `unplug` and `expect` take `device N` (the N-th
//! `--hotplug`) and `within DURATION` at their end, in any order; `reset` takes `within DURATION`. Without `device`,
//! a resize is for device 0, and an expectation looks at the sum over all devices.
//! Sizes are `512M`, `2G`, `2GiB` or plain bytes, durations `200ms`, `5s` or `2m`. METRIC is a
//! [`Metric`](crate::Metric), STEP one of [`FaultStep`]. `#` starts a comment. A script may repeat commands: `repeat N { ... }` ([`Item`]).
//!
//! Invariant: every [`Command`] prints as text that parses to the same command, so that what a table shows
//! can be typed in again.
//!
//! The grammar is that of the VMM's sessions and of the guest's shell. [`Verb::executor`] says which
//! commands the guest can carry out by itself.

mod expect;
mod fails;
mod fault;
mod item;
mod on_kernel;
mod pmem;
mod readd;
mod resize;
mod suffix;
#[cfg(test)]
mod tests;
mod workload;

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use crate::words::{SyntaxError, Word, Words, list};
use crate::{FaultStep, Name, ProbedWait, ShowDuration, Size};

pub use expect::{Comparison, Expect};
pub use fails::Fails;
pub use fault::{Corrupt, Race};
pub use item::{Item, REPETITION};
pub use pmem::{Pmem, PmemHold, PmemMap};
pub use resize::{NoTarget, Resize, Target};
pub use workload::{Churn, Hog};

/// One line of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Give a device a new target and wait until the guest is there.
    Resize(Resize),
    /// Let the guest allocate checksummed pages and hold them.
    Hog(Hog),
    /// Let the guest allocate and free pages in the background.
    Churn(Churn),
    /// Check the content of a hog's pages.
    Verify(Name),
    /// Free a hog's pages; for a churn, wait for its end.
    Release(Name),
    /// Wait for the end of a churn.
    Wait(Name),
    /// Compare a number with what it should be.
    Expect(Expect),
    /// Carry out a command that is expected to fail.
    Fails(Fails),
    /// Print every counter.
    Stats,
    /// Let the guest verify every invariant of its memory management.
    Check,
    /// Let the guest list its memory blocks.
    Blocks,
    /// Let the guest tell how much memory there is.
    Meminfo,
    /// Let the guest take memory blocks offline, remove them at once, and add them back.
    Readd {
        /// All of them.
        size: Size,
        /// Guest-physical address of the first, written like a size.
        addr: u64,
    },
    /// Do something with device memory.
    Pmem(Pmem),
    /// Let the guest take the driver from a device and bind it again, with the memory still plugged.
    Rebind {
        /// The device.
        device: u8,
    },
    /// Reset the machine, as its reset button does, and wait until the guest is up again.
    Reset {
        /// How long it may take.
        within: Option<Duration>,
    },
    /// Let time pass.
    Sleep(Duration),
    /// Let one CPU of the guest take a pageblock of hot-added memory and give it back, again and again,
    /// while the others free pages of it.
    Race(Race),
    /// Change a page of a workload behind its back.
    Corrupt(Corrupt),
    /// Hold a CPU where the guest has to wait for it, and see whether the guest waits.
    Probe(ProbedWait),
    /// Let one attempt of a step of memory hotplug fail, for tests.
    Inject {
        /// The step.
        step: FaultStep,
        /// How many attempts to let pass first.
        after: u32,
    },
}

/// A word that begins a command.
#[derive(Debug)]
pub struct Verb {
    /// The word.
    pub word: &'static str,
    /// How the command is written.
    pub usage: &'static str,
    /// What it does, for people.
    pub about: &'static str,
    /// One such command.
    pub example: &'static str,
    /// The side that can carry it out.
    pub executor: Executor,
    parse: fn(&mut Words<'_>) -> Result<Command, SyntaxError>,
}

/// The side that can carry out a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// The guest, for the VMM or for its own shell.
    Guest,
    /// Only the VMM.
    Vmm,
}

/// Every command, in the order of messages.
pub const VERBS: &[Verb] = &[
    Verb {
        word: "resize",
        usage: "resize SIZE [device N] [within DURATION]",
        about: "set a new target and wait until the guest is there",
        example: "resize 2G within 10s",
        executor: Executor::Vmm,
        parse: |words| resize::parse(words, Target::To).map(Command::Resize),
    },
    Verb {
        word: "plug",
        usage: "plug SIZE [device N] [within DURATION]",
        about: "raise the target and wait until the guest is there",
        example: "plug 512M device 1",
        executor: Executor::Vmm,
        parse: |words| resize::parse(words, Target::Plug).map(Command::Resize),
    },
    Verb {
        word: "unplug",
        usage: "unplug SIZE [device N] [within DURATION]",
        about: "lower the target and wait until the guest is there",
        example: "unplug 256M",
        executor: Executor::Vmm,
        parse: |words| resize::parse(words, Target::Unplug).map(Command::Resize),
    },
    Verb {
        word: "hog",
        usage: "hog [up to] SIZE movable|unmovable|pinned|contiguous [scattered] [full] as NAME",
        about: "allocate pages, fill them and hold them",
        example: "hog 128M movable scattered as data",
        executor: Executor::Guest,
        parse: |words| Hog::parse(words).map(Command::Hog),
    },
    Verb {
        word: "churn",
        usage: "churn N threads for 5s as NAME",
        about: "allocate and free pages all the time",
        example: "churn 2 threads for 5s as load",
        executor: Executor::Guest,
        parse: |words| Churn::parse(words).map(Command::Churn),
    },
    Verb {
        word: "verify",
        usage: "verify NAME",
        about: "check the content of a workload's pages",
        example: "verify data",
        executor: Executor::Guest,
        parse: |words| words.name().map(Command::Verify),
    },
    Verb {
        word: "release",
        usage: "release NAME",
        about: "free a workload's pages",
        example: "release data",
        executor: Executor::Guest,
        parse: |words| words.name().map(Command::Release),
    },
    Verb {
        word: "wait",
        usage: "wait NAME",
        about: "wait for the end of a churn",
        example: "wait load",
        executor: Executor::Vmm,
        parse: |words| words.name().map(Command::Wait),
    },
    Verb {
        word: "expect",
        usage: "expect METRIC ==|!=|<=|>=|<|> VALUE [device N] [within DURATION]",
        about: "compare a number with what it should be",
        example: "expect host.held <= 4M within 5s",
        executor: Executor::Vmm,
        parse: |words| Expect::parse(words).map(Command::Expect),
    },
    Verb {
        word: "fails",
        usage: "fails COMMAND because \"TEXT\"",
        about: "carry out a command that has to fail, for a reason whose text contains TEXT",
        example: "fails resize 0 because \"cannot move\"",
        executor: Executor::Vmm,
        parse: |words| Fails::parse(words).map(Command::Fails),
    },
    Verb {
        word: "stats",
        usage: "stats",
        about: "counters of the memory management",
        example: "stats",
        executor: Executor::Guest,
        parse: |_| Ok(Command::Stats),
    },
    Verb {
        word: "check",
        usage: "check",
        about: "verify every invariant of the memory management",
        example: "check",
        executor: Executor::Guest,
        parse: |_| Ok(Command::Check),
    },
    Verb {
        word: "blocks",
        usage: "blocks",
        about: "memory blocks: state, zone, what is plugged, memmap pages",
        example: "blocks",
        executor: Executor::Guest,
        parse: |_| Ok(Command::Blocks),
    },
    Verb {
        word: "meminfo",
        usage: "meminfo",
        about: "memory of the guest: total, free and available, as in /proc/meminfo",
        example: "meminfo",
        executor: Executor::Guest,
        parse: |_| Ok(Command::Meminfo),
    },
    Verb {
        word: "readd",
        usage: "readd SIZE at ADDRESS",
        about: "offline and remove memory blocks, and add them back",
        example: "readd 1G at 4G",
        executor: Executor::Guest,
        parse: readd::parse,
    },
    Verb {
        word: "rebind",
        usage: "rebind N",
        about: "take the driver from device N and bind it again, with its memory plugged",
        example: "rebind 0",
        executor: Executor::Guest,
        parse: |words| {
            let device = words.value("the number of a device, from 0", |text| text.parse().ok())?;
            Ok(Command::Rebind { device })
        },
    },
    Verb {
        word: "reset",
        usage: "reset [within DURATION]",
        about: "reset the machine and wait until the guest is up again",
        example: "reset within 10s",
        executor: Executor::Vmm,
        parse: |words| suffix::within(words).map(|within| Command::Reset { within }),
    },
    Verb {
        word: "sleep",
        usage: "sleep DURATION",
        about: "let time pass",
        example: "sleep 200ms",
        executor: Executor::Vmm,
        parse: |words| words.duration().map(Command::Sleep),
    },
    Verb {
        word: "race",
        usage: "race N cycles [held]",
        about: "take a pageblock again and again while other CPUs free pages of it",
        example: "race 100 cycles held",
        executor: Executor::Guest,
        parse: |words| Race::parse(words).map(Command::Race),
    },
    Verb {
        word: "corrupt",
        usage: "corrupt NAME [page N] [memmap]",
        about: "change a word of a workload's page, or the page's owner in the memmap",
        example: "corrupt data page 3",
        executor: Executor::Guest,
        parse: |words| Corrupt::parse(words).map(Command::Corrupt),
    },
    Verb {
        word: "probe",
        usage: "probe grace-period|tlb-flush|page-copy|release|churn",
        about: "hold another CPU, and see whether the kernel waits for it",
        example: "probe tlb-flush",
        executor: Executor::Guest,
        parse: |words| fault::probe(words).map(Command::Probe),
    },
    Verb {
        word: "inject",
        usage: "inject STEP [after N]",
        about: "let one attempt of a step of memory hotplug fail",
        example: "inject online after 2",
        executor: Executor::Vmm,
        parse: |words| fault::inject(words),
    },
    Verb {
        word: "pmem",
        usage: "pmem [map N [N...] [altmap [reserve SIZE]] [on N cpus]|unmap N|hold [up to] SIZE of N as NAME]",
        about: "list device memory, map it, unmap it, use it",
        example: "pmem map 0 altmap on 2 cpus",
        executor: Executor::Guest,
        parse: |words| Pmem::parse(words).map(Command::Pmem),
    },
];

impl Verb {
    /// The verb that is written `word`.
    #[must_use]
    pub fn new(word: &str) -> Option<&'static Self> {
        VERBS.iter().find(|verb| verb.word == word)
    }
}

impl Command {
    /// The command that is carried out: without `fails`, if it is expected to fail.
    #[must_use]
    pub fn carried_out(&self) -> &Self {
        match self {
            Self::Fails(Fails { command, .. }) => command,
            command => command,
        }
    }

    /// Reads one command and leaves what follows it.
    fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        let word = words.next("a command")?;
        match Verb::new(word.text) {
            Some(verb) => (verb.parse)(words),
            None => Err(unknown(&word)),
        }
    }
}

fn unknown(word: &Word<'_>) -> SyntaxError {
    let verbs = VERBS.iter().map(|verb| verb.word).chain([item::REPEAT]);
    word.error(&alloc::format!("a command ({})", list(verbs)))
}

impl FromStr for Command {
    type Err = SyntaxError;

    fn from_str(line: &str) -> Result<Self, SyntaxError> {
        let mut words = Words::new(line);
        let command = Self::parse(&mut words)?;
        match words.peek() {
            None => Ok(command),
            Some(word) => Err(word.error("the end of the line")),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resize(resize) => resize.fmt(f),
            Self::Hog(hog) => hog.fmt(f),
            Self::Churn(churn) => churn.fmt(f),
            Self::Verify(name) => write!(f, "verify {name}"),
            Self::Release(name) => write!(f, "release {name}"),
            Self::Wait(name) => write!(f, "wait {name}"),
            Self::Expect(expect) => expect.fmt(f),
            Self::Fails(fails) => fails.fmt(f),
            Self::Stats => f.write_str("stats"),
            Self::Check => f.write_str("check"),
            Self::Blocks => f.write_str("blocks"),
            Self::Meminfo => f.write_str("meminfo"),
            Self::Readd { size, addr } => write!(f, "readd {size} at {}", Size(*addr)),
            Self::Pmem(pmem) => pmem.fmt(f),
            Self::Rebind { device } => write!(f, "rebind {device}"),
            Self::Reset { within } => {
                f.write_str("reset")?;
                suffix::write(f, None, *within)
            }
            Self::Sleep(time) => write!(f, "sleep {}", ShowDuration(*time)),
            Self::Race(race) => race.fmt(f),
            Self::Corrupt(corrupt) => corrupt.fmt(f),
            Self::Probe(wait) => fault::write_probe(f, *wait),
            Self::Inject { step, after } => fault::write_inject(f, *step, *after),
        }
    }
}
