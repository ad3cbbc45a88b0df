//! The two kinds of ranges in which memory is named, and the only conversion between them.
//!
//! A [`GuestRange`] is what the guest sees: guest-physical addresses. An [`OffsetRange`] is where the bytes
//! are on the host: offsets into a [`Mapping`](super::mapping::Mapping). Both are plain numbers, so only
//! types keep one from being taken for the other.
//!
//! Invariants: no range is empty; a range ends at `u64::MAX` at most.

use std::fmt;
use std::ops::Range;

use vm_memory::GuestAddress;

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    start: u64,
    end: u64,
}

/// A range of offsets into a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    start: u64,
    end: u64,
}

impl GuestRange {
    /// The range of `addresses`. [`None`] when it is empty.
    #[must_use]
    pub fn new(addresses: Range<u64>) -> Option<Self> {
        (addresses.start < addresses.end).then_some(Self { start: addresses.start, end: addresses.end })
    }

    /// The first address.
    #[must_use]
    pub fn start(self) -> GuestAddress {
        GuestAddress(self.start)
    }

    /// The address after the last one.
    #[must_use]
    pub fn end(self) -> GuestAddress {
        GuestAddress(self.end)
    }

    /// Number of bytes.
    #[must_use]
    pub fn size(self) -> u64 {
        self.end - self.start
    }

    /// Whether `address` is in the range.
    #[must_use]
    pub fn contains(self, address: GuestAddress) -> bool {
        (self.start..self.end).contains(&address.0)
    }

    /// The parts below and above `hole`, as far as there are any.
    pub fn without(self, hole: Range<u64>) -> impl Iterator<Item = Self> {
        let below = Self::new(self.start..self.end.min(hole.start));
        below.into_iter().chain(Self::new(self.start.max(hole.end)..self.end))
    }

    /// The offsets of `part` in a mapping whose offset 0 the guest sees at the start of `self`. [`None`] when
    /// `part` is not inside `self`.
    #[must_use]
    pub fn offsets_of(self, part: Self) -> Option<OffsetRange> {
        let inside = self.start <= part.start && part.end <= self.end;
        inside.then(|| OffsetRange { start: part.start - self.start, end: part.end - self.start })
    }

    /// The addresses of `offsets` in a mapping whose offset 0 the guest sees at the start of `self`.
    ///
    /// # Panics
    /// When `offsets` reach beyond `self`: both are made by this crate.
    #[must_use]
    pub fn addresses_of(self, offsets: OffsetRange) -> Self {
        assert!(offsets.end <= self.size(), "offsets {offsets} of {self}");
        Self { start: self.start + offsets.start, end: self.start + offsets.end }
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl OffsetRange {
    /// The range of `offsets`. [`None`] when it is empty.
    #[must_use]
    pub fn new(offsets: Range<u64>) -> Option<Self> {
        (offsets.start < offsets.end).then_some(Self { start: offsets.start, end: offsets.end })
    }

    /// The first offset.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// The offset after the last one.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes.
    #[must_use]
    pub fn size(self) -> u64 {
        self.end - self.start
    }

    /// The least range of whole units that contains `self`. The end of the mapping is a multiple of `unit`.
    #[must_use]
    pub fn widened_to(self, unit: u64) -> Self {
        Self { start: self.start - self.start % unit, end: self.end.next_multiple_of(unit) }
    }

    /// The least range that contains both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::{GuestRange, OffsetRange};

    #[test]
    fn nothing_is_no_range() {
        let backwards = std::ops::Range { start: 2, end: 1 };
        for empty in [3..3, backwards] {
            assert_eq!((GuestRange::new(empty.clone()), OffsetRange::new(empty)), (None, None));
        }
    }

    #[test]
    fn addresses_and_offsets_lead_to_each_other_inside_a_region() {
        let region = GuestRange::new(100..200).unwrap();
        let part = GuestRange::new(120..130).unwrap();
        let offsets = OffsetRange::new(20..30);
        assert_eq!(region.offsets_of(part), offsets);
        assert_eq!(region.addresses_of(offsets.unwrap()), part);
        for outside in [99..101, 199..201, 0..50, 250..300] {
            assert_eq!(region.offsets_of(GuestRange::new(outside).unwrap()), None);
        }
    }

    #[test]
    fn a_hole_leaves_what_is_around_it() {
        let without = |addresses| {
            let range = GuestRange::new(addresses).unwrap();
            range.without(10..20).map(|range| (range.start().0, range.end().0)).collect::<Vec<_>>()
        };
        assert_eq!(without(0..30), [(0, 10), (20, 30)]);
        assert_eq!(without(12..18), []);
        assert_eq!(without(25..30), [(25, 30)]);
    }
}
