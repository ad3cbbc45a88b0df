//! The right to one CPU's lists of one zone.
//!
//! Mirrors the code of Linux that runs with `pcp->lock` held (`free_frozen_page_commit`,
//! `__rmqueue_pcplist`, `free_pcppages_bulk`, `rmqueue_bulk`). Differs from Linux on purpose: a function
//! that needs the lock is a method of the guard and cannot be called without it.
//!
//! Invariant: the limits are read after the lock was taken, so an operation that begins after a drain
//! goes by the limits that were published before that drain.

use super::{PcpLists, PcpZone};
use crate::Mm;
use crate::addr::{Order, Pfn};
use crate::free_block::FreeBlock;
use crate::free_lists::Place;
use crate::lock::Guard;
use crate::node::ZoneId;
use crate::page::{HolderWord, Kind, Link, Page, PageState};
use crate::pageblock::MigrateType;
use crate::platform::Platform;
use crate::sparse::Sparse;
use crate::variant::{self, Variant};

/// Longest drain under one hold of the zone lock, in batches.
const DRAIN_BATCHES: u32 = 32;

impl PcpLists {
    #[inline]
    fn push(&mut self, page: &Page, pfn: Pfn, mt: MigrateType, zone: ZoneId) {
        let first = &mut self.first[mt.index() & 1];
        page.set_next(*first);
        page.set_state(PageState::new(Kind::Pcp, Order::PAGE, zone));
        *first = Link::to(pfn);
        self.count += 1;
    }

    /// Takes a page of type `mt`. The caller sets its state. This is the check for a page that was
    /// overwritten on the list (Linux `check_new_page`).
    #[inline]
    fn pop<'s>(&mut self, sparse: &'s Sparse, mt: MigrateType, zone: ZoneId) -> Option<(Pfn, &'s Page)> {
        let first = &mut self.first[mt.index() & 1];
        let pfn = first.pfn()?;
        let page = sparse.page(pfn);
        let expected = PageState::new(Kind::Pcp, Order::PAGE, zone);
        if page.state() != expected {
            bad_page(pfn, page.state(), expected);
        }
        *first = page.next();
        self.count -= 1;
        Some((pfn, page))
    }
}

/// One CPU's lists of one zone, whose lock this CPU holds.
pub(crate) struct PcpGuard<'m, P: Platform> {
    lists: Guard<'m, PcpLists>,
    pcp: &'m PcpZone,
    mm: &'m Mm<P>,
    zone: ZoneId,
}

impl<'m, P: Platform> PcpGuard<'m, P> {
    #[inline]
    pub(super) fn new(lists: Guard<'m, PcpLists>, pcp: &'m PcpZone, mm: &'m Mm<P>, zone: ZoneId) -> Self {
        Self { lists, pcp, mm, zone }
    }

    /// Pages on the lists.
    pub(crate) fn count(&self) -> u32 {
        self.lists.count
    }

    /// The pages on the lists.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Pfn, &'m Page)> + use<'m, P> {
        let (sparse, mut lists) = (&self.mm.sparse, self.lists.first);
        core::iter::from_fn(move || {
            let list = lists.iter_mut().find(|first| **first != Link::NONE)?;
            let pfn = list.pfn()?;
            let page = sparse.page(pfn);
            *list = page.next();
            Some((pfn, page))
        })
    }

    /// Puts a page that nothing else refers to on the list of type `mt`.
    #[inline]
    pub(super) fn push(&mut self, page: &Page, pfn: Pfn, mt: MigrateType) {
        self.lists.push(page, pfn, mt, self.zone);
    }

    /// Takes a page of type `mt` and makes it an allocated one. It is never seen as a free one by a CPU
    /// that takes this lock later.
    #[inline]
    pub(crate) fn allocate(&mut self, mt: MigrateType, holder: HolderWord) -> Option<Pfn> {
        let (pfn, page) = self.lists.pop(&self.mm.sparse, mt, self.zone)?;
        page.set_holder(holder);
        page.set_state(PageState::new(Kind::Allocated, Order::PAGE, self.zone));
        Some(pfn)
    }

    /// Frees one page to the list of type `mt`, and flushes some when there are too many.
    #[inline]
    pub(crate) fn free(&mut self, page: &Page, pfn: Pfn, mt: MigrateType) {
        self.push(page, pfn, mt);
        let (high, batch) = self.pcp.limits();
        if self.lists.count >= high {
            self.flush(batch);
        }
    }

    /// Moves up to `pages` pages to the buddy allocator.
    #[inline]
    fn flush(&mut self, pages: u32) {
        flush(self.mm, &mut self.lists, self.zone, pages);
    }

    /// Moves pages of type `mt` from the buddy allocator to the list, as many as a refill brings (Linux
    /// `rmqueue_bulk`, `nr_pcp_alloc`).
    pub(crate) fn refill(&mut self, mt: MigrateType) {
        let (_, batch) = self.pcp.limits();
        let mut zone = self.mm.lock_zone(self.zone);
        for _ in 0..batch {
            let Some(block) = zone.rmqueue(Order::PAGE, mt) else { break };
            self.push(block.head(), block.pfn(), mt);
        }
    }

    /// Moves one drain's worth of pages to the buddy allocator. False when there were none.
    pub(super) fn drain_some(&mut self) -> bool {
        // Read under the lock: a count read before it could miss a refill in progress.
        let count = self.lists.count;
        if count == 0 {
            return false;
        }
        let (_, batch) = self.pcp.limits();
        self.flush(count.min(batch * DRAIN_BATCHES));
        true
    }
}

/// Moves up to `pages` pages from `lists` to the buddy allocator (Linux `free_pcppages_bulk`). It does not
/// take the guard, so that the guard of the common case, without a flush, stays in registers.
#[cold]
#[inline(never)]
fn flush<P: Platform>(mm: &Mm<P>, lists: &mut PcpLists, zone: ZoneId, pages: u32) {
    let mut guard = mm.lock_zone(zone);
    for _ in 0..pages {
        let Some((pfn, _)) = lists
            .pop(&mm.sparse, MigrateType::Movable, zone)
            .or_else(|| lists.pop(&mm.sparse, MigrateType::Unmovable, zone))
        else {
            break;
        };
        if variant::is(Variant::FlushStaleType) {
            guard.insert(
                FreeBlock::new(guard.section_pages(pfn), pfn, Order::PAGE, MigrateType::Movable),
                Place::Head,
            );
            continue;
        }
        guard.free_and_merge(guard.section_pages(pfn), pfn, Order::PAGE, Place::Head);
    }
}

#[cold]
#[inline(never)]
fn bad_page(pfn: Pfn, state: PageState, expected: PageState) -> ! {
    panic!("{pfn:?} on a per-CPU list: state is {state:?}, and should be {expected:?}")
}
