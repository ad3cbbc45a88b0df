//! Sets of the pageblocks of one section.
//!
//! Mirrors the `subsection_map` of Linux's `struct mem_section_usage`: a pageblock (2 MiB) is the unit in
//! which a part of a memory block is plugged, unplugged or allocated. One operation on a set looks the
//! section up once.
//!
//! Invariant: a section has 64 pageblocks, so a set is one word (checked in `addr`).

use core::ops::Range;

use crate::addr::{PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, PfnRange, SECTION_PAGEBLOCKS};

/// A set of the 64 pageblocks (2 MiB each) of one section. Bit `i` is the `i`-th pageblock.
///
/// ```
/// use tidevm_mm::PageblockSet;
///
/// // All but 8 MiB of a memory block are plugged.
/// let plugged = PageblockSet::ALL.without(PageblockSet::range(16..20));
/// assert_eq!(plugged.runs().collect::<Vec<_>>(), [0..16, 20..64]);
/// assert_eq!(plugged.pages(), 60 * 512);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageblockSet(u64);

impl PageblockSet {
    /// The empty set.
    pub const NONE: Self = Self(0);
    /// All 64 pageblocks.
    pub const ALL: Self = Self(u64::MAX);
    /// The first pageblock. It holds the memmap of a memory block of one section when the memmap lies on the
    /// block.
    pub const FIRST: Self = Self(1);

    /// The set whose bit mask is `bits`.
    #[must_use]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The pageblocks `range`, which must end at or below 64.
    #[must_use]
    pub const fn range(range: Range<u32>) -> Self {
        assert!(range.start <= range.end && range.end <= SECTION_PAGEBLOCKS, "not in a section");
        let below_end = if range.end == SECTION_PAGEBLOCKS { u64::MAX } else { (1 << range.end) - 1 };
        let below_start = if range.start == SECTION_PAGEBLOCKS { u64::MAX } else { (1 << range.start) - 1 };
        Self(below_end & !below_start)
    }

    /// The pageblocks that hold any of the frames `range`, which lie in one section.
    pub(crate) fn covering(range: PfnRange) -> Self {
        let first = range.start().pageblock();
        let pages = range.pages() + range.start().get() % PAGEBLOCK_PAGES;
        Self::range(first..first + pages.div_ceil(PAGEBLOCK_PAGES))
    }

    /// The bit mask.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of pages in the pageblocks of the set.
    #[must_use]
    pub const fn pages(self) -> u32 {
        let count = self.0.count_ones();
        count << PAGEBLOCK_ORDER
    }

    /// Whether pageblock `index` is in the set.
    #[must_use]
    pub const fn contains(self, index: u32) -> bool {
        self.0 >> index & 1 != 0
    }

    /// Whether all of `other` is in the set.
    #[must_use]
    pub const fn contains_all(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Whether any of `other` is in the set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The union of the two sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The contiguous runs of the set, in ascending order.
    pub fn runs(self) -> impl Iterator<Item = Range<u32>> {
        let mut bits = self.0;
        core::iter::from_fn(move || {
            if bits == 0 {
                return None;
            }
            let start = bits.trailing_zeros();
            let end = start + (!(bits >> start)).trailing_zeros();
            bits &= !Self::range(start..end).0;
            Some(start..end)
        })
    }

    /// The set in ascending order, cut into aligned pairs where both pageblocks of a pair are in the set (a
    /// buddy block of the largest order covers a pair), and single pageblocks elsewhere.
    pub(crate) fn windows(self) -> impl Iterator<Item = Range<u32>> {
        let mut bits = self.0;
        core::iter::from_fn(move || {
            if bits == 0 {
                return None;
            }
            let start = bits.trailing_zeros();
            let pair = start & 1 == 0 && bits >> start & 2 != 0;
            bits &= bits - 1;
            if pair {
                bits &= bits - 1;
            }
            Some(start..start + 1 + u32::from(pair))
        })
    }

    /// The indices in the set, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        let mut bits = self.0;
        core::iter::from_fn(move || {
            let index = bits.trailing_zeros();
            bits &= bits.wrapping_sub(1);
            (index < u64::BITS).then_some(index)
        })
    }
}

impl AsRef<[Self]> for PageblockSet {
    /// The set of a memory block of one section.
    fn as_ref(&self) -> &[Self] {
        core::slice::from_ref(self)
    }
}
