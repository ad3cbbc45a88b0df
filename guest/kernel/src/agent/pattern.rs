//! The pattern that a workload writes into its pages, so that it notices a page that was lost, mixed up or
//! changed.
//!
//! Invariant: the pattern depends on the workload and on the page's place there, not on its frame number,
//! because the content has to move along with the page.
#![expect(unsafe_code, reason = "reads and writes pages through the direct map")]

use tidevm_mm::{PAGE_SIZE, Pfn};

use crate::mem::paging::phys_to_virt;

const WORDS: u64 = PAGE_SIZE / 8;

/// The pattern of one page.
#[derive(Clone, Copy)]
pub struct PagePattern {
    seed: u64,
    /// Every word is written, rather than the first, the middle and the last one.
    full: bool,
}

impl PagePattern {
    /// The pattern of page `index` of workload `handle`.
    pub fn new(handle: u32, index: u32, full: bool) -> Self {
        Self { seed: (u64::from(handle) << 41) ^ (u64::from(index) << 9), full }
    }

    /// Fills a page that the caller owns.
    pub fn write(self, pfn: Pfn) {
        self.each(|word, value| {
            // SAFETY: the caller owns the page, and an allocated page is in the direct map.
            unsafe { address(pfn, word).write_volatile(value) };
            true
        });
    }

    /// Whether a page that the caller owns still has this pattern.
    pub fn matches(self, pfn: Pfn) -> bool {
        // SAFETY: as in `write`.
        self.each(|word, value| unsafe { address(pfn, word).read_volatile() } == value)
    }

    fn each(self, mut visit: impl FnMut(u64, u64) -> bool) -> bool {
        let value = |word: u64| (self.seed | word).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.seed;
        if self.full {
            (0..WORDS).all(|word| visit(word, value(word)))
        } else {
            [0, WORDS / 2, WORDS - 1].into_iter().all(|word| visit(word, value(word)))
        }
    }
}

fn address(pfn: Pfn, word: u64) -> *mut u64 {
    phys_to_virt(pfn.address().get() + 8 * word).cast()
}
