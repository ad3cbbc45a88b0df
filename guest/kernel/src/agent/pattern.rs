//! The pattern that a workload writes into its pages, so that it notices a page that was lost, mixed up or
//! changed.
//!
//! Invariant: the pattern depends on the workload and on the page's place there, not on its frame number,
//! because the content has to move along with the page.
#![expect(unsafe_code, reason = "reads and writes pages through the direct map")]

use tidevm_abi::BadWord;
use tidevm_mm::{PAGE_SIZE, Pfn};

use crate::mem::paging::phys_to_virt;

const WORDS: u64 = PAGE_SIZE / 8;
/// The words that are written when not every word is.
const SOME: [u64; 3] = [0, WORDS / 2, WORDS - 1];

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

    /// The first word in which page `page` of the workload, which the caller owns and which is in frame `pfn`,
    /// differs from this pattern.
    pub fn first_bad(self, page: u64, pfn: Pfn) -> Option<BadWord> {
        let mut bad = None;
        self.each(|word, expected| {
            // SAFETY: as in `write`.
            let found = unsafe { address(pfn, word).read_volatile() };
            bad = (found != expected).then_some(BadWord {
                page,
                pfn: pfn.get().into(),
                word: word as u32,
                expected,
                found,
            });
            bad.is_none()
        });
        bad
    }

    /// Flips the lowest bit of a word of page `page` of the workload, which the caller owns and which is in frame
    /// `pfn`. It is another word for each of the pages that follow each other, among the words of this pattern.
    pub fn flip(self, page: u64, pfn: Pfn) -> BadWord {
        let word = if self.full { page % WORDS } else { SOME[(page % SOME.len() as u64) as usize] };
        // SAFETY: as in `write`.
        let found = unsafe {
            let address = address(pfn, word);
            address.write_volatile(address.read_volatile() ^ 1);
            address.read_volatile()
        };
        BadWord { page, pfn: pfn.get().into(), word: word as u32, expected: self.value(word), found }
    }

    fn value(self, word: u64) -> u64 {
        (self.seed | word).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.seed
    }

    fn each(self, mut visit: impl FnMut(u64, u64) -> bool) {
        let mut visit = |word| visit(word, self.value(word));
        if self.full {
            (0..WORDS).all(&mut visit);
        } else {
            SOME.into_iter().all(&mut visit);
        }
    }
}

fn address(pfn: Pfn, word: u64) -> *mut u64 {
    phys_to_virt(pfn.address().get() + 8 * word).cast()
}
