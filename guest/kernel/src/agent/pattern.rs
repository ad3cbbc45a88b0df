//! The pattern of a workload in its pages ([`tidevm_abi::PagePattern`]), through the direct map.
#![expect(unsafe_code, reason = "reads and writes pages through the direct map")]

use tidevm_abi::{self as abi, BadWord};
use tidevm_mm::Pfn;

use crate::mem::paging::phys_to_virt;

/// The pattern of one page.
#[derive(Clone, Copy)]
pub struct PagePattern(abi::PagePattern);

impl PagePattern {
    /// The pattern of page `index` of workload `handle`. `full`: every word is written, rather than the first, the middle and
    /// the last one.
    pub fn new(handle: u32, index: u32, full: bool) -> Self {
        Self(abi::PagePattern::new(handle, index.into(), full))
    }

    /// Fills a page that the caller owns.
    pub fn write(self, pfn: Pfn) {
        self.0.each(|word, value| {
            // SAFETY: the caller owns the page, and an allocated page is in the direct map.
            unsafe { address(pfn, word).write_volatile(value) };
            true
        });
    }

    /// The first word in which page `page` of the workload, which the caller owns and which is in frame `pfn`,
    /// differs from this pattern.
    pub fn first_bad(self, page: u64, pfn: Pfn) -> Option<BadWord> {
        let mut bad = None;
        self.0.each(|word, expected| {
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
        let (word, expected) = self.0.one(page);
        // SAFETY: as in `write`.
        let found = unsafe {
            let address = address(pfn, word);
            address.write_volatile(address.read_volatile() ^ 1);
            address.read_volatile()
        };
        BadWord { page, pfn: pfn.get().into(), word: word as u32, expected, found }
    }
}

fn address(pfn: Pfn, word: u64) -> *mut u64 {
    phys_to_virt(pfn.address().get() + 8 * word).cast()
}
