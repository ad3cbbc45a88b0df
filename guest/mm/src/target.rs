//! Where migrated pages go.
//!
//! Takes the place of Linux `alloc_migration_target` and borrows from compaction's free scanner:
//! Movable memory is filled from its lowest address up, because it is taken away from its highest
//! address down. A page that moved once thus has the best chance not to be in the way again.
//! Taking what the free lists offer would often move it into the very block that is next.
//!
//! Sections with few free pages are passed by, and so are small free blocks; when nothing else is
//! left, what the free lists offer is taken: the rest of Movable, then the kernel's zones, then other
//! nodes, the nearest first. Isolated pageblocks are never used.
//!
//! Differs from Linux on purpose: it prefers other nodes when memory goes offline, because all of the
//! node might; here a device takes its memory away block by block, and most of the node stays.
//!
//! Pages come in stocks rather than one by one: a split and a look at the watermarks for each.

use crate::Mm;
use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange, SECTION_PAGEBLOCKS};
use crate::node::{NodeId, ZoneId};
use crate::page::{Holder, Kind, PageState, ZoneType};
use crate::page_alloc::Gfp;
use crate::platform::Platform;
use crate::sparse::{SectionPages, SectionState};
use crate::zone::{Watermark, Zone};
use crate::zonelist::Zonelist;

/// Pages taken off the free lists at a time.
const STOCK: Order = Order::new(5);
/// The search passes smaller free blocks by, and so needs to look at every eighth page only.
const STEP: Order = Order::new(3);
/// A section must have this many free pages to be searched for them.
const WORTH_A_SEARCH: u64 = PAGEBLOCK_PAGES as u64;

/// A source of pages to migrate to, for one operation. Pages that are left over are freed with it.
pub(crate) struct Targets<'m, P: Platform> {
    mm: &'m Mm<P>,
    /// Allocated single pages.
    stock: PfnRange,
    /// The zones that may have room, and those after it.
    zone: Option<ZoneId>,
    rest: Zonelist,
    /// Where the search in `zone` goes on.
    at: Pfn,
}

impl<'m, P: Platform> Targets<'m, P> {
    /// Pages as near as possible to `node`, where those are that will move.
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
        // All that is left is what CPUs keep for themselves, and what came back meanwhile.
        Some(PfnRange::new(self.mm.alloc_pages(Order::PAGE, Gfp::Movable).ok()?, 1))
    }

    /// The largest stock that the free lists of `zone` have, or will have.
    fn allocate(&self, zone: ZoneId) -> Option<PfnRange> {
        let (mm, request) = (self.mm, Gfp::Movable.request());
        let take = || {
            (0..=STOCK.get()).rev().map(Order::new).find_map(|order| {
                let first = mm.alloc_block_in(zone, order, &request, Some(Watermark::Min))?;
                mm.split_page(first, order);
                Some(PfnRange::new(first, order.pages()))
            })
        };
        mm.take_growing(zone, take, || mm.zone(zone).above(Watermark::Min, 1, ZoneType::Movable))
    }

    /// Looks for free pages of `zone`, if that is a Movable one, from `at` on and takes some.
    fn find(&mut self, zone: ZoneId) -> Option<PfnRange> {
        if zone.zone_type() != ZoneType::Movable {
            return None;
        }
        while self.at < self.mm.zone(zone).spanned().end() {
            let nr = self.at.section();
            match self.mm.sparse.pages(nr).filter(|&pages| is_worth_a_search(pages, zone)) {
                Some(pages) => {
                    for block in self.at.pageblock()..SECTION_PAGEBLOCKS {
                        if let Some(found) = self.take_in(pages, block) {
                            self.at = found.end();
                            return Some(found);
                        }
                        self.at = nr.pageblocks(&(block..block + 1)).end();
                    }
                }
                None => self.at = nr.frames().end(),
            }
        }
        None
    }

    /// Takes the first free pages of pageblock `block`, from `at` on if that is in it.
    fn take_in(&self, pages: SectionPages<'_>, block: u32) -> Option<PfnRange> {
        let mm = self.mm;
        let id = pages.section().zone();
        let zone = mm.zone(id);
        let range = pages.nr().pageblocks(&(block..block + 1));
        let mut buddy = zone.lock();
        let mt = pages.section().pageblocks.open_type(block)?;
        // Since the last search the pages there may have become part of a larger block.
        let mut pfn = self.at;
        if pfn == range.start() || pages.page(pfn).state().is_tail() {
            pfn = pages.covering(block).0;
        }
        while pfn < range.end() {
            let state = pages.page(pfn).state();
            if state.kind() == Kind::Free && state.order() >= STEP {
                let order = state.order().min(STOCK);
                if !zone.above(Watermark::Min, order.pages(), ZoneType::Movable) {
                    return None;
                }
                buddy.take(&mm.sparse, pages, pfn, state.order(), order, mt);
                let found = PfnRange::new(pfn, order.pages());
                for offset in 0..order.pages() {
                    let page = pages.page(pfn.add(offset));
                    page.set_holder(Holder::Unclaimed.word());
                    page.set_state(PageState::new(Kind::Allocated, Order::PAGE, id));
                }
                return Some(found);
            }
            // All that begins on the way there is smaller.
            pfn = pfn.add(state.order().max(STEP).pages());
        }
        None
    }
}

impl<P: Platform> Mm<P> {
    /// Pages that [`Targets`] could give now, isolated pageblocks left out.
    pub(crate) fn room_for_movable(&self) -> u64 {
        let room = |zone: &Zone| {
            let kept = zone.watermark(Watermark::Min) + zone.lowmem_reserve(ZoneType::Movable);
            (zone.deferred() + zone.free()).saturating_sub(kept) + self.pcp_pages(zone.id())
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
