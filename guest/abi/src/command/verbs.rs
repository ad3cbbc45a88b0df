//! The table of commands: the word that begins each, how it is written, and the side that can carry it out.
//!
//! Mirrors the builtin table of a shell. `script --help`, the prompt and the guest's `help` show it.

use super::fault;
use super::item::{BOOT, STEP};
use super::readd;
use super::resize;
use super::suffix;
use super::{Churn, Command, Corrupt, Expect, ExpectConsole, Fails, Hog, Pmem, Race, Target};
use crate::words::{SyntaxError, Words};

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
    pub(super) parse: fn(&mut Words<'_>) -> Result<Command, SyntaxError>,
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
        usage: "wait NAME|boot [within DURATION]",
        about: "wait for the end of a churn, or until the guest is up",
        example: "wait load",
        executor: Executor::Vmm,
        parse: wait,
    },
    Verb {
        word: "expect",
        usage: "expect METRIC ==|!=|<=|>=|<|> VALUE [device N] [within DURATION] | [no] console contains \"TEXT\"|matches /RE/ [within DURATION]",
        about: "compare a number with what it should be, or look for a text on the guest's console",
        example: "expect host.held <= 4M within 5s",
        executor: Executor::Vmm,
        parse: |words| match ExpectConsole::parse(words)? {
            Some(expect) => Ok(Command::ExpectConsole(expect)),
            None => Expect::parse(words).map(Command::Expect),
        },
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
        word: STEP,
        usage: "step \"TEXT\"",
        about: "give the commands that follow a name, for results that CI reads",
        example: "step \"grow\"",
        executor: Executor::Vmm,
        parse: |words| words.quoted("a name").map(Command::Step),
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

/// Reads what follows `wait`.
fn wait(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    if words.take(BOOT) {
        return suffix::within(words).map(|within| Command::WaitBoot { within });
    }
    words.name().map(Command::Wait)
}
