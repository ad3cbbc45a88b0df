//! A batch of pages that all CPUs copy together: one CPU posts it, and every CPU takes one page after the other.
//!
//! Takes the place of Linux's `folio_copy` in migration, which runs on one CPU.
//!
//! Invariants, which `sync/tests/copy_batch.rs` proves in every execution that loom finds:
//! - `turn` holds the batch's length and the next page to take, in one word. So a CPU that has taken a turn reads the
//!   pages of the same batch, and each page is taken once.
//! - The copy of a page comes after all that the poster did before, and is complete when
//!   [`is_copied`](CopyBatch::is_copied).

use crate::addr::Pfn;
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sync::{AtomicU32, AtomicU64};

/// A batch. One CPU at a time posts to it.
pub struct CopyBatch {
    /// `(to, from)` of each page, as frame numbers.
    pages: [(AtomicU32, AtomicU32); Self::MOST],
    /// Length of the batch in the upper half, next page in the lower.
    turn: AtomicU64,
    /// Number of pages of the batch that are copied.
    copied: AtomicU32,
}

impl CopyBatch {
    /// Most pages of a batch.
    pub const MOST: usize = 64;

    /// A batch without pages.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pages: [const { (AtomicU32::new(0), AtomicU32::new(0)) }; Self::MOST],
            turn: AtomicU64::new(0),
            copied: AtomicU32::new(0),
        }
    }

    /// Posts `pages`, each `(to, from)`. The last batch is copied.
    pub fn post(&self, pages: &[(Pfn, Pfn)]) {
        assert!(pages.len() <= Self::MOST, "{} pages in a batch", pages.len());
        for ((to, from), place) in pages.iter().zip(&self.pages) {
            place.0.store(to.get(), Relaxed);
            place.1.store(from.get(), Relaxed);
        }
        self.copied.store(0, Relaxed);
        self.turn.store((pages.len() as u64) << 32, Release);
    }

    /// Takes the next page, if one is left, and copies it by `copy`, which gets `(to, from)`. Returns whether one was left.
    pub fn copy_next(&self, copy: impl FnOnce(Pfn, Pfn)) -> bool {
        let turn = self
            .turn
            .fetch_update(Acquire, Relaxed, |turn| ((turn as u32) < (turn >> 32) as u32).then_some(turn + 1));
        let Ok(turn) = turn else { return false };
        let (to, from) = &self.pages[turn as u32 as usize];
        copy(Pfn::new(to.load(Relaxed)), Pfn::new(from.load(Relaxed)));
        self.copied.fetch_add(1, Release);
        true
    }

    /// Whether all pages of the batch are copied. Asked by the CPU that posted it.
    #[must_use]
    pub fn is_copied(&self) -> bool {
        self.copied.load(Acquire) == (self.turn.load(Relaxed) >> 32) as u32
    }
}

impl Default for CopyBatch {
    fn default() -> Self {
        Self::new()
    }
}
