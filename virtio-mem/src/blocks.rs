//! Ranges and sets of device blocks. A device block is named by its index in the region.
//!
//! Mirrors the bitmaps of QEMU's `hw/virtio/virtio-mem.c` and of Linux's `virtio_mem.c`. [`BlockBitmap`] has the
//! device's plugged device blocks; the driver keeps runs. The bitmap works on whole words, so a request for 65535 device
//! blocks costs a thousand steps.
//!
//! Invariants of [`BlockBitmap`]: `count` is the number of set bits; bits at and above `len` are clear.

use alloc::vec;
use alloc::vec::Vec;

/// Consecutive device blocks of a region.
///
/// Invariant: the range ends below 2^64, so [`BlockRange::end`] does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    first: u64,
    count: u64,
}

impl BlockRange {
    /// The `count` device blocks from device block `first` on. Device block 0 starts at the region's address.
    ///
    /// # Panics
    /// When the range would end above `u64::MAX`, which no region reaches.
    #[must_use]
    pub const fn new(first: u64, count: u64) -> Self {
        assert!(first.checked_add(count).is_some(), "block range ends below 2^64");
        Self { first, count }
    }

    /// Index of the first device block.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// Number of device blocks.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.count
    }

    /// Index of the device block after the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first + self.count
    }

    /// The device blocks that are in both ranges.
    pub(crate) fn overlap(self, other: BlockRange) -> BlockRange {
        let first = self.first.max(other.first);
        BlockRange::new(first, self.end().min(other.end()).saturating_sub(first))
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

/// A set of device blocks of one region.
///
/// ```
/// use virtio_mem::{BlockBitmap, BlockRange};
///
/// let mut plugged = BlockBitmap::new(512);
/// plugged.set(BlockRange::new(0, 64));
/// plugged.clear(BlockRange::new(10, 1));
/// assert_eq!(plugged.runs().collect::<Vec<_>>(), [BlockRange::new(0, 10), BlockRange::new(11, 53)]);
/// assert_eq!((plugged.count(), plugged.count_in(BlockRange::new(0, 16))), (63, 15));
/// ```
#[derive(Clone, Debug)]
pub struct BlockBitmap {
    words: Vec<u64>,
    len: u64,
    count: u64,
}

impl BlockBitmap {
    /// An empty set for a region of `len` device blocks.
    #[must_use]
    pub fn new(len: u64) -> BlockBitmap {
        let words = usize::try_from(len.div_ceil(WORD)).expect("a region's bitmap fits into memory");
        BlockBitmap { words: vec![0; words], len, count: 0 }
    }

    /// The set as bytes: one bit for each device block, the first one in the lowest bit of the first byte.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // A bitmap that is in memory has no more bytes than a `usize` counts.
        bytes.truncate(self.len.div_ceil(8) as usize);
        bytes
    }

    /// The set that [`BlockBitmap::to_bytes`] wrote for a region of `len` device blocks. [`None`] when there are more or
    /// fewer bytes, or bits for device blocks that the region does not have.
    pub(crate) fn from_bytes(len: u64, bytes: &[u8]) -> Option<BlockBitmap> {
        if len.div_ceil(8) != bytes.len() as u64 {
            return None;
        }
        let word = |chunk: &[u8]| {
            let mut word = [0; size_of::<u64>()];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        };
        let words: Vec<u64> = bytes.chunks(size_of::<u64>()).map(word).collect();
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let bitmap = BlockBitmap { words, len, count };
        (bitmap.count_in(BlockRange::new(0, len)) == count).then_some(bitmap)
    }

    /// Whether no device block is in the set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of device blocks in the set.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Number of device blocks of `range` in the set.
    ///
    /// # Panics
    /// When `range` reaches beyond the region.
    #[must_use]
    pub fn count_in(&self, range: BlockRange) -> u64 {
        self.spans(range).map(|(word, mask)| u64::from((self.words[word] & mask).count_ones())).sum()
    }

    /// Puts the device blocks of `range` into the set.
    ///
    /// # Panics
    /// When `range` reaches beyond the region.
    pub fn set(&mut self, range: BlockRange) {
        for (word, mask) in self.spans(range) {
            self.count += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
    }

    /// Takes the device blocks of `range` out of the set.
    ///
    /// # Panics
    /// When `range` reaches beyond the region.
    pub fn clear(&mut self, range: BlockRange) {
        for (word, mask) in self.spans(range) {
            self.count -= u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
    }

    /// The first run of set device blocks at or after `from`. A run that began before `from` is cut off there.
    #[must_use]
    pub fn next_run(&self, from: u64) -> Option<BlockRange> {
        let first = self.next_bit(from, true)?;
        let end = self.next_bit(first, false).unwrap_or(self.len);
        Some(BlockRange::new(first, end - first))
    }

    /// The maximal runs of set device blocks, ascending.
    pub fn runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let run = self.next_run(from)?;
            from = run.end();
            Some(run)
        })
    }

    /// The first device block at or after `from` whose bit is `value`. For a clear bit this may be the device
    /// block after the region's last.
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

    /// The words that hold `range`, each with the mask of the bits that belong to `range`.
    fn spans(&self, range: BlockRange) -> impl Iterator<Item = (usize, u64)> + use<> {
        let end = range.end();
        assert!(end <= self.len, "blocks {}..{end} of a region of {} blocks", range.first(), self.len);
        let mut next = range.first();
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

#[cfg(test)]
mod tests;
