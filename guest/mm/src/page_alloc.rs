//! Allocating and freeing: per-CPU list, then buddy allocator, then the next zone.
//!
//! Mirrors Linux `get_page_from_freelist`, `rmqueue`, `free_frozen_pages` and `split_page`. Differs from
//! Linux on purpose: there is no reclaim, so a request that no zone can serve above its `min` watermark
//! is an error at once.
//!
//! Movable pages come from Movable, then Normal, then Dma32. All other pages come from Normal, then
//! Dma32. Zones of the asking CPU's node come first, then those of the others (see `zonelist`).
//!
//! Invariants: an unmovable page is never in Movable, so kernel pages do not prevent taking Movable memory
//! back. A movable page finds a place as long as any zone has one.

use core::fmt;

use crate::Mm;
use crate::addr::{Order, Pfn, PfnRange};
use crate::free_lists::Place;
use crate::grow::GrowZone;
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::page::{HeldBy, Holder, Kind, OwnerId, PageState};
use crate::pageblock::MigrateType;
use crate::pcplist::{ListOf, is_kept};
use crate::platform::Platform;
use crate::sparse::SectionPages;
use crate::sync::Ordering::Relaxed;
use crate::zone::Watermark;

/// The purpose of a request for pages (Linux `gfp_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gfp {
    /// Kernel data.
    Kernel,
    /// Page tables. May take the last free pages, so that memory can be added when none is left.
    PageTable,
    /// The memmap of memory that is added. Leaves the pages below the low watermark to other requests,
    /// because a large memmap would use up all of them.
    Memmap,
    /// Pages whose holder will name an owner by [`Mm::set_owner`].
    Movable,
}

/// No zone that the request may use has room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocError;

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no zone that the request may use has room for it")
    }
}

impl core::error::Error for AllocError {}

/// The parameters that follow from a [`Gfp`].
pub(crate) struct Request {
    /// The request may use zones of this type and below, from the top.
    highest: ZoneType,
    mt: MigrateType,
    holder: HeldBy,
    /// Levels that the zone must stay above, each tried on all zones in turn; none means down to the last
    /// page.
    marks: [Option<Watermark>; 2],
}

impl Gfp {
    #[inline]
    pub(crate) const fn request(self) -> Request {
        const MARKS: [Option<Watermark>; 2] = [Some(Watermark::Low), Some(Watermark::Min)];
        match self {
            Self::Kernel => Request {
                highest: ZoneType::Normal,
                mt: MigrateType::Unmovable,
                holder: HeldBy::Kernel,
                marks: MARKS,
            },
            Self::PageTable => Request {
                highest: ZoneType::Normal,
                mt: MigrateType::Unmovable,
                holder: HeldBy::PageTable,
                marks: [Some(Watermark::Low), None],
            },
            Self::Memmap => Request {
                highest: ZoneType::Normal,
                mt: MigrateType::Unmovable,
                holder: HeldBy::Memmap,
                marks: [Some(Watermark::Low); 2],
            },
            Self::Movable => Request {
                highest: ZoneType::Movable,
                mt: MigrateType::Movable,
                holder: HeldBy::Unclaimed,
                marks: MARKS,
            },
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Takes 2^`order` contiguous pages, aligned to their size. Their content is undefined.
    ///
    /// # Errors
    /// [`AllocError`] when no zone has them.
    #[inline(always)]
    pub fn alloc_pages(&self, order: Order, gfp: Gfp) -> Result<Pfn, AllocError> {
        // Most callers know the order, so what is inlined has one of these cases.
        let listed = match order {
            Order::PAGE => self.alloc_listed(Order::PAGE, gfp),
            Order::PAGEBLOCK => self.alloc_listed(Order::PAGEBLOCK, gfp),
            _ => None,
        };
        if let Some(pfn) = listed {
            return Ok(pfn);
        }
        self.alloc_from_zones(None, order, gfp)
    }

    /// As [`alloc_pages`](Self::alloc_pages), as near to `node` as there are pages.
    pub(crate) fn alloc_pages_node(&self, node: NodeId, order: Order, gfp: Gfp) -> Result<Pfn, AllocError> {
        self.alloc_from_zones(Some(node), order, gfp)
    }

    /// A buddy block from this CPU's list of the first zone that has memory: the common case. The watermark was
    /// checked when the pages came to the list.
    #[inline(always)]
    fn alloc_listed(&self, order: Order, gfp: Gfp) -> Option<Pfn> {
        let Request { highest, mt, holder, .. } = gfp.request();
        let cpu = self.own_cpu();
        let zone = self.nodes.zonelist(cpu.node(), highest).first()?;
        cpu.lists(zone)?.allocate(order, mt, holder)
    }

    /// Linux `get_page_from_freelist`: the zones in order, above the higher mark and then above
    /// the lower one. They are those near `node`, or near this CPU.
    #[inline(never)]
    fn alloc_from_zones(&self, node: Option<NodeId>, order: Order, gfp: Gfp) -> Result<Pfn, AllocError> {
        let request = &gfp.request();
        let node = node.unwrap_or_else(|| self.this_cpu().node());
        let zonelist = self.nodes.zonelist(node, request.highest);
        loop {
            for mark in request.marks {
                for zone in zonelist {
                    // Growing this zone is better than a page of the next one.
                    let above = |mark| self.zone(zone).above(mark, order.pages(), request.highest);
                    let take = || self.alloc_in(zone, order, request, mark);
                    if let Some(pfn) = self.take_growing(zone, take, || mark.is_none_or(above)) {
                        return Ok(pfn);
                    }
                }
            }
            if !self.flush_own_pageblocks(zonelist) {
                break;
            }
        }
        // Not a hot path: there is no memory. Otherwise nothing is counted here.
        let failed = match request.highest {
            ZoneType::Movable => &self.counters.alloc_failed_movable,
            ZoneType::Normal | ZoneType::Dma32 => &self.counters.alloc_failed_kernel,
        };
        failed.fetch_add(1, Relaxed);
        Err(AllocError)
    }

    /// A buddy block of `zone`, by way of this CPU's list if it keeps such blocks. An empty list is refilled.
    fn alloc_in(
        &self,
        zone: ZoneId,
        order: Order,
        request: &Request,
        mark: Option<Watermark>,
    ) -> Option<Pfn> {
        let cpu = self.own_cpu();
        let lists = if is_kept(order) { cpu.lists(zone) } else { None };
        let Some(lists) = lists else {
            return self.alloc_buddy_block_in(zone, order, request, mark);
        };
        let (mt, holder) = (request.mt, request.holder);
        if let Some(pfn) = lists.allocate(order, mt, holder) {
            return Some(pfn);
        }
        // A refill of single pages takes little more than the one that is wanted. One of pageblocks does not.
        let pages = if order == Order::PAGE { 1 } else { lists.large_batch() * order.pages() };
        if lists.keeps(order) && self.may_take(zone, request, mark, pages) {
            lists.refill(order, mt);
            return lists.allocate(order, mt, holder);
        }
        if order == Order::PAGE { None } else { self.alloc_buddy_block_in(zone, order, request, mark) }
    }

    /// A buddy block of `order` from the free lists.
    pub(crate) fn alloc_buddy_block_in(
        &self,
        zone: ZoneId,
        order: Order,
        request: &Request,
        mark: Option<Watermark>,
    ) -> Option<Pfn> {
        if !self.may_take(zone, request, mark, order.pages()) {
            return None;
        }
        let off = self.irq_off();
        let mut zone = self.lock_zone(zone, &off);
        let block = zone.rmqueue(order, request.mt)?;
        block.head().set_state(PageState::held(order, request.holder));
        Some(block.pfn())
    }

    /// Whether the request may take `pages` pages of `zone` under its watermark.
    fn may_take(&self, zone: ZoneId, request: &Request, mark: Option<Watermark>, pages: u32) -> bool {
        let of = self.zone(zone);
        match mark {
            Some(mark) => of.above(mark, pages, request.highest),
            None => of.free() >= u64::from(pages),
        }
    }

    /// Gives the 2^`order` pages from `pfn` back. They were allocated, or made by splitting, with this
    /// order.
    ///
    /// # Panics
    /// When they were not, or are free already.
    #[inline(always)]
    pub fn free_pages(&self, pfn: Pfn, order: Order) {
        let (page, section) = self.sparse.page_and_section(pfn);
        let (state, zone) = (page.state(), section.zone());
        // Compares the whole word, so a page that was overwritten while it was in use is found here.
        if !state.is(Kind::Allocated, order) {
            not_allocated(pfn, state, order);
        }
        // The type is read without the zone lock and may be stale. It only selects a list.
        if let Some(mt) = section.pageblocks.open_type(pfn.pageblock())
            && match order {
                Order::PAGE => self.free_to_pcp(page, pfn, zone, ListOf { order: Order::PAGE, mt }),
                Order::PAGEBLOCK => self.free_to_pcp(page, pfn, zone, ListOf { order: Order::PAGEBLOCK, mt }),
                _ => false,
            }
        {
            return;
        }
        self.free_to_buddy(zone, pfn, order);
    }

    #[inline(never)]
    fn free_to_buddy(&self, zone: ZoneId, pfn: Pfn, order: Order) {
        let pages = self.sparse.pages(pfn.section()).expect("an allocated page has a section");
        self.lock_zone(zone, &self.irq_off()).free_and_merge(pages, pfn, order, Place::Head);
    }

    /// Gives single pages back that lie side by side, in buddy blocks as large as they make. This is a
    /// fraction of the work of freeing them one by one, as Linux `free_contig_range` does.
    ///
    /// # Panics
    /// When one of them is not an allocated single page.
    pub fn free_contig_range(&self, range: PfnRange) {
        let mut rest = range;
        while !rest.is_empty() {
            let pages = self.sparse.pages(rest.start().section()).expect("an allocated page has a section");
            let pageblock = rest.start().pageblock();
            // One pageblock at a time, because the next one may be of another type.
            let here = rest.intersect(pages.nr().pageblocks(&(pageblock..pageblock + 1)));
            self.free_in_pageblock(pages, here);
            rest = rest.from(here.end());
        }
    }

    fn free_in_pageblock(&self, pages: SectionPages<'_>, range: PfnRange) {
        let tail = PageState::new(Kind::Tail, Order::PAGE);
        let off = self.irq_off();
        let mut guard = self.lock_zone(pages.section().zone(), &off);
        for (first, order) in range.chunks() {
            for offset in 0..order.pages() {
                let pfn = first.add(offset);
                let page = pages.page(pfn);
                assert_allocated(pfn, page.state(), Order::PAGE);
                page.set_state(tail);
            }
            guard.free_and_merge(pages, first, order, Place::Head);
        }
    }

    /// Splits an allocated buddy block into 2^`order` single pages, each to be freed by itself. Each has
    /// the holder of the buddy block.
    ///
    /// # Panics
    /// When the buddy block is not allocated with this order.
    pub fn split_page(&self, pfn: Pfn, order: Order) {
        self.split_page_to(pfn, order, Order::PAGE);
    }

    /// Splits an allocated buddy block of order `from` into ones of order `to`.
    ///
    /// # Panics
    /// When the buddy block is not allocated with order `from`, or `to` is larger.
    pub fn split_page_to(&self, pfn: Pfn, from: Order, to: Order) {
        let pages = self.sparse.pages(pfn.section()).expect("an allocated page has a section");
        let head = pages.page(pfn);
        assert_allocated(pfn, head.state(), from);
        assert!(to <= from, "splits {from:?} into {to:?}");
        let holder = head.holder(head.state());
        // The old head last: a walk that sees its new order finds the heads of the other parts.
        let mut offset = from.pages();
        while offset > 0 {
            offset -= to.pages();
            pages.page(pfn.add(offset)).hold(to, holder);
        }
    }

    /// Makes `owner`, which knows the page by `index`, the owner of an allocated single page. From now on
    /// the page may be migrated.
    ///
    /// # Panics
    /// When the page is not a single allocated one, or `index` does not fit in 48 bits.
    #[inline]
    pub fn set_owner(&self, pfn: Pfn, owner: OwnerId, index: u64) {
        assert!(index >> 48 == 0, "index {index:#x} has more than 48 bits");
        let page = self.sparse.page(pfn);
        assert_allocated(pfn, page.state(), Order::PAGE);
        page.hold(Order::PAGE, Holder::Owned { owner, index });
    }

    /// Marks the allocated buddy block at `pfn` as one that cannot move; `tag` names its holder.
    ///
    /// # Panics
    /// When no allocated buddy block begins there.
    pub fn set_holder(&self, pfn: Pfn, tag: u32) {
        let page = self.sparse.page(pfn);
        let order = page.state().order();
        assert_allocated(pfn, page.state(), order);
        page.hold(order, Holder::Tagged(tag));
    }
}

#[inline]
fn assert_allocated(pfn: Pfn, state: PageState, order: Order) {
    if !state.is(Kind::Allocated, order) {
        not_allocated(pfn, state, order);
    }
}

#[cold]
#[inline(never)]
fn not_allocated(pfn: Pfn, state: PageState, order: Order) -> ! {
    let device = if state.kind() == Kind::Device { ", it is device memory" } else { "" };
    panic!("frame {:#x} is not an allocated block of {order:?}{device}: {state:?}", pfn.get())
}

#[cfg(test)]
mod tests;
