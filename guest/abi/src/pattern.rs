//! The pattern that a workload writes into its pages, so that it notices a page that was lost, mixed up or changed. tidevm's own
//! guest and the agent for Linux write the same one. How a word of a page is reached is theirs.
//!
//! Invariant: the pattern depends on the workload and on the page's place there, not on its frame number, because the content
//! has to move along with the page.

use crate::limits::PAGE_SIZE;

/// Words of a page.
pub const WORDS: u64 = PAGE_SIZE / 8;
/// The words that are written when not every word is.
const SOME: [u64; 3] = [0, WORDS / 2, WORDS - 1];

/// The pattern of one page.
#[derive(Clone, Copy, Debug)]
pub struct PagePattern {
    seed: u64,
    full: bool,
}

impl PagePattern {
    /// The pattern of page `index` of workload `handle`. `full`: every word is written, rather than the first, the middle and
    /// the last one.
    #[must_use]
    pub const fn new(handle: u32, index: u64, full: bool) -> Self {
        Self { seed: ((handle as u64) << 41) ^ (index << 9), full }
    }

    /// Calls `visit` with the words that the pattern has, and their values, until it returns false. Returns whether it went to
    /// the end.
    #[inline]
    pub fn each(self, mut visit: impl FnMut(u64, u64) -> bool) -> bool {
        let mut visit = |word| visit(word, self.value(word));
        if self.full { (0..WORDS).all(&mut visit) } else { SOME.into_iter().all(&mut visit) }
    }

    /// A word of page `page`, another one for each of the pages that follow each other, and its value.
    #[must_use]
    pub const fn one(self, page: u64) -> (u64, u64) {
        let word = if self.full { page % WORDS } else { SOME[(page % SOME.len() as u64) as usize] };
        (word, self.value(word))
    }

    const fn value(self, word: u64) -> u64 {
        (self.seed | word).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.seed
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::{PagePattern, WORDS};

    #[test]
    fn pages_differ_and_each_word_is_visited() {
        let words = |pattern: PagePattern| {
            let mut words = Vec::new();
            assert!(pattern.each(|word, value| {
                words.push((word, value));
                true
            }));
            words
        };
        let full = words(PagePattern::new(3, 7, true));
        assert_eq!(full.len() as u64, WORDS);
        let values: std::collections::BTreeSet<u64> = full.iter().map(|&(_, value)| value).collect();
        assert_eq!(values.len(), full.len(), "a word that moved within its page is noticed");
        let some = words(PagePattern::new(3, 7, false));
        assert_eq!(some, [full[0], full[256], full[511]]);
        assert_ne!(words(PagePattern::new(3, 8, false))[0].1, some[0].1);
        assert_ne!(words(PagePattern::new(4, 7, false))[0].1, some[0].1);
        for page in 0..4 {
            assert!(some.contains(&PagePattern::new(3, 7, false).one(page)));
            assert!(full.contains(&PagePattern::new(3, 7, true).one(page)));
        }
    }
}
