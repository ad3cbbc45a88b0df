//! `hog` and `churn`: work for the guest's page allocator.

use core::fmt;
use core::time::Duration;

use super::item::BOOT;
use crate::duration::ShowDuration;
use crate::words::{SyntaxError, Table, Words, word_for};
use crate::{Counted, Handle, HogKind, Name, Op, Size};

/// `hog`: the guest allocates pages, fills them and holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hog {
    /// A multiple of 4 KiB, not 0.
    pub size: Size,
    /// `up to`: it holds the pages that fit, even if none does. Without it, it fails if not all of them fit, and
    /// holds nothing then.
    pub partial: bool,
    /// Which pages.
    pub kind: HogKind,
    /// Spread over all free memory instead of taken densely.
    pub scattered: bool,
    /// Fill and check every word of each page, not its start, middle and end.
    pub full: bool,
    /// Name for later commands.
    pub name: Name,
}

/// `churn`: the guest allocates and frees pages in the background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Churn {
    /// Concurrent jobs, at least 1.
    pub threads: u32,
    /// How long; at least a millisecond, whole milliseconds.
    pub time: Duration,
    /// Name for later commands.
    pub name: Name,
}

const HOG_KINDS: Table<HogKind> = &[
    ("movable", HogKind::Movable),
    ("unmovable", HogKind::Unmovable),
    ("pinned", HogKind::Pinned),
    ("contiguous", HogKind::Contiguous),
];

/// As it is written before a size.
pub(super) const UP_TO: &str = "up to ";

/// Reads `up to`, if it is there.
pub(super) fn up_to(words: &mut Words<'_>) -> Result<bool, SyntaxError> {
    let partial = words.take("up");
    if partial {
        words.keyword("to")?;
    }
    Ok(partial)
}

impl Hog {
    /// The call to the guest, for a workload that records call `handle`.
    #[must_use]
    pub fn op(&self, handle: Handle) -> Op {
        let &Self { size, partial, kind, scattered, full, .. } = self;
        Op::Hog { handle, pages: size.pages(), partial, kind, scattered, full }
    }

    /// Reads what follows `hog`.
    pub(super) fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        let partial = up_to(words)?;
        let size = words.size("a size in whole pages of 4 KiB such as 300M", |size| size.is_whole_pages())?;
        let kind = words.one_of("a kind of pages", HOG_KINDS)?;
        let scattered = kind != HogKind::Contiguous && words.take("scattered");
        let full = words.take("full");
        words.keyword("as")?;
        Ok(Self { size, partial, kind, scattered, full, name: words.name()? })
    }
}

impl fmt::Display for Hog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up_to = if self.partial { UP_TO } else { "" };
        write!(f, "hog {up_to}{} {}", self.size, word_for(HOG_KINDS, &self.kind))?;
        if self.scattered {
            f.write_str(" scattered")?;
        }
        if self.full {
            f.write_str(" full")?;
        }
        write!(f, " as {}", self.name)
    }
}

impl Churn {
    /// The call to the guest, for a workload that records call `handle`.
    #[must_use]
    pub fn op(&self, handle: Handle) -> Op {
        let millis = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        Op::Churn { handle, threads: self.threads, millis }
    }

    /// Reads what follows `churn`.
    pub(super) fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        let threads = words.count("a number of threads")?;
        words.plural("thread", "threads")?;
        words.keyword("for")?;
        let time =
            words.duration_that("a duration above 0 such as 200ms, 5s or 2m", |time| !time.is_zero())?;
        words.keyword("as")?;
        if let Some(word) = words.peek().filter(|word| word.text == BOOT) {
            return Err(word.error("another name: `wait boot` waits for the guest"));
        }
        Ok(Self { threads, time, name: words.name()? })
    }
}

impl fmt::Display for Churn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, time, name } = self;
        let threads = Counted((*threads).into(), "thread");
        write!(f, "churn {threads} for {} as {name}", ShowDuration(*time))
    }
}
