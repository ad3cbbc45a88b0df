//! `corrupt`, `inject`, `probe` and `race`: faults that are made on purpose, and waits that are put to the test.
//!
//! Mirrors Linux's `hwpoison-inject`, which a test writes to through debugfs, and its `test_*` modules.

use core::fmt;

use super::Command;
use crate::limits::MAX_RACE_CYCLES;
use crate::words::{SyntaxError, Table, Words, word_for};
use crate::{CorruptPart, Counted, FaultStep, Handle, Name, Op, ProbedWait};

/// `corrupt`: the guest changes a page of a workload, so that `verify` or `check` has something to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// The workload.
    pub name: Name,
    /// The page, counted from 0 in the order of the workload's pages.
    pub page: u32,
    /// The part of the page that changes.
    pub part: CorruptPart,
}

/// `race`: one CPU takes a pageblock again and again while the others free pages of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Race {
    /// How often, from 1 to [`MAX_RACE_CYCLES`].
    pub cycles: u32,
    /// The CPU that takes the pageblock is held after its drain of per-CPU lists, until the pages are freed.
    pub held: bool,
}

const PROBED_WAITS: Table<ProbedWait> = &[
    ("grace-period", ProbedWait::GracePeriod),
    ("tlb-flush", ProbedWait::TlbFlush),
    ("page-copy", ProbedWait::PageCopy),
    ("release", ProbedWait::Release),
    ("churn", ProbedWait::Churn),
];

pub(super) const FAULT_STEPS: Table<FaultStep> = &[
    ("map-direct", FaultStep::MapDirect),
    ("map-memmap", FaultStep::MapMemmap),
    ("alloc-memmap", FaultStep::AllocMemmap),
    ("online", FaultStep::Online),
    ("isolate", FaultStep::Isolate),
    ("migrate", FaultStep::Migrate),
    ("page-table", FaultStep::PageTable),
    ("answer", FaultStep::Answer),
    ("notify", FaultStep::Notify),
    ("device", FaultStep::Device),
];

impl FaultStep {
    /// Every step of memory management that can fail on demand. None of them makes a driver wait for its device.
    pub fn of_memory() -> impl Iterator<Item = Self> {
        let of_driver = [Self::Answer, Self::Notify, Self::Device];
        FAULT_STEPS.iter().map(|(_, step)| *step).filter(move |step| !of_driver.contains(step))
    }
}

impl Corrupt {
    /// The call to the guest, for a workload that records call `handle`.
    #[must_use]
    pub fn op(&self, handle: Handle) -> Op {
        Op::Corrupt { handle, page: self.page, part: self.part }
    }

    /// Reads what follows `corrupt`.
    pub(super) fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        let name = words.name()?;
        let page = if words.take("page") {
            words.value("the number of a page, from 0", |text| text.parse().ok())?
        } else {
            0
        };
        let part = if words.take("memmap") { CorruptPart::Memmap } else { CorruptPart::Content };
        Ok(Self { name, page, part })
    }
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "corrupt {}", self.name)?;
        if self.page > 0 {
            write!(f, " page {}", self.page)?;
        }
        match self.part {
            CorruptPart::Content => Ok(()),
            CorruptPart::Memmap => f.write_str(" memmap"),
        }
    }
}

/// Reads what follows `probe`.
pub(super) fn probe(words: &mut Words<'_>) -> Result<ProbedWait, SyntaxError> {
    words.one_of("a wait", PROBED_WAITS)
}

/// Writes a `probe`.
pub(super) fn write_probe(f: &mut fmt::Formatter<'_>, wait: ProbedWait) -> fmt::Result {
    write!(f, "probe {}", word_for(PROBED_WAITS, &wait))
}

/// Reads what follows `inject`.
pub(super) fn inject(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    let step = words.one_of("a step", FAULT_STEPS)?;
    let number = |words: &mut Words<'_>| words.value("a number of attempts", |text| text.parse().ok());
    let after = if words.take("after") { number(words)? } else { 0 };
    Ok(Command::Inject { step, after })
}

/// Writes an `inject`.
pub(super) fn write_inject(f: &mut fmt::Formatter<'_>, step: FaultStep, after: u32) -> fmt::Result {
    write!(f, "inject {}", word_for(FAULT_STEPS, &step))?;
    if after > 0 { write!(f, " after {after}") } else { Ok(()) }
}

impl Race {
    /// Reads what follows `race`.
    pub(super) fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        let expected = alloc::format!("a number of cycles, from 1 to {MAX_RACE_CYCLES}");
        let fits = |cycles: &u32| (1..=MAX_RACE_CYCLES).contains(cycles);
        let cycles = words.value(&expected, |text| text.parse().ok().filter(fits))?;
        words.plural("cycle", "cycles")?;
        Ok(Self { cycles, held: words.take("held") })
    }
}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cycles, held } = self;
        write!(f, "race {}{}", Counted((*cycles).into(), "cycle"), if *held { " held" } else { "" })
    }
}
