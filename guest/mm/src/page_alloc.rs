//! Allocating and freeing: per-CPU list, then buddy, then the next zone.
//!
//! Mirrors Linux `get_page_from_freelist`, `rmqueue`, `free_frozen_pages` and `split_page`. There
//! is no reclaim: a request that no zone can serve above its `min` watermark is an error at once.
//!
//! Movable pages come from Movable, then Normal, then Dma32; everything else from Normal, then Dma32,
//! and never from Movable: of the asking CPU's node first, then of the others (see `zonelist`). So
//! kernel pages never stand in the way of taking Movable memory back, and movable pages find a place
//! as long as there is any.

use crate::Mm;
use crate::addr::{Order, Pfn, PfnRange};
use crate::buddy::Place;
use crate::node::{NodeId, ZoneId};
use crate::page::{Holder, HolderWord, Kind, OwnerId, Page, PageState, ZoneType};
use crate::pageblock::MigrateType;
use crate::pcplist::PcpLists;
use crate::platform::Platform;
use crate::sparse::SectionPages;
use crate::zone::Watermark;

/// What pages are wanted for (Linux `gfp_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gfp {
    /// Kernel data.
    Kernel,
    /// Page tables. May take the last pages there are, so that memory can be added when none is
    /// left.
    PageTable,
    /// The memmap of memory that is added. Leaves what is below the low watermark to others: it takes as
    /// much as it finds.
    Memmap,
    /// Pages whose holder will name an owner by [`Mm::set_owner`].
    Movable,
}

/// No zone that the request may use has room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocError;

/// What follows from a [`Gfp`].
pub(crate) struct Request {
    /// The zones are this one and those below it, from the top.
    highest: ZoneType,
    mt: MigrateType,
    holder: HolderWord,
    /// Levels to keep above, tried in turn on all zones; none means down to the last page.
    marks: [Option<Watermark>; 2],
}

impl Request {
    /// Makes the page the head of an allocated block. The lock of the list that it came from is
    /// still held, so that whoever looks next does not take it for a free one.
    #[inline]
    fn hand_out(&self, page: &Page, order: Order, zone: ZoneId) {
        page.set_holder(self.holder);
        page.set_state(PageState::new(Kind::Allocated, order, zone));
    }
}

impl Gfp {
    #[inline]
    pub(crate) const fn request(self) -> Request {
        const MARKS: [Option<Watermark>; 2] = [Some(Watermark::Low), Some(Watermark::Min)];
        match self {
            Self::Kernel => Request {
                highest: ZoneType::Normal,
                mt: MigrateType::Unmovable,
                holder: Holder::Kernel.word(),
                marks: MARKS,
            },
            Self::PageTable => Request {
                highest: ZoneType::Normal,
                mt: MigrateType::Unmovable,
                holder: Holder::PageTable.word(),
                marks: [Some(Watermark::Low), None],
            },
            Self::Memmap => Request {
                highest: ZoneType::Normal,
                mt: MigrateType::Unmovable,
                holder: Holder::Memmap.word(),
                marks: [Some(Watermark::Low); 2],
            },
            Self::Movable => Request {
                highest: ZoneType::Movable,
                mt: MigrateType::Movable,
                holder: Holder::Unclaimed.word(),
                marks: MARKS,
            },
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Takes 2^`order` contiguous pages, aligned to their size. Their content is whatever was
    /// there before.
    ///
    /// # Errors
    /// [`AllocError`] when no zone has them.
    #[inline]
    pub fn alloc_pages(&self, order: Order, gfp: Gfp) -> Result<Pfn, AllocError> {
        let request = gfp.request();
        if order == Order::PAGE
            && let Some(pfn) = self.alloc_listed(&request)
        {
            return Ok(pfn);
        }
        self.alloc_from_zones(self.this_cpu().node(), order, &request)
    }

    /// As [`alloc_pages`](Self::alloc_pages), as near to `node` as there are pages.
    pub(crate) fn alloc_pages_node(&self, node: NodeId, order: Order, gfp: Gfp) -> Result<Pfn, AllocError> {
        self.alloc_from_zones(node, order, &gfp.request())
    }

    /// A page from this CPU's list of the first zone that has memory: the short way. Pages on the
    /// list passed the watermark when they came there.
    #[inline]
    fn alloc_listed(&self, request: &Request) -> Option<Pfn> {
        let cpu = self.this_cpu();
        let zone = self.nodes.zonelist(cpu.node(), request.highest).first()?;
        let mut lists = cpu.zone(zone).try_lock()?;
        let (pfn, page) = lists.pop(&self.sparse, request.mt, zone)?;
        request.hand_out(page, Order::PAGE, zone);
        Some(pfn)
    }

    /// Linux `get_page_from_freelist`: the zones in order, above the higher mark and then above
    /// the lower one.
    #[inline(never)]
    fn alloc_from_zones(&self, node: NodeId, order: Order, request: &Request) -> Result<Pfn, AllocError> {
        let zonelist = self.nodes.zonelist(node, request.highest);
        for mark in request.marks {
            for zone in zonelist {
                // Rather more of this zone than a page of the next one.
                let above = |mark| self.zone(zone).above(mark, order.pages(), request.highest);
                let take = || self.alloc_in(zone, order, request, mark);
                if let Some(pfn) = self.take_growing(zone, take, || mark.is_none_or(above)) {
                    return Ok(pfn);
                }
            }
        }
        Err(AllocError)
    }

    fn alloc_in(
        &self,
        zone: ZoneId,
        order: Order,
        request: &Request,
        mark: Option<Watermark>,
    ) -> Option<Pfn> {
        match order {
            Order::PAGE => self.alloc_page_in(zone, request, mark),
            _ => self.alloc_block_in(zone, order, request, mark),
        }
    }

    /// One page of `zone`, by way of this CPU's list, which is refilled if it is empty.
    fn alloc_page_in(&self, zone: ZoneId, request: &Request, mark: Option<Watermark>) -> Option<Pfn> {
        let pcp = self.this_cpu().zone(zone);
        let Some(mut lists) = pcp.try_lock() else {
            return self.alloc_block_in(zone, Order::PAGE, request, mark);
        };
        let (pfn, page) = match lists.pop(&self.sparse, request.mt, zone) {
            Some(listed) => listed,
            None if self.may_take(zone, request, mark, 1) => {
                self.refill(zone, request.mt, &mut lists, pcp.refill())?
            }
            None => return None,
        };
        request.hand_out(page, Order::PAGE, zone);
        Some(pfn)
    }

    /// Moves up to `pages` pages from the buddy to `lists`, and takes one of them (Linux
    /// `rmqueue_bulk`).
    fn refill(
        &self,
        zone: ZoneId,
        mt: MigrateType,
        lists: &mut PcpLists,
        pages: u32,
    ) -> Option<(Pfn, &Page)> {
        let mut buddy = self.zone(zone).lock();
        for _ in 0..pages {
            let Some(pfn) = buddy.rmqueue(&self.sparse, Order::PAGE, mt) else { break };
            lists.push(self.sparse.page(pfn), pfn, mt, zone);
        }
        drop(buddy);
        lists.pop(&self.sparse, mt, zone)
    }

    /// A block of `order` straight from the buddy.
    pub(crate) fn alloc_block_in(
        &self,
        zone: ZoneId,
        order: Order,
        request: &Request,
        mark: Option<Watermark>,
    ) -> Option<Pfn> {
        if !self.may_take(zone, request, mark, order.pages()) {
            return None;
        }
        let mut buddy = self.zone(zone).lock();
        let pfn = buddy.rmqueue(&self.sparse, order, request.mt)?;
        request.hand_out(self.sparse.page(pfn), order, zone);
        Some(pfn)
    }

    /// Whether the watermarks leave `pages` pages of `zone` to the request.
    fn may_take(&self, zone: ZoneId, request: &Request, mark: Option<Watermark>, pages: u32) -> bool {
        let of = self.zone(zone);
        match mark {
            Some(mark) => of.above(mark, pages, request.highest),
            None => of.free() >= u64::from(pages),
        }
    }

    /// Gives the 2^`order` pages from `pfn` back. They were allocated, or made by splitting, with
    /// this order.
    ///
    /// # Panics
    /// When they were not, or are free already.
    #[inline]
    pub fn free_pages(&self, pfn: Pfn, order: Order) {
        let (page, section) = self.sparse.page_and_section(pfn);
        let (state, zone) = (page.state(), section.zone());
        // All of the word: what was overwritten while it was in use is found here.
        if state != PageState::new(Kind::Allocated, order, zone) {
            not_allocated(pfn, state, order);
        }
        // The type is read without the zone lock and may be stale; it only picks a list.
        if order == Order::PAGE
            && let Some(mt) = section.pageblocks.open_type(pfn.pageblock())
            && self.free_to_pcp(page, pfn, mt, zone)
        {
            return;
        }
        self.free_to_buddy(zone, pfn, order);
    }

    #[inline(never)]
    fn free_to_buddy(&self, zone: ZoneId, pfn: Pfn, order: Order) {
        let pages = self.sparse.pages(pfn.section()).expect("an allocated page has a section");
        self.zone(zone).lock().free_block(&self.sparse, pages, pfn, order, Place::Head);
    }

    /// Gives single pages back that lie side by side, in as large blocks as they make: a fraction
    /// of the work of freeing them one by one (Linux has `free_contig_range` for the same use, and
    /// frees them one by one).
    ///
    /// # Panics
    /// When one of them is not an allocated single page.
    pub fn free_contig_range(&self, range: PfnRange) {
        let mut rest = range;
        while !rest.is_empty() {
            let pages = self.sparse.pages(rest.start().section()).expect("an allocated page has a section");
            let block = rest.start().pageblock();
            // A pageblock at a time, because the next one may be of another type.
            let here = rest.intersect(pages.nr().pageblocks(&(block..block + 1)));
            self.free_in_pageblock(pages, here);
            rest = rest.from(here.end());
        }
    }

    fn free_in_pageblock(&self, pages: SectionPages<'_>, range: PfnRange) {
        let zone = pages.section().zone();
        let tail = PageState::new(Kind::Tail, Order::PAGE, zone);
        let mut buddy = self.zone(zone).lock();
        for (first, order) in range.chunks() {
            for offset in 0..order.pages() {
                let pfn = first.add(offset);
                let page = pages.page(pfn);
                assert_allocated(pfn, page.state(), Order::PAGE);
                page.set_state(tail);
            }
            buddy.free_block(&self.sparse, pages, first, order, Place::Head);
        }
    }

    /// Makes 2^`order` single pages of an allocated block, each to be freed by itself. Each has
    /// the block's holder.
    ///
    /// # Panics
    /// When the block is not allocated with this order.
    pub fn split_page(&self, pfn: Pfn, order: Order) {
        self.split_page_to(pfn, order, Order::PAGE);
    }

    /// Makes blocks of order `to` of an allocated block of order `from`.
    ///
    /// # Panics
    /// When the block is not allocated with order `from`, or `to` is larger.
    pub fn split_page_to(&self, pfn: Pfn, from: Order, to: Order) {
        let pages = self.sparse.pages(pfn.section()).expect("an allocated page has a section");
        let head = pages.page(pfn);
        assert_allocated(pfn, head.state(), from);
        assert!(to <= from, "splits {from:?} into {to:?}");
        let state = PageState::new(Kind::Allocated, to, head.state().zone());
        let holder = head.holder().word();
        // The old head last: a walk that sees it shrunk finds the heads behind it.
        let mut offset = from.pages();
        while offset > 0 {
            offset -= to.pages();
            let page = pages.page(pfn.add(offset));
            page.set_holder(holder);
            page.set_state(state);
        }
    }

    /// Puts an allocated single page in the care of owner `owner`, who knows it by `index`: from
    /// now on it may be migrated.
    ///
    /// # Panics
    /// When the page is not a single allocated one, or `index` does not fit in 48 bits.
    #[inline]
    pub fn set_owner(&self, pfn: Pfn, owner: OwnerId, index: u64) {
        assert!(index >> 48 == 0, "index {index:#x} has more than 48 bits");
        let page = self.sparse.page(pfn);
        assert_allocated(pfn, page.state(), Order::PAGE);
        page.set_holder(Holder::Owned { owner, index }.word());
    }

    /// Says that the allocated block at `pfn` cannot move, and whose it is.
    ///
    /// # Panics
    /// When no allocated block begins there.
    pub fn set_holder(&self, pfn: Pfn, tag: u32) {
        let page = self.sparse.page(pfn);
        assert_allocated(pfn, page.state(), page.state().order());
        page.set_holder(Holder::Tagged(tag).word());
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
