//! The guest's answers to calls, as records and as text.
//!
//! The texts are the only ones: sessions and the guest's shell show them.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{BLOCK_RUNS, BlockRun, Counted, Failure, Meminfo, Pmem, PmemMapped, Pressure, Stats, either};

/// The answer to a [`Call`](crate::Call).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is no heap to put counters on, and few are under way")]
pub enum Answer {
    /// To [`Op::Stats`](crate::Op::Stats).
    Stats(Stats),
    /// To [`Op::Check`](crate::Op::Check).
    Checked {
        /// Pages whose struct pages were checked.
        pages: u64,
        /// Pages of deferred memory: their struct pages are not written yet.
        deferred: u64,
    },
    /// To [`Op::Hog`](crate::Op::Hog): the number asked for; for a partial one pages that fitted, at most that number.
    Hogged {
        /// Pages held now.
        pages: u64,
    },
    /// To [`Op::Verify`](crate::Op::Verify).
    Verified {
        /// Pages whose content was checked.
        pages: u64,
        /// Pages whose content was wrong.
        corrupt: u64,
        /// The first wrong word of the first wrong page, if any.
        first: Option<BadWord>,
    },
    /// To [`Op::Corrupt`](crate::Op::Corrupt) of a page's content: the word that is wrong now.
    Corrupted(BadWord),
    /// To [`Op::Release`](crate::Op::Release).
    Released {
        /// Pages given back.
        pages: u64,
    },
    /// To [`Op::Churn`](crate::Op::Churn).
    Churned {
        /// Successful allocations.
        allocations: u64,
        /// Allocations that found no memory.
        failures: u64,
    },
    /// To [`Op::Blocks`](crate::Op::Blocks).
    Blocks {
        /// Ascending by address; entries that are not needed are `None`, at the end.
        runs: [Option<BlockRun>; BLOCK_RUNS],
        /// The address to ask for next, if there are more memory blocks.
        next: Option<u64>,
    },
    /// To [`Op::Race`](crate::Op::Race).
    Raced {
        /// Cycles that were run.
        cycles: u32,
        /// Cycles in which the pageblock could not be taken.
        failures: u32,
        /// Pages that were found on per-CPU lists although they were isolated.
        stranded: u64,
    },
    /// To [`Op::Inject`](crate::Op::Inject), [`Op::Readd`](crate::Op::Readd), [`Op::Rebind`](crate::Op::Rebind), [`Op::Probe`](crate::Op::Probe)
    /// and [`Op::Corrupt`](crate::Op::Corrupt) of the memmap.
    Done,
    /// To [`PmemOp::Look`](crate::PmemOp::Look).
    Pmem(Pmem),
    /// To [`PmemOp::Map`](crate::PmemOp::Map).
    PmemMapped(PmemMapped),
    /// To [`PmemOp::Unmap`](crate::PmemOp::Unmap).
    PmemUnmapped {
        /// Pages that could be used.
        pages: u64,
    },
    /// The guest could not do it.
    Failed(Failure),
    /// To [`Op::Watch`](crate::Op::Watch).
    Pressure(Pressure),
    /// To [`Op::Meminfo`](crate::Op::Meminfo).
    Meminfo(Meminfo),
}

/// A word of a workload's page that has not the value that the workload wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadWord {
    /// The page, counted from 0 in the order of the workload's pages.
    pub page: u64,
    /// Its frame number now.
    pub pfn: u64,
    /// The word, counted from 0 in units of 8 bytes.
    pub word: u32,
    /// The value that the workload wrote.
    pub expected: u64,
    /// The value that is there.
    pub found: u64,
}

impl fmt::Display for BadWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { page, pfn, word, expected, found } = self;
        write!(f, "page {page} at pfn {pfn:#x}: word {word} is {found:#x}, and should be {expected:#x}")
    }
}

impl fmt::Display for Answer {
    /// One line; one line per memory block and one more for device memory in the answers that list them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Answer::Stats(stats) => stats.fmt(f),
            Answer::Checked { pages, deferred } => {
                write!(f, "{} checked", Counted(pages, "page"))?;
                if deferred == 0 {
                    return Ok(());
                }
                write!(f, ", {deferred} more {} deferred", either(deferred, "is", "are"))
            }
            Answer::Hogged { pages } => write!(f, "{} held", Counted(pages, "page")),
            Answer::Verified { pages, corrupt: 0, .. } => write!(f, "{} intact", Counted(pages, "page")),
            Answer::Verified { pages, corrupt, first } => {
                let are = either(corrupt, "is", "are");
                write!(f, "{corrupt} of {} {are} corrupt", Counted(pages, "page"))?;
                first.map_or(Ok(()), |first| write!(f, ", the first is {first}"))
            }
            Answer::Corrupted(word) => word.fmt(f),
            Answer::Released { pages } => write!(f, "{} given back", Counted(pages, "page")),
            Answer::Churned { allocations, failures } => {
                write!(f, "{}, {failures} found no memory", Counted(allocations, "allocation"))
            }
            Answer::Blocks { runs, .. } => runs.iter().flatten().enumerate().try_for_each(|(index, run)| {
                let separator = if index == 0 { "" } else { "\n" };
                write!(f, "{separator}{run}")
            }),
            Answer::Raced { cycles, failures: 0, stranded: 0 } => {
                write!(f, "{}, all done", Counted(cycles.into(), "cycle"))
            }
            Answer::Raced { cycles, failures, stranded } => {
                let (cycles, pages) = (Counted(cycles.into(), "cycle"), Counted(stranded, "page"));
                let were = either(stranded, "was", "were");
                write!(f, "{failures} of {cycles} failed, {pages} {were} stranded on per-CPU lists")
            }
            Answer::Done => f.write_str("done"),
            Answer::Pmem(pmem) => pmem.fmt(f),
            Answer::PmemMapped(mapped) => mapped.fmt(f),
            Answer::PmemUnmapped { pages } => {
                write!(f, "{} {} usable", Counted(pages, "page"), either(pages, "was", "were"))
            }
            Answer::Failed(failure) => failure.fmt(f),
            Answer::Pressure(pressure) => pressure.fmt(f),
            Answer::Meminfo(meminfo) => meminfo.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, BadWord};

    #[test]
    fn an_answer_has_one_text() {
        let word = BadWord { page: 3, pfn: 0x140200, word: 256, expected: 0xabc, found: 0xabd };
        let texts = [
            (Answer::Verified { pages: 9, corrupt: 0, first: None }, "9 pages intact"),
            (
                Answer::Verified { pages: 9, corrupt: 3, first: Some(word) },
                "3 of 9 pages are corrupt, the first is page 3 at pfn 0x140200: word 256 is 0xabd, and should be \
                 0xabc",
            ),
            (Answer::Corrupted(word), "page 3 at pfn 0x140200: word 256 is 0xabd, and should be 0xabc"),
            (Answer::Verified { pages: 1, corrupt: 1, first: None }, "1 of 1 page is corrupt"),
            (Answer::Checked { pages: 1, deferred: 1 }, "1 page checked, 1 more is deferred"),
            (Answer::Checked { pages: 2, deferred: 2 }, "2 pages checked, 2 more are deferred"),
            (Answer::Hogged { pages: 1 }, "1 page held"),
            (Answer::Released { pages: 1 }, "1 page given back"),
            (Answer::Raced { cycles: 1, failures: 0, stranded: 0 }, "1 cycle, all done"),
            (Answer::Churned { allocations: 5000, failures: 0 }, "5000 allocations, 0 found no memory"),
            (Answer::Raced { cycles: 2, failures: 0, stranded: 0 }, "2 cycles, all done"),
            (
                Answer::Raced { cycles: 2, failures: 1, stranded: 7 },
                "1 of 2 cycles failed, 7 pages were stranded on per-CPU lists",
            ),
            (Answer::PmemUnmapped { pages: 4 }, "4 pages were usable"),
        ];
        for (answer, text) in texts {
            assert_eq!(answer.to_string(), text);
        }
    }
}
