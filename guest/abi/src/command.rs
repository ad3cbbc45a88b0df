//! The one grammar: what a session and the guest's shell can be told to do, as values and as text.
//!
//! [`VERBS`] lists the commands. `resize`, `plug`, `unplug` and `expect` take `device N` (the N-th
//! `--hotplug`) and `within DURATION` at their end, in any order; `reset` takes `within DURATION`. Without `device`,
//! a resize is for device 0, and an expectation looks at the sum over all devices.
//! `expect console` and `wait boot` take `within DURATION` too.
//! Sizes are `512M`, `2G`, `2GiB` or plain bytes, durations `200ms`, `5s` or `2m`. TEXT is in double quotes, a pattern
//! between slashes ([`ConsoleText`]). METRIC is a
//! [`Metric`](crate::Metric), STEP one of [`FaultStep`]. `#` starts a comment. A script may repeat commands: `repeat N { ... }` ([`Item`]).
//!
//! Invariant: every [`Command`] prints as text that parses to the same command, so that what a table shows
//! can be typed in again.
//!
//! The grammar is that of the VMM's sessions and of the guest's shell. [`Verb::executor`] says which
//! commands the guest can carry out by itself.

mod console;
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
mod verbs;
mod workload;

use alloc::string::String;
use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use crate::words::{SyntaxError, Word, Words, list};
use crate::{FaultStep, Name, ProbedWait, ShowDuration, Size};

pub use console::{ConsoleText, ExpectConsole};
pub use expect::{Comparison, Expect};
pub use fails::Fails;
pub use fault::{Corrupt, Race};
pub use item::{Item, REPETITION};
pub use pmem::{Pmem, PmemHold, PmemMap};
pub use resize::{NoTarget, Resize, Target};
pub use verbs::{Executor, VERBS, Verb};
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
    /// Wait until the guest is up.
    WaitBoot {
        /// How long it may take.
        within: Option<Duration>,
    },
    /// Give the commands that follow a name, up to the next name.
    Step(String),
    /// Compare a number with what it should be.
    Expect(Expect),
    /// Look for a text on the guest's console.
    ExpectConsole(ExpectConsole),
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
            Self::WaitBoot { within } => {
                f.write_str("wait boot")?;
                suffix::write(f, None, *within)
            }
            Self::Step(name) => write!(f, "step \"{name}\""),
            Self::Expect(expect) => expect.fmt(f),
            Self::ExpectConsole(expect) => expect.fmt(f),
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
