//! The buddy allocator: splitting free blocks, and merging them with their buddies.
//!
//! Mirrors the core of Linux `mm/page_alloc.c` (`__free_one_page`, `expand`, `page_del_and_expand`).
//! Every step touches heads only: merging or splitting a buddy block of any size is one store per level.
//!
//! Invariants, under the zone lock: a free block is on the list of its pageblock's type; two free
//! buddies never exist side by side, unless one of them is in an isolated pageblock.

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
    pub(crate) fn free_and_merge(&mut self, pages: SectionPages<'_>, pfn: Pfn, order: Order, place: Place) {
        let flags = &pages.section().pageblocks;
        let mut block = FreeBlock::of_pageblock(pages, pfn, order);
        let mt = block.migrate_type();
        while block.order() < Order::MAX {
            let buddy = block.pfn().buddy(block.order());
            if !pages.page(buddy).state().is(Kind::Free, block.order()) {
                break;
            }
            let mut buddy_mt = mt;
            if block.order() >= Order::PAGEBLOCK {
                buddy_mt = flags.migrate_type(buddy.pageblock());
                if (mt == MigrateType::Isolate) != (buddy_mt == MigrateType::Isolate) {
                    break;
                }
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

    /// Keeps the first 2^`to` pages of `block`, which is on no list, and frees the rest (Linux `expand`).
    #[inline]
    pub(crate) fn split_to<'s>(&mut self, block: FreeBlock<'s>, to: Order) -> FreeBlock<'s> {
        let mut kept = block;
        while kept.order() > to {
            let (lower, upper) = kept.split();
            self.insert(upper, Place::Head);
            kept = lower;
        }
        kept
    }

    /// Takes the smallest free buddy block of at least `order` off the first pageblock on the list of `list` and type
    /// `mt`. `list` is at least `order`.
    #[inline]
    pub(crate) fn take_first(&mut self, list: Order, order: Order, mt: MigrateType) -> Option<FreeBlock<'m>> {
        let first = self.first(list, mt)?;
        let pages = self.section_pages(first);
        if list >= Order::PAGEBLOCK {
            return Some(self.remove(FreeBlock::new(pages, first, list, mt)));
        }
        let area = pages.area(first.pageblock());
        let order = area.smallest(order)?;
        let pfn = first.add(area.find(order)?);
        Some(self.remove(FreeBlock::new(pages, pfn, order, mt)))
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
