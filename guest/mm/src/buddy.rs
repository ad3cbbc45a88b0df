//! The buddy allocator: splitting free blocks, and merging them with their buddies.
//!
//! Mirrors the core of Linux `mm/page_alloc.c` (`__free_one_page`, `expand`, `page_del_and_expand`). Differs from Linux
//! on purpose: below the order of a pageblock, free pages are bits that make their buddy blocks by themselves (see
//! `free_area`). A pageblock whose pages are all free leaves the bits, and is merged and split as in Linux: one store for a
//! head per level.
//!
//! Invariants, under the zone lock: a pageblock is on a list of its type; two free pageblocks that are buddies never
//! exist side by side, unless one of them is isolated.

use core::ops::Range;

use crate::addr::{Order, PAGEBLOCK_ORDER, Pfn, PfnRange};
use crate::free_block::FreeBlock;
use crate::free_lists::Place;
use crate::page::{Kind, PageState};
use crate::pageblock::MigrateType;
use crate::sparse::SectionPages;
use crate::zone::ZoneGuard;

impl<'m> ZoneGuard<'m> {
    /// Frees the buddy block of `order` at `pfn`, merging it with its buddies as far as they are free
    /// (Linux `__free_one_page`). The page's state is anything but `Free`.
    #[inline(always)]
    pub(crate) fn free_and_merge(&mut self, pages: SectionPages<'_>, pfn: Pfn, order: Order, place: Place) {
        let block = FreeBlock::of_pageblock(pages, pfn, order);
        if order >= Order::PAGEBLOCK {
            return self.free_pageblocks(block, place);
        }
        block.head().set_state(PageState::new(Kind::Tail, Order::PAGE));
        if self.give(&block, place) {
            self.free_pageblocks(block.whole_pageblock(), place);
        }
    }

    /// Frees the single pages of `bits` in the aligned range of 64 pages from `pfn` on, which are tails.
    pub(crate) fn free_some(&mut self, pages: SectionPages<'_>, pfn: Pfn, bits: u64) {
        let block = FreeBlock::of_pageblock(pages, pfn, Order::PAGE);
        let is_whole = if bits.is_power_of_two() {
            // Of a single page it is enough to look at the buddy block around it.
            let page =
                FreeBlock::new(pages, pfn.add(bits.trailing_zeros()), Order::PAGE, block.migrate_type());
            self.give(&page, Place::Head)
        } else {
            self.give_some(&block, bits)
        };
        if is_whole {
            self.free_pageblocks(block.whole_pageblock(), Place::Head);
        }
    }

    /// Frees `block`, a pageblock or more, and merges it with its buddies.
    #[inline(never)]
    fn free_pageblocks(&mut self, block: FreeBlock<'_>, place: Place) {
        let (pages, mt) = (block.section_pages(), block.migrate_type());
        let flags = &pages.section().pageblocks;
        let mut block = block;
        while block.order() < Order::MAX {
            let buddy = block.pfn().buddy(block.order());
            if !pages.page(buddy).state().is(Kind::Free, block.order()) {
                break;
            }
            let buddy_mt = flags.migrate_type(buddy.pageblock());
            if (mt == MigrateType::Isolate) != (buddy_mt == MigrateType::Isolate) {
                break;
            }
            let buddy = self.remove(FreeBlock::new(pages, buddy, block.order(), buddy_mt));
            if buddy_mt != mt {
                flags.set_type(buddy.pfn().pageblock(), mt);
            }
            let (merged, upper) = block.merge(buddy.pfn());
            upper.set_state(PageState::new(Kind::Tail, Order::PAGE));
            block = merged;
        }
        self.insert(block, place);
    }

    /// Gives `range`, which is in the section, to the allocator. Its pages are in no buddy block yet and its
    /// pageblocks are movable.
    pub(crate) fn free_range(&mut self, pages: SectionPages<'_>, range: PfnRange) {
        let mut rest = range;
        while let Some((pfn, order)) = rest.chunks().next() {
            if order == Order::MAX {
                let largest = rest.before(range.end().align_down(order));
                self.append_largest(pages, largest, MigrateType::Movable);
                rest = range.from(largest.end());
            } else {
                self.free_and_merge(pages, pfn, order, Place::Tail);
                rest = range.from(pfn.add(order.pages()));
            }
        }
    }

    /// Gives pageblock `pageblock`, which is one `Offline` buddy block, to the allocator as a movable one.
    pub(crate) fn free_offline_pageblock(&mut self, pages: SectionPages<'_>, pageblock: u32) {
        let plugged = pages.section().plugged();
        assert!(plugged.contains(pageblock), "frees pageblock {pageblock} of {:?}: {plugged:?}", pages.nr());
        pages.section().pageblocks.set_type(pageblock, MigrateType::Movable);
        let (first, _) = pages.covering(pageblock);
        self.free_and_merge(pages, first, Order::PAGEBLOCK, Place::Tail);
    }

    /// Keeps the first 2^`to` pages of `block`, which is not free any more, and frees the rest (Linux `expand`). The
    /// caller gives the first page its state.
    #[inline]
    pub(crate) fn split_to<'s>(&mut self, block: FreeBlock<'s>, to: Order) -> FreeBlock<'s> {
        let mut kept = block;
        if to < Order::PAGEBLOCK && kept.order() >= Order::PAGEBLOCK {
            // From now on the pages of the pageblock are free by their bits.
            kept.head().set_state(PageState::new(Kind::Tail, Order::PAGE));
        }
        while kept.order() > to {
            let (lower, upper) = kept.split();
            self.insert(upper, Place::Head);
            kept = lower;
        }
        kept
    }

    /// Takes the first buddy block of `order` off the first pageblock on the list of `list`, at least `order`, and type
    /// `mt`; from the order of a pageblock on, the one of the order of the list.
    #[inline]
    pub(crate) fn take_first(&mut self, list: Order, order: Order, mt: MigrateType) -> Option<FreeBlock<'m>> {
        let first = self.first(list, mt)?;
        let pages = self.section_pages(first);
        if list >= Order::PAGEBLOCK {
            return Some(self.remove(FreeBlock::new(pages, first, list, mt)));
        }
        let index = pages.area(first.pageblock()).find(order);
        let index =
            index.unwrap_or_else(|| panic!("{first:?} on the list of {list:?} has no free {order:?}"));
        Some(self.remove(FreeBlock::new(pages, first.add(index), order, mt)))
    }

    /// Splits the free block of the largest order that covers pageblock `pageblock`, if there is one,
    /// so that no free block reaches beyond the pageblock.
    pub(crate) fn split_to_pageblocks(&mut self, pages: SectionPages<'_>, pageblock: u32) {
        let (head, state) = pages.covering(pageblock);
        if state.is(Kind::Free, Order::MAX) {
            let block = self.remove(FreeBlock::of_pageblock(pages, head, Order::MAX));
            let lower = self.split_to(block, Order::PAGEBLOCK);
            self.insert(lower, Place::Head);
        }
    }

    /// Moves the free blocks of the pageblocks `pageblocks`, none of which reaches beyond them, to the
    /// lists of type `to` (Linux `__move_freepages_block`). The caller sets the pageblocks' types.
    pub(crate) fn move_free(&mut self, pages: SectionPages<'_>, pageblocks: &Range<u32>, to: MigrateType) {
        for pageblock in pageblocks.clone() {
            let from = pages.section().pageblocks.migrate_type(pageblock);
            self.retype(pages.nr().start().add(pageblock << PAGEBLOCK_ORDER), from, to);
        }
    }
}

#[cfg(test)]
mod tests;
