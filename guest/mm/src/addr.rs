//! Addresses, frame numbers, section numbers and the sizes that everything else is counted in.
//!
//! Alignment arithmetic is done here and in [`range`] only. Mirrors Linux `include/linux/pfn.h` and the
//! section arithmetic of `include/linux/mmzone.h`, with one type per meaning instead of `unsigned long` for
//! all of them.
//!
//! Invariant: a [`Pfn`] has 32 bits, which reaches 16 TiB; the links in [`Page`](crate::Page) hold no more.

mod range;

pub use range::{PfnRange, PhysRange, SectionRange};

use core::ops::Range;

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Largest order of the buddy allocator: 4 MiB.
pub const MAX_PAGE_ORDER: u8 = 10;
/// Order of a pageblock: 2 MiB.
pub const PAGEBLOCK_ORDER: u8 = 9;
/// Pages in a pageblock.
pub const PAGEBLOCK_PAGES: u32 = 1 << PAGEBLOCK_ORDER;
/// log2 of the pages in a section.
pub const SECTION_PAGES_SHIFT: u32 = 15;
/// Pages in a section: 128 MiB, the unit of the memmap. A memory block is one or more sections.
pub const SECTION_PAGES: u32 = 1 << SECTION_PAGES_SHIFT;
/// Bytes in a section.
pub const SECTION_SIZE: u64 = (SECTION_PAGES as u64) << PAGE_SHIFT;
/// Pageblocks in a section.
pub const SECTION_PAGEBLOCKS: u32 = SECTION_PAGES >> PAGEBLOCK_ORDER;
/// Pages that hold the memmap of one section: 32768 x 64 B = 2 MiB, exactly one pageblock.
pub const MEMMAP_PAGES: u32 = PAGEBLOCK_PAGES;

const _: () = assert!(SECTION_PAGEBLOCKS == u64::BITS);

/// A guest-physical address in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address `bytes`, which must be below 16 TiB.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        assert!(bytes >> PAGE_SHIFT <= u32::MAX as u64, "beyond the 16 TiB that frame numbers reach");
        Self(bytes)
    }

    /// The last page of the 16 TiB that frame numbers reach.
    pub(crate) const MAX: Self = Self((u32::MAX as u64) << PAGE_SHIFT);

    /// The address in bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether the address is a multiple of `align`, a power of two.
    #[must_use]
    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }

    /// The nearest multiple of `align`, a power of two, at or below the address.
    #[must_use]
    pub const fn align_down(self, align: u64) -> Self {
        Self(self.0 & !(align - 1))
    }

    /// The nearest multiple of `align`, a power of two, at or above the address.
    #[must_use]
    pub const fn align_up(self, align: u64) -> Self {
        Self::new((self.0 + (align - 1)) & !(align - 1))
    }

    /// The frame that holds the address.
    #[must_use]
    pub const fn pfn(self) -> Pfn {
        Pfn((self.0 >> PAGE_SHIFT) as u32)
    }
}

/// A page frame number: a guest-physical address divided by the page size.
///
/// Frame 0 is never given to the allocator, so that the number 0 can mean "no page" in links.
///
/// ```
/// use tidevm_mm::{Order, Pfn, PhysAddr, SectionNr};
///
/// let pfn = PhysAddr::new((4 << 30) + 0x3000).pfn();
/// assert_eq!((pfn.get(), pfn.section()), (0x10_0003, SectionNr::new(32)));
/// assert_eq!(pfn.buddy(Order::PAGE), Pfn::new(0x10_0002));
/// assert_eq!(pfn.align_down(Order::PAGEBLOCK).address(), PhysAddr::new(4 << 30));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(u32);

impl Pfn {
    /// Frame number `number`.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Address of the frame's first byte.
    #[must_use]
    pub const fn address(self) -> PhysAddr {
        PhysAddr((self.0 as u64) << PAGE_SHIFT)
    }

    /// The frame `pages` after this one.
    #[must_use]
    pub const fn add(self, pages: u32) -> Self {
        Self(self.0 + pages)
    }

    /// Whether a buddy block of `order` may start here.
    #[must_use]
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.pages() - 1) == 0
    }

    /// First frame of the naturally aligned buddy block of `order` that holds this frame.
    #[must_use]
    pub const fn align_down(self, order: Order) -> Self {
        Self(self.0 & !(order.pages() - 1))
    }

    /// The other half of the next larger buddy block (Linux `__find_buddy_pfn`).
    #[must_use]
    pub const fn buddy(self, order: Order) -> Self {
        Self(self.0 ^ order.pages())
    }

    /// The section that holds the frame.
    #[must_use]
    pub const fn section(self) -> SectionNr {
        SectionNr(self.0 >> SECTION_PAGES_SHIFT)
    }

    /// Index of the frame in its section, below [`SECTION_PAGES`].
    #[must_use]
    pub const fn in_section(self) -> usize {
        (self.0 & (SECTION_PAGES - 1)) as usize
    }

    /// Index of the frame in its pageblock, below [`PAGEBLOCK_PAGES`].
    #[must_use]
    pub(crate) const fn in_pageblock(self) -> u32 {
        self.0 & (PAGEBLOCK_PAGES - 1)
    }

    /// Index of the frame's pageblock in its section, below [`SECTION_PAGEBLOCKS`].
    #[must_use]
    pub const fn pageblock(self) -> u32 {
        (self.0 >> PAGEBLOCK_ORDER) & (SECTION_PAGEBLOCKS - 1)
    }
}

/// log2 of a number of pages, at most [`MAX_PAGE_ORDER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const PAGE: Self = Self(0);
    /// A pageblock: 512 pages, 2 MiB.
    pub const PAGEBLOCK: Self = Self(PAGEBLOCK_ORDER);
    /// The largest buddy block: 1024 pages, 4 MiB.
    pub const MAX: Self = Self(MAX_PAGE_ORDER);
    /// Number of orders.
    pub const COUNT: usize = MAX_PAGE_ORDER as usize + 1;

    /// The order `order`.
    ///
    /// # Panics
    /// When it is larger than [`MAX_PAGE_ORDER`].
    #[must_use]
    pub const fn new(order: u8) -> Self {
        assert!(order <= MAX_PAGE_ORDER, "order out of range");
        Self(order)
    }

    /// log2 of the pages.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Pages in a buddy block of this order.
    #[must_use]
    pub const fn pages(self) -> u32 {
        1 << self.0
    }

    /// The next larger order; callers stay below [`Order::MAX`].
    pub(crate) const fn up(self) -> Self {
        Self(self.0 + 1)
    }

    /// The next smaller order; callers stay above [`Order::PAGE`].
    pub(crate) const fn down(self) -> Self {
        Self(self.0 - 1)
    }

    /// Index into tables with one entry per order.
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Number of a section of 128 MiB (Linux `section_nr`): its first frame divided by the pages in a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionNr(u32);

impl SectionNr {
    /// Section number `number`.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The section that holds `address`.
    #[must_use]
    pub const fn of(address: PhysAddr) -> Self {
        address.pfn().section()
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// First frame.
    #[must_use]
    pub const fn start(self) -> Pfn {
        Pfn(self.0 << SECTION_PAGES_SHIFT)
    }

    /// All its frames.
    #[must_use]
    pub const fn frames(self) -> PfnRange {
        PfnRange::new(self.start(), SECTION_PAGES)
    }

    /// The frames of the pageblocks `blocks`, which are indices in the section.
    #[must_use]
    pub const fn pageblocks(self, blocks: &Range<u32>) -> PfnRange {
        let start = self.start().add(blocks.start << PAGEBLOCK_ORDER);
        PfnRange::new(start, (blocks.end - blocks.start) << PAGEBLOCK_ORDER)
    }
}

#[cfg(test)]
mod tests;
