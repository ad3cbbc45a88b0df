//! Taking pages of one migrate type when only others are free.
//!
//! Mirrors Linux `__rmqueue`, `__rmqueue_claim`, `__rmqueue_steal` and `try_to_claim_block`. A
//! request for a type whose lists are empty first tries to claim a whole pageblock for its type, the
//! largest free buddy block first, so that foreign pages stay together. Only if that does not pay, it takes
//! the smallest fitting buddy block of the other type and leaves the pageblock as it is.
//!
//! Invariant: a pageblock's type changes together with the lists of its free buddy blocks.

use core::ops::Range;

use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn};
use crate::free_block::FreeBlock;
use crate::page::{Holder, Kind};
use crate::pageblock::MigrateType;
use crate::sparse::SectionPages;
use crate::zone::ZoneGuard;

/// For movable pages, only free blocks of at least this order are worth a look at their pageblock.
const CLAIM_ORDER: Order = Order::new(Order::PAGEBLOCK.get() / 2);

impl<'m> ZoneGuard<'m> {
    /// Takes a buddy block of `order` for pages of type `mt` off the free lists.
    #[inline]
    pub(crate) fn rmqueue(&mut self, order: Order, mt: MigrateType) -> Option<FreeBlock<'m>> {
        self.rmqueue_smallest(order, mt).or_else(|| self.rmqueue_fallback(order, mt))
    }

    #[inline]
    fn rmqueue_smallest(&mut self, order: Order, mt: MigrateType) -> Option<FreeBlock<'m>> {
        let from = self.smallest(order, mt)?;
        let block = self.take_first(from, order, mt)?;
        Some(self.split_to(block, order))
    }

    #[cold]
    fn rmqueue_fallback(&mut self, order: Order, mt: MigrateType) -> Option<FreeBlock<'m>> {
        let other = match mt {
            MigrateType::Unmovable => MigrateType::Movable,
            MigrateType::Movable => MigrateType::Unmovable,
            MigrateType::Isolate => return None,
        };
        let from = self.largest(order, other)?;
        if from >= Order::PAGEBLOCK {
            let block = self.take_first(from, from, other)?;
            return Some(self.claim_free(block, order, mt));
        }
        let worth_a_look = mt == MigrateType::Unmovable || from >= CLAIM_ORDER;
        if worth_a_look && self.claim_pageblock(self.first(from, other)?, mt) {
            return self.rmqueue_smallest(order, mt);
        }
        self.rmqueue_smallest(order, other)
    }

    /// Makes the pageblocks of a free block ones of type `mt` and keeps 2^`order` pages of it.
    fn claim_free(&mut self, block: FreeBlock<'m>, order: Order, mt: MigrateType) -> FreeBlock<'m> {
        for pageblock in block.pageblocks() {
            block.section_pages().section().pageblocks.set_type(pageblock, mt);
        }
        self.split_to(block.retyped(mt), order)
    }

    /// Makes the pageblock of the free block at `pfn` one of type `mt` if at least half of it is
    /// free or of that type already.
    fn claim_pageblock(&mut self, pfn: Pfn, mt: MigrateType) -> bool {
        let pages = self.section_pages(pfn);
        let pageblock = pfn.pageblock();
        let range = pageblock..pageblock + 1;
        if compatible_pages(pages, &range, mt) < PAGEBLOCK_PAGES / 2 {
            return false;
        }
        self.move_free(pages, &range, mt);
        pages.section().pageblocks.set_type(pageblock, mt);
        true
    }
}

/// Pages of the pageblock `range` that are free, or held in the way that type `mt` is for.
fn compatible_pages(pages: SectionPages<'_>, range: &Range<u32>, mt: MigrateType) -> u32 {
    let compatible = |holder| match holder {
        Holder::Owned { .. } | Holder::Unclaimed => mt == MigrateType::Movable,
        _ => mt == MigrateType::Unmovable,
    };
    pages
        .blocks(range)
        .filter(|(pfn, state)| match state.kind() {
            Kind::Free => true,
            Kind::Allocated => compatible(pages.page(*pfn).holder(*state)),
            _ => false,
        })
        .map(|(_, state)| state.order().pages().min(PAGEBLOCK_PAGES))
        .sum()
}

#[cfg(test)]
mod tests;
