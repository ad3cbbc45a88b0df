//! Taking pages of one migrate type when only others are free.
//!
//! Mirrors Linux `__rmqueue`, `__rmqueue_claim`, `__rmqueue_steal` and `try_to_claim_block`. A
//! request for a type whose lists are empty first tries to make a whole pageblock its own, the
//! largest free block first, so that foreign pages stay together; only if that does not pay it
//! takes the smallest fitting block of the other type and leaves the pageblock as it is.

use core::ops::Range;

use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn};
use crate::buddy::{Buddy, Place};
use crate::page::{Holder, Kind};
use crate::pageblock::MigrateType;
use crate::sparse::{SectionPages, Sparse};

/// Free blocks of at least this order are worth a look at their pageblock even for movable pages.
const CLAIM_ORDER: Order = Order::new(Order::PAGEBLOCK.get() / 2);

impl Buddy {
    /// Takes a block of `order` for pages of type `mt` off the free lists. Its state is the
    /// caller's to set, before the zone is unlocked.
    #[inline]
    pub(crate) fn rmqueue(&mut self, sparse: &Sparse, order: Order, mt: MigrateType) -> Option<Pfn> {
        self.rmqueue_smallest(sparse, order, mt).or_else(|| self.rmqueue_fallback(sparse, order, mt))
    }

    #[inline]
    fn rmqueue_smallest(&mut self, sparse: &Sparse, order: Order, mt: MigrateType) -> Option<Pfn> {
        let from = self.smallest(order, mt)?;
        let pfn = self.first(from, mt)?;
        let pages = sparse.pages(pfn.section()).expect("a free block's section has pages");
        self.take(sparse, pages, pfn, from, order, mt);
        Some(pfn)
    }

    #[cold]
    fn rmqueue_fallback(&mut self, sparse: &Sparse, order: Order, mt: MigrateType) -> Option<Pfn> {
        let other = match mt {
            MigrateType::Unmovable => MigrateType::Movable,
            MigrateType::Movable => MigrateType::Unmovable,
            MigrateType::Isolate => return None,
        };
        let from = self.largest(order, other)?;
        let pfn = self.first(from, other)?;
        if from >= Order::PAGEBLOCK {
            self.claim_free(sparse, pfn, from, order, mt, other);
            return Some(pfn);
        }
        let worth_a_look = mt == MigrateType::Unmovable || from >= CLAIM_ORDER;
        if worth_a_look && self.claim_pageblock(sparse, pfn, mt) {
            return self.rmqueue_smallest(sparse, order, mt);
        }
        self.rmqueue_smallest(sparse, order, other)
    }

    /// Makes the pageblocks of a free block theirs and takes `order` pages of it.
    fn claim_free(
        &mut self,
        sparse: &Sparse,
        pfn: Pfn,
        from: Order,
        order: Order,
        mt: MigrateType,
        other: MigrateType,
    ) {
        let pages = sparse.pages(pfn.section()).expect("a free block's section has pages");
        self.remove(sparse, pages, pfn, from, other);
        for block in 0..from.pages() / PAGEBLOCK_PAGES {
            pages.section().pageblocks.set_type(pfn.pageblock() + block, mt);
        }
        self.insert(sparse, pages, pfn, from, mt, Place::Head);
        self.take(sparse, pages, pfn, from, order, mt);
    }

    /// Makes the pageblock of the free block at `pfn` one of type `mt` if at least half of it is
    /// free or of that type already.
    fn claim_pageblock(&mut self, sparse: &Sparse, pfn: Pfn, mt: MigrateType) -> bool {
        let pages = sparse.pages(pfn.section()).expect("a free block's section has pages");
        let block = pfn.pageblock();
        let range = block..block + 1;
        if compatible_pages(pages, &range, mt) < PAGEBLOCK_PAGES / 2 {
            return false;
        }
        self.move_free(sparse, pages, &range, mt);
        pages.section().pageblocks.set_type(block, mt);
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
            Kind::Allocated => compatible(pages.page(*pfn).holder()),
            _ => false,
        })
        .map(|(_, state)| state.order().pages().min(PAGEBLOCK_PAGES))
        .sum()
}
