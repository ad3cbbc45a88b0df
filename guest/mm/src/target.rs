//! Where migrated pages go.
//!
//! Takes the place of Linux `alloc_migration_target` and borrows from compaction's free scanner:
//! Movable memory is filled from its lowest address up, because it is taken away from its highest
//! address down. A page that moved once thus has the best chance not to be in the way again.
//! Taking what the free lists offer would often move it into the very block that is next.
//!
//! Sections with few free pages are passed by, and so are small free blocks; when nothing else is
//! left, an ordinary allocation decides: the rest of Movable, then the kernel's zones. Isolated
//! pageblocks are never used.
//!
//! Pages come in stocks rather than one by one: a split and a look at the watermarks for each.

use crate::Mm;
use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange, SECTION_PAGEBLOCKS};
use crate::page::{Holder, Kind, PageState, ZoneType};
use crate::page_alloc::Gfp;
use crate::platform::Platform;
use crate::sparse::{SectionPages, SectionState};
use crate::zone::Watermark;

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
    /// Where the search goes on.
    at: Pfn,
}

impl<'m, P: Platform> Targets<'m, P> {
    pub(crate) fn new(mm: &'m Mm<P>) -> Self {
        let at = mm.zones[ZoneType::Movable.index()].spanned().start;
        Self { mm, stock: PfnRange::new(at, 0), at }
    }

    /// A single page, allocated; `None` when there is no memory.
    pub(crate) fn next(&mut self) -> Option<Pfn> {
        if self.stock.is_empty() {
            self.stock = self.find().or_else(|| self.allocate())?;
        }
        let pfn = self.stock.start;
        self.stock.start = pfn.add(1);
        Some(pfn)
    }

    /// The largest stock that the highest zone with room has.
    fn allocate(&self) -> Option<PfnRange> {
        let (mm, request) = (self.mm, Gfp::Movable.request());
        for zone in ZoneType::ALL.into_iter().rev() {
            for order in (0..=STOCK.get()).rev().map(Order::new) {
                if let Some(first) = mm.alloc_block_in(zone, order, &request, Some(Watermark::Min)) {
                    mm.split_page(first, order);
                    return Some(PfnRange::new(first, order.pages()));
                }
            }
        }
        // All that is left is what CPUs keep for themselves.
        Some(PfnRange::new(mm.alloc_pages(Order::PAGE, Gfp::Movable).ok()?, 1))
    }

    /// Looks for free pages from `at` on and takes some.
    fn find(&mut self) -> Option<PfnRange> {
        let zone = &self.mm.zones[ZoneType::Movable.index()];
        while self.at < zone.spanned().end {
            let nr = self.at.section();
            match self.mm.sparse.pages(nr).filter(|&pages| is_worth_a_search(pages)) {
                Some(pages) => {
                    for block in self.at.pageblock()..SECTION_PAGEBLOCKS {
                        if let Some(found) = self.take_in(pages, block) {
                            self.at = found.end;
                            return Some(found);
                        }
                        self.at = nr.pageblocks(&(block..block + 1)).end;
                    }
                }
                None => self.at = nr.frames().end,
            }
        }
        None
    }

    /// Takes the first free pages of pageblock `block`, from `at` on if that is in it.
    fn take_in(&self, pages: SectionPages<'_>, block: u32) -> Option<PfnRange> {
        let mm = self.mm;
        let zone = &mm.zones[ZoneType::Movable.index()];
        let range = pages.nr().pageblocks(&(block..block + 1));
        let mut buddy = zone.lock();
        let mt = pages.section().pageblocks.open_type(block)?;
        // Since the last search the pages there may have become part of a larger block.
        let mut pfn = self.at;
        if pfn == range.start || pages.page(pfn).state().is_tail() {
            pfn = pages.covering(block).0;
        }
        while pfn < range.end {
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
                    page.set_state(PageState::new(Kind::Allocated, Order::PAGE, ZoneType::Movable));
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
        let room = |zone: ZoneType| {
            let of = &self.zones[zone.index()];
            let kept = of.watermark(Watermark::Min) + of.lowmem_reserve(ZoneType::Movable);
            of.free().saturating_sub(kept) + self.pcp_pages(zone)
        };
        ZoneType::ALL.into_iter().map(room).sum()
    }
}

fn is_worth_a_search(pages: SectionPages<'_>) -> bool {
    let section = pages.section();
    section.state() == SectionState::Online
        && section.zone() == ZoneType::Movable
        && section.free() >= WORTH_A_SEARCH
}

impl<P: Platform> Drop for Targets<'_, P> {
    fn drop(&mut self) {
        self.mm.free_contig_range(self.stock);
    }
}
