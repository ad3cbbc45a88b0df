//! Targets: the pages to which migrated pages go.
//!
//! Takes the place of Linux `alloc_migration_target` and borrows from compaction's free scanner. Movable
//! memory is filled from its lowest address up, because it is taken away from its highest address down.
//! So a page that moved once is the least likely to be in the way again. The free lists would often offer
//! a page of the very memory block that is taken away next.
//!
//! The search skips sections with few free pages, and small free buddy blocks. When it finds nothing,
//! the free lists serve the request: first the rest of Movable, then the kernel's zones, then other
//! nodes, the nearest first.
//!
//! Differs from Linux on purpose: Linux prefers other nodes when memory goes offline, because all of the
//! node might. Here a device takes its memory away memory block by memory block, and most of the node
//! stays.
//!
//! Pages come in stocks rather than one by one, so that each stock costs one split and one look at the
//! watermarks.
//!
//! Invariant: a page of an isolated pageblock is never a target.

use crate::Mm;
use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange, SECTION_PAGEBLOCKS};
use crate::free_block::FreeBlock;
use crate::grow::GrowZone;
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::page::{Holder, Kind};
use crate::page_alloc::Gfp;
use crate::platform::Platform;
use crate::sparse::{SectionPages, SectionState};
use crate::zone::{Watermark, Zone};
use crate::zonelist::Zonelist;

/// Pages taken off the free lists at a time.
const STOCK: Order = Order::new(5);
/// The search skips smaller free buddy blocks, so it looks at every eighth page only.
const STEP: Order = Order::new(3);
/// A section must have this many free pages to be searched for them.
const WORTH_A_SEARCH: u64 = PAGEBLOCK_PAGES as u64;

/// A source of pages to migrate to, for one operation. Dropping it frees the pages that are left over.
pub(crate) struct Targets<'m, P: Platform> {
    mm: &'m Mm<P>,
    /// Allocated single pages.
    stock: PfnRange,
    /// The zone that pages come from now.
    zone: Option<ZoneId>,
    /// The zones after it.
    rest: Zonelist,
    /// Where the search in `zone` goes on.
    at: Pfn,
}

impl<'m, P: Platform> Targets<'m, P> {
    /// A source of pages as near as possible to `node`, the node of the pages that will move.
    pub(crate) fn new(mm: &'m Mm<P>, node: NodeId) -> Self {
        let rest = mm.nodes.zonelist(node, ZoneType::Movable);
        let mut targets =
            Self { mm, stock: PfnRange::new(Pfn::new(0), 0), zone: None, rest, at: Pfn::new(0) };
        targets.next_zone();
        targets
    }

    fn next_zone(&mut self) {
        self.zone = self.rest.next();
        self.at = self.zone.map_or(self.at, |zone| self.mm.zone(zone).spanned().start());
    }

    /// A single page, allocated; `None` when there is no memory.
    pub(crate) fn next(&mut self) -> Option<Pfn> {
        if self.stock.is_empty() {
            self.stock = self.restock()?;
        }
        let pfn = self.stock.start();
        self.stock = self.stock.from(pfn.add(1));
        Some(pfn)
    }

    fn restock(&mut self) -> Option<PfnRange> {
        while let Some(zone) = self.zone {
            if let Some(found) = self.find(zone).or_else(|| self.allocate(zone)) {
                return Some(found);
            }
            self.next_zone();
        }
        // The only pages left are on per-CPU lists, or were freed meanwhile.
        Some(PfnRange::new(self.mm.alloc_pages(Order::PAGE, Gfp::Movable).ok()?, 1))
    }

    /// The largest stock that the free lists of `zone` have, after deferred memory joined them if needed.
    fn allocate(&self, zone: ZoneId) -> Option<PfnRange> {
        let (mm, request) = (self.mm, Gfp::Movable.request());
        let take = || {
            (0..=STOCK.get()).rev().map(Order::new).find_map(|order| {
                let first = mm.alloc_buddy_block_in(zone, order, &request, Some(Watermark::Min))?;
                mm.split_page(first, order);
                Some(PfnRange::new(first, order.pages()))
            })
        };
        mm.take_growing(zone, take, || mm.zone(zone).above(Watermark::Min, 1, ZoneType::Movable))
    }

    /// Takes free pages of `zone`, from `at` on, if it is a Movable zone.
    fn find(&mut self, zone: ZoneId) -> Option<PfnRange> {
        if zone.zone_type() != ZoneType::Movable {
            return None;
        }
        while self.at < self.mm.zone(zone).spanned().end() {
            let nr = self.at.section();
            match self.mm.sparse.pages(nr).filter(|&pages| is_worth_a_search(pages, zone)) {
                Some(pages) => {
                    for pageblock in self.at.pageblock()..SECTION_PAGEBLOCKS {
                        if let Some(found) = self.take_in(pages, pageblock) {
                            self.at = found.end();
                            return Some(found);
                        }
                        self.at = nr.pageblocks(&(pageblock..pageblock + 1)).end();
                    }
                }
                None => self.at = nr.frames().end(),
            }
        }
        None
    }

    /// Takes the first free pages of pageblock `pageblock`, from `at` on if that is in it.
    fn take_in(&self, pages: SectionPages<'_>, pageblock: u32) -> Option<PfnRange> {
        let mm = self.mm;
        let id = pages.section().zone();
        let range = pages.nr().pageblocks(&(pageblock..pageblock + 1));
        let off = mm.irq_off();
        let mut zone = mm.lock_zone(id, &off);
        let mt = pages.section().pageblocks.open_type(pageblock)?;
        // Since the last search the page at `at` may have become part of a larger buddy block.
        let mut pfn = self.at;
        if pfn == range.start() || pages.page(pfn).state().is_tail() {
            pfn = pages.covering(pageblock).0;
        }
        while pfn < range.end() {
            let state = pages.block(pfn);
            if state.kind() == Kind::Free && state.order() >= STEP {
                let order = state.order().min(STOCK);
                if !mm.zone(id).above(Watermark::Min, order.pages(), ZoneType::Movable) {
                    return None;
                }
                let block = zone.remove(FreeBlock::new(pages, pfn, state.order(), mt));
                let block = zone.split_to(block, order);
                return Some(zone.allocate_pages(block, Holder::Unclaimed));
            }
            // Every buddy block that begins in between is smaller.
            pfn = pfn.add(state.order().max(STEP).pages());
        }
        None
    }
}

impl<P: Platform> Mm<P> {
    /// Pages that [`Targets`] could give now, without isolated pageblocks.
    pub(crate) fn room_for_movable(&self) -> u64 {
        let room = |zone: &Zone| {
            let kept = zone.watermark(Watermark::Min) + zone.lowmem_reserve(ZoneType::Movable);
            zone.deferred_and_free().iter().sum::<u64>().saturating_sub(kept) + self.pcp_pages(zone.id())
        };
        self.zones().map(room).sum()
    }
}

fn is_worth_a_search(pages: SectionPages<'_>, zone: ZoneId) -> bool {
    let section = pages.section();
    section.state() == SectionState::Online && section.zone() == zone && section.free() >= WORTH_A_SEARCH
}

impl<P: Platform> Drop for Targets<'_, P> {
    fn drop(&mut self) {
        self.mm.free_contig_range(self.stock);
    }
}
