//! Ranges of addresses, of frames and of sections.
//!
//! Takes the place of pairs of `start` and `end` or `nr_pages` in Linux. Differs from Linux on purpose: the
//! fields are private, so that a range that ends before it starts cannot be made.
//!
//! Invariant: the start is not above the end, and the end is a valid address or number.

use crate::addr::{MAX_PAGE_ORDER, Order, PAGE_SIZE, Pfn, PhysAddr, SECTION_PAGES, SectionNr};

/// The methods that ranges of addresses and ranges of frames have in common.
macro_rules! impl_range {
    ($Range:ident of $Point:ident) => {
        impl $Range {
            /// From `start` to just before `end`; none if `end` lies before `start`.
            #[must_use]
            pub const fn between(start: $Point, end: $Point) -> Option<Self> {
                if start.0 <= end.0 { Some(Self { start, end }) } else { None }
            }

            /// The start of the range.
            #[inline]
            #[must_use]
            pub const fn start(self) -> $Point {
                self.start
            }

            /// The end of the range, which is not part of it.
            #[inline]
            #[must_use]
            pub const fn end(self) -> $Point {
                self.end
            }

            /// Whether nothing is in the range.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.end.0 == self.start.0
            }

            /// The part that both ranges have.
            #[must_use]
            pub fn intersect(self, other: Self) -> Self {
                let start = self.start.max(other.start);
                Self { start, end: self.end.min(other.end).max(start) }
            }

            /// The smallest range that holds both ranges.
            #[must_use]
            pub fn hull(self, other: Self) -> Self {
                Self { start: self.start.min(other.start), end: self.end.max(other.end) }
            }

            /// The part below `at`.
            #[must_use]
            pub fn before(self, at: $Point) -> Self {
                Self { start: self.start, end: self.end.min(at).max(self.start) }
            }

            /// The part from `at` on.
            #[must_use]
            pub fn from(self, at: $Point) -> Self {
                Self { start: self.start.max(at).min(self.end), end: self.end }
            }
        }
    };
}

impl_range!(PhysRange of PhysAddr);
impl_range!(PfnRange of Pfn);

/// A range of guest-physical bytes, possibly empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysRange {
    start: PhysAddr,
    end: PhysAddr,
}

impl PhysRange {
    /// `size` bytes from `start`.
    ///
    /// # Panics
    /// When the range ends beyond the 16 TiB that frame numbers reach.
    #[must_use]
    pub const fn new(start: PhysAddr, size: u64) -> Self {
        let end = start.0.checked_add(size).expect("the range ends beyond the largest address");
        Self { start, end: PhysAddr::new(end) }
    }

    /// Length in bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// The frames that lie wholly inside the range: the ones that can be given out.
    #[must_use]
    pub const fn inner_frames(self) -> PfnRange {
        let start = self.start.align_up(PAGE_SIZE).pfn();
        let end = self.end.pfn();
        PfnRange { start, end: if end.0 < start.0 { start } else { end } }
    }

    /// The frames that hold any byte of the range: the ones that must be kept back.
    #[must_use]
    pub const fn outer_frames(self) -> PfnRange {
        PfnRange { start: self.start.pfn(), end: self.end.align_up(PAGE_SIZE).pfn() }
    }
}

/// A range of frames, possibly empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfnRange {
    start: Pfn,
    end: Pfn,
}

impl PfnRange {
    /// `pages` frames from `start`.
    ///
    /// # Panics
    /// When the range ends beyond the largest frame number.
    #[must_use]
    pub const fn new(start: Pfn, pages: u32) -> Self {
        let end = start.0.checked_add(pages).expect("the range ends beyond the largest frame number");
        Self { start, end: Pfn(end) }
    }

    /// Number of frames.
    #[must_use]
    pub const fn pages(self) -> u32 {
        self.end.0 - self.start.0
    }

    /// Whether `pfn` is one of the frames.
    #[must_use]
    pub const fn contains(self, pfn: Pfn) -> bool {
        self.start.0 <= pfn.0 && pfn.0 < self.end.0
    }

    /// All frames, ascending.
    pub fn frames(self) -> impl DoubleEndedIterator<Item = Pfn> + ExactSizeIterator + Clone {
        (self.start.0..self.end.0).map(Pfn)
    }

    /// The range cut into the largest naturally aligned buddy blocks, at most [`Order::MAX`], in order.
    pub fn chunks(self) -> impl Iterator<Item = (Pfn, Order)> {
        let mut at = self.start.0;
        let end = self.end.0;
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let fits = (end - at).ilog2().min(u32::from(MAX_PAGE_ORDER));
            let order = Order((at.trailing_zeros().min(fits)) as u8);
            let chunk = (Pfn(at), order);
            at += order.pages();
            Some(chunk)
        })
    }
}

/// A range of sections, possibly empty: where memory blocks are added and removed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionRange {
    start: SectionNr,
    end: SectionNr,
}

impl SectionRange {
    /// `count` sections from `first` on; none if a section would have too large a number.
    #[must_use]
    pub const fn new(first: SectionNr, count: u32) -> Option<Self> {
        match first.0.checked_add(count) {
            Some(end) => Some(Self { start: first, end: SectionNr(end) }),
            None => None,
        }
    }

    /// First section.
    #[must_use]
    pub const fn first(self) -> SectionNr {
        self.start
    }

    /// First section after the range.
    #[must_use]
    pub const fn end(self) -> SectionNr {
        self.end
    }

    /// Number of sections.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.end.0 - self.start.0
    }

    /// Whether there is no section in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end.0 == self.start.0
    }

    /// All sections, ascending.
    pub fn sections(self) -> impl Iterator<Item = SectionNr> + Clone {
        (self.start.0..self.end.0).map(SectionNr)
    }

    /// All frames of its sections.
    #[must_use]
    pub const fn frames(self) -> PfnRange {
        PfnRange::new(self.start.start(), self.len() * SECTION_PAGES)
    }

    /// Whether `nr` is one of the sections.
    pub(crate) fn contains(self, nr: SectionNr) -> bool {
        self.start <= nr && nr < self.end
    }

    /// Whether a section is in both ranges.
    pub(crate) fn intersects(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The sections below `nr`.
    pub(crate) fn before(self, nr: SectionNr) -> Self {
        Self { start: self.start, end: self.end.min(nr).max(self.start) }
    }

    /// The sections from `nr` on.
    pub(crate) fn from(self, nr: SectionNr) -> Self {
        Self { start: self.start.max(nr).min(self.end), end: self.end }
    }

    /// The sections of both ranges, and those between them.
    pub(crate) fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

impl From<SectionNr> for SectionRange {
    /// The one section.
    fn from(nr: SectionNr) -> Self {
        Self { start: nr, end: SectionNr(nr.0 + 1) }
    }
}
