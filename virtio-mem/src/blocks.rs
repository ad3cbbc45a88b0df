//! Ranges and sets of a region's blocks, named by their index in the region.
//!
//! [`BlockBitmap`] holds one bit a block and works in words, so that a request of 65535 blocks
//! costs a thousand steps and not 65535; it is what the device knows. [`SubBlocks`] is the blocks
//! of one guest memory block, at most 64 of them, in one word; it is what the driver works with.
//!
//! Invariants of [`BlockBitmap`]: `count` is the number of set bits; bits at and above `len` are
//! clear.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Consecutive blocks of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// Index of the first block; block 0 starts at the region's address.
    pub first: u64,
    /// Number of blocks.
    pub count: u64,
}

impl BlockRange {
    /// Index of the block after the last one.
    ///
    /// # Panics
    /// When that is more than `u64::MAX`: no region is that large.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first.checked_add(self.count).expect("block range ends below 2^64")
    }
}

const WORD: u64 = u64::BITS as u64;

/// The `count` bits from bit `first` on; `first + count` is at most 64.
const fn mask(first: u32, count: u32) -> u64 {
    match u64::MAX.checked_shr(u64::BITS - count) {
        Some(ones) => ones << first,
        None => 0,
    }
}

/// A set of blocks of one region.
#[derive(Clone, Debug)]
pub struct BlockBitmap {
    words: Vec<u64>,
    len: u64,
    count: u64,
}

impl BlockBitmap {
    /// An empty set for a region of `len` blocks.
    #[must_use]
    pub fn new(len: u64) -> BlockBitmap {
        let words = usize::try_from(len.div_ceil(WORD)).expect("a region's bitmap fits into memory");
        BlockBitmap { words: vec![0; words], len, count: 0 }
    }

    /// Whether no block is in the set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of blocks in the set.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Number of blocks of `range` in the set.
    ///
    /// # Panics
    /// When `range` reaches beyond the region.
    #[must_use]
    pub fn count_in(&self, range: BlockRange) -> u64 {
        self.spans(range).map(|(word, mask)| u64::from((self.words[word] & mask).count_ones())).sum()
    }

    /// Puts the blocks of `range` into the set.
    ///
    /// # Panics
    /// When `range` reaches beyond the region.
    pub fn set(&mut self, range: BlockRange) {
        for (word, mask) in self.spans(range) {
            self.count += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
    }

    /// Takes the blocks of `range` out of the set.
    ///
    /// # Panics
    /// When `range` reaches beyond the region.
    pub fn clear(&mut self, range: BlockRange) {
        for (word, mask) in self.spans(range) {
            self.count -= u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
    }

    /// The first set block at or after `from`, with the set blocks that follow it directly.
    #[must_use]
    pub fn next_run(&self, from: u64) -> Option<BlockRange> {
        let first = self.next_bit(from, true)?;
        let end = self.next_bit(first, false).unwrap_or(self.len);
        Some(BlockRange { first, count: end - first })
    }

    /// The maximal runs of set blocks, ascending.
    pub fn runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let run = self.next_run(from)?;
            from = run.end();
            Some(run)
        })
    }

    /// The first block at or after `from` whose bit is `value`. A clear one may be the one after
    /// the region's last.
    fn next_bit(&self, from: u64, value: bool) -> Option<u64> {
        if from >= self.len {
            return None;
        }
        let flip = if value { 0 } else { u64::MAX };
        let mut low = from % WORD;
        for word in (from / WORD) as usize..self.words.len() {
            let bits = (self.words[word] ^ flip) & (u64::MAX << low);
            if bits != 0 {
                return Some(word as u64 * WORD + u64::from(bits.trailing_zeros()));
            }
            low = 0;
        }
        None
    }

    /// The words that hold `range`, each with the mask of the range's bits in it.
    fn spans(&self, range: BlockRange) -> impl Iterator<Item = (usize, u64)> + use<> {
        let end = range.end();
        assert!(end <= self.len, "blocks {}..{end} of a region of {} blocks", range.first, self.len);
        let mut next = range.first;
        core::iter::from_fn(move || {
            if next >= end {
                return None;
            }
            let first = next % WORD;
            let count = (WORD - first).min(end - next);
            let word = (next / WORD) as usize;
            next += count;
            Some((word, mask(first as u32, count as u32)))
        })
    }
}

/// Blocks of one memory block: bit `n` is the block that starts `n` block sizes after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubBlocks(u64);

impl SubBlocks {
    /// The most blocks that a memory block can have.
    pub const MAX: u32 = u64::BITS;

    /// No block.
    pub const NONE: SubBlocks = SubBlocks(0);

    /// The set with exactly these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> SubBlocks {
        SubBlocks(bits)
    }

    /// One bit a block.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The blocks of `range`.
    ///
    /// # Panics
    /// When `range` does not end within [`SubBlocks::MAX`] or is reversed.
    #[must_use]
    pub const fn of(range: Range<u32>) -> SubBlocks {
        assert!(range.start <= range.end && range.end <= SubBlocks::MAX, "sub-blocks beyond a memory block");
        SubBlocks(mask(range.start, range.end - range.start))
    }

    /// Number of blocks.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` are among these.
    #[must_use]
    pub const fn contains(self, other: SubBlocks) -> bool {
        other.0 & !self.0 == 0
    }

    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: SubBlocks) -> SubBlocks {
        SubBlocks(self.0 | other.0)
    }

    /// These but for `other`.
    #[must_use]
    pub const fn without(self, other: SubBlocks) -> SubBlocks {
        SubBlocks(self.0 & !other.0)
    }

    /// The blocks that are both here and in `other`.
    #[must_use]
    pub const fn and(self, other: SubBlocks) -> SubBlocks {
        SubBlocks(self.0 & other.0)
    }

    /// The lowest run of consecutive blocks; empty when there is none.
    #[must_use]
    pub const fn lowest_run(self) -> Range<u32> {
        let start = self.0.trailing_zeros();
        match self.0.checked_shr(start) {
            Some(bits) => start..start + bits.trailing_ones(),
            None => 0..0,
        }
    }

    /// The highest run of consecutive blocks; empty when there is none.
    #[must_use]
    pub const fn highest_run(self) -> Range<u32> {
        let above = self.0.leading_zeros();
        match self.0.checked_shl(above) {
            Some(bits) => {
                let end = SubBlocks::MAX - above;
                end - bits.leading_ones()..end
            }
            None => 0..0,
        }
    }

    /// The runs of consecutive blocks, ascending.
    pub fn runs(self) -> impl Iterator<Item = Range<u32>> {
        let mut rest = self;
        core::iter::from_fn(move || {
            let run = rest.lowest_run();
            rest = rest.without(SubBlocks::of(run.clone()));
            (!run.is_empty()).then_some(run)
        })
    }
}

#[cfg(test)]
mod tests;
