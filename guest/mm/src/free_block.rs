//! One free buddy block as a value: where it begins, its order, and the list that it belongs on.
//!
//! Takes the place of the arguments that Linux hands down through `__free_one_page`, `expand` and
//! `__move_freepages_block` one by one.
//!
//! Invariants, under the zone lock: a value that [`FreeLists::remove`] returned is on no list, and
//! nothing else refers to its pages. The buddy block is put on a list or allocated before the zone is
//! unlocked.
//!
//! [`FreeLists::remove`]: crate::free_lists::FreeLists::remove

use core::ops::Range;

use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange};
use crate::free_area::FreeArea;
use crate::page::PageRef;
use crate::pageblock::MigrateType;
use crate::sparse::SectionPages;

/// 2^order free pages, aligned to their size, all in one section.
#[must_use = "these pages are lost until the block is on a list or allocated"]
pub(crate) struct FreeBlock<'s> {
    pages: SectionPages<'s>,
    pfn: Pfn,
    order: Order,
    mt: MigrateType,
}

impl<'s> FreeBlock<'s> {
    /// The buddy block of `order` at `pfn`, which is in the section, as one of type `mt`.
    #[inline]
    pub(crate) fn new(pages: SectionPages<'s>, pfn: Pfn, order: Order, mt: MigrateType) -> Self {
        Self { pages, pfn, order, mt }
    }

    /// The buddy block of `order` at `pfn`, which is in the section, as one of its pageblock's type.
    #[inline]
    pub(crate) fn of_pageblock(pages: SectionPages<'s>, pfn: Pfn, order: Order) -> Self {
        Self::new(pages, pfn, order, pages.section().pageblocks.migrate_type(pfn.pageblock()))
    }

    /// The pages of its section.
    #[inline]
    pub(crate) fn section_pages(&self) -> SectionPages<'s> {
        self.pages
    }

    /// Its first frame.
    #[inline]
    pub(crate) fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// log2 of its number of pages.
    #[inline]
    pub(crate) fn order(&self) -> Order {
        self.order
    }

    /// The type of the list that it belongs on.
    #[inline]
    pub(crate) fn migrate_type(&self) -> MigrateType {
        self.mt
    }

    /// Its first page.
    #[inline]
    pub(crate) fn head(&self) -> PageRef<'s> {
        self.pages.page(self.pfn)
    }

    /// The free buddy blocks of the pageblock that it lies or begins in.
    #[inline]
    pub(crate) fn area(&self) -> FreeArea<'s> {
        self.pages.area(self.pfn.pageblock())
    }

    /// Its frames.
    pub(crate) fn frames(&self) -> PfnRange {
        PfnRange::new(self.pfn, self.order.pages())
    }

    /// The pageblocks that it covers or lies in.
    pub(crate) fn pageblocks(&self) -> Range<u32> {
        let first = self.pfn.pageblock();
        first..first + (self.order.pages() / PAGEBLOCK_PAGES).max(1)
    }

    /// Its lower and its upper half. The order is not 0.
    #[inline]
    pub(crate) fn split(self) -> (Self, Self) {
        let order = self.order.down();
        (Self { order, ..self }, Self { order, pfn: self.pfn.add(order.pages()), ..self })
    }

    /// The buddy block that it makes with its buddy, which begins at `buddy`, and the head of the upper half,
    /// which becomes a tail.
    #[inline]
    pub(crate) fn merge(self, buddy: Pfn) -> (Self, PageRef<'s>) {
        let upper = self.pages.page(self.pfn.max(buddy));
        (Self { pfn: self.pfn.min(buddy), order: self.order.up(), ..self }, upper)
    }

    /// The pageblock that it lies in.
    pub(crate) fn whole_pageblock(&self) -> Self {
        Self { pfn: self.pfn.align_down(Order::PAGEBLOCK), order: Order::PAGEBLOCK, ..*self }
    }

    /// The same buddy block as one of type `mt`.
    pub(crate) fn retyped(self, mt: MigrateType) -> Self {
        Self { mt, ..self }
    }
}
