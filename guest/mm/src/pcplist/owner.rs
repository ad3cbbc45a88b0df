//! A CPU at its own lists of one zone.
//!
//! Mirrors the code of Linux that runs with `pcp->lock` held (`free_frozen_page_commit`,
//! `__rmqueue_pcplist`, `free_pcppages_bulk`, `rmqueue_bulk`). Differs from Linux on purpose: there is no lock, and a
//! function that needs the right to the lists is a method of [`PcpOwner`].
//!
//! Invariants: the limits are read once, at the beginning of an operation, and after [`Platform::get_cpu`]. So a grace
//! period that begins after other limits were published waits for every operation that goes by the former ones. A
//! [`PcpOwner`] exists only while the limits that it goes by are those of lists that are in use.

use super::{PcpZone, PerCpuPages};
use crate::Mm;
use crate::addr::{Order, Pfn};
use crate::free_block::FreeBlock;
use crate::free_lists::Place;
use crate::node::{NodeId, ZoneId};
use crate::page::{HeldBy, Kind, Link, PageRef, PageState};
use crate::pageblock::MigrateType;
use crate::platform::Platform;
use crate::sparse::Sparse;
use crate::sync::{Ordering::Relaxed, spin_loop};
use crate::variant::{self, Variant};
use crate::zone::{PcpLimits, ZoneGuard};
use crate::zonelist::Zonelist;

/// The state of a buddy block of `order` on a per-CPU list.
#[inline]
pub(crate) const fn listed(order: Order) -> PageState {
    PageState::new(Kind::Pcp, order)
}

/// The list of a zone that a buddy block belongs on.
#[derive(Clone, Copy)]
pub(crate) struct ListOf {
    pub(crate) order: Order,
    pub(crate) mt: MigrateType,
}

/// Steps on a list. The caller has the right to the lists.
impl PcpZone {
    /// Puts the buddy block with head `page` on a list. Returns the buddy blocks of its order.
    #[inline(always)]
    pub(crate) fn push(&self, page: PageRef<'_>, pfn: Pfn, ListOf { order, mt }: ListOf) -> u32 {
        let list = self.list(order);
        let first = &list.first[mt.index() & 1];
        page.set_next(first.get());
        page.set_state(listed(order));
        first.set(Link::to(pfn));
        let count = list.count() + 1;
        list.count.store(count, Relaxed);
        count
    }

    /// Takes a buddy block off a list. The caller sets the state of its head. This is the check for a page that was
    /// overwritten on the list (Linux `check_new_page`).
    #[inline(always)]
    pub(crate) fn pop<'s>(&self, sparse: &'s Sparse, ListOf { order, mt }: ListOf) -> Option<(Pfn, PageRef<'s>)> {
        let list = self.list(order);
        let first = &list.first[mt.index() & 1];
        let (pfn, page) = match first.get().pfn() {
            Some(pfn) => {
                let page = sparse.page(pfn);
                first.set(page.next());
                (pfn, page)
            }
            None if order == Order::PAGE => {
                let pfn = self.runs[mt.index() & 1].take()?;
                (pfn, sparse.page(pfn))
            }
            None => return None,
        };
        if page.state() != listed(order) {
            bad_page(pfn, page.state(), listed(order));
        }
        list.count.store(list.count() - 1, Relaxed);
        Some((pfn, page))
    }

    /// Puts the pages of `block` on the list of single pages of type `mt`: as its run when it has none.
    fn push_pages(&self, block: &FreeBlock<'_>, mt: MigrateType) {
        let (pages, run) = (block.section_pages(), &self.runs[mt.index() & 1]);
        if run.left.load(Relaxed) > 0 {
            // The first page comes to the head of the list, and is used first.
            let of = ListOf { order: Order::PAGE, mt };
            (0..block.order().pages()).rev().map(|page| block.pfn().add(page)).for_each(|pfn| {
                self.push(pages.page(pfn), pfn, of);
            });
            return;
        }
        block.frames().frames().for_each(|pfn| pages.page(pfn).set_state(listed(Order::PAGE)));
        run.set(block.frames());
        self.pages.count.store(self.pages.count() + block.order().pages(), Relaxed);
    }

    /// Moves up to `blocks` buddy blocks of `order` to the buddy allocator (Linux `free_pcppages_bulk`).
    #[cold]
    #[inline(never)]
    pub(super) fn flush<P: Platform>(&self, mm: &Mm<P>, zone: ZoneId, order: Order, blocks: u32) {
        let mut guard = mm.lock_zone(zone);
        for _ in 0..blocks {
            let of = |mt| ListOf { order, mt };
            let Some((pfn, _)) = self
                .pop(&mm.sparse, of(MigrateType::Movable))
                .or_else(|| self.pop(&mm.sparse, of(MigrateType::Unmovable)))
            else {
                break;
            };
            if variant::is(Variant::FlushStaleType) {
                let block = FreeBlock::new(guard.section_pages(pfn), pfn, order, MigrateType::Movable);
                guard.insert(block, Place::Head);
                continue;
            }
            guard.free_and_merge(guard.section_pages(pfn), pfn, order, Place::Head);
        }
    }
}

impl<'m> ZoneGuard<'m> {
    /// Takes a buddy block of at most `most` pages for pages of type `mt` off the free lists: the lowest one of the first
    /// pageblock whose largest free buddy block is the smallest, or a part of it.
    fn rmqueue_run(&mut self, mt: MigrateType, most: u32) -> Option<FreeBlock<'m>> {
        let longest = Order::new(most.ilog2() as u8);
        if let Some(list) = self.smallest(Order::PAGE, mt)
            && list < Order::PAGEBLOCK
            && let Some(first) = self.first(list, mt)
        {
            let pages = self.section_pages(first);
            let (index, state) = pages.area(first.pageblock()).lowest()?;
            let block = self.remove(FreeBlock::new(pages, first.add(index), state.order(), mt));
            let order = state.order().min(longest);
            return Some(self.split_to(block, order));
        }
        self.rmqueue(if self.smallest(Order::PAGE, mt).is_some() { longest } else { Order::PAGE }, mt)
    }
}

/// This CPU, while it may use its lists.
pub(crate) struct OwnCpu<'m, P: Platform> {
    cpu: &'m PerCpuPages,
    mm: &'m Mm<P>,
}

/// This CPU's lists of one zone, which are in use.
pub(crate) struct PcpOwner<'m, P: Platform> {
    pcp: &'m PcpZone,
    mm: &'m Mm<P>,
    zone: ZoneId,
    limits: PcpLimits,
}

impl<P: Platform> Mm<P> {
    /// This CPU. A grace period waits until the result is dropped.
    #[inline(always)]
    pub(crate) fn own_cpu(&self) -> OwnCpu<'_, P> {
        OwnCpu { cpu: &self.per_cpu[self.platform.get_cpu()], mm: self }
    }

    /// Frees a buddy block to this CPU's lists. False when they do not keep it: then it must go to the buddy allocator.
    #[inline(always)]
    pub(crate) fn free_to_pcp(&self, page: PageRef<'_>, pfn: Pfn, zone: ZoneId, of: ListOf) -> bool {
        let cpu = self.own_cpu();
        let Some(lists) = cpu.lists(zone).filter(|lists| lists.keeps(of.order)) else { return false };
        lists.free(page, pfn, of.order, of.mt);
        true
    }

    /// Moves the pageblocks on this CPU's lists of `zones` to the buddy allocator. False when there are none.
    pub(crate) fn flush_own_pageblocks(&self, zones: Zonelist) -> bool {
        let cpu = self.own_cpu();
        let mut any = false;
        for zone in zones {
            let Some(lists) = cpu.lists(zone) else { continue };
            let count = lists.pcp.pageblocks.count();
            if count > 0 {
                lists.pcp.flush(self, zone, Order::PAGEBLOCK, count);
                any = true;
            }
        }
        any
    }
}

impl<P: Platform> OwnCpu<'_, P> {
    /// Its node.
    #[inline]
    pub(crate) fn node(&self) -> NodeId {
        self.cpu.node()
    }

    /// Its lists of `zone`; none while they are stopped.
    #[inline(always)]
    pub(crate) fn lists(&self, zone: ZoneId) -> Option<PcpOwner<'_, P>> {
        let pcp = self.cpu.zone(zone);
        let early = variant::is(Variant::LimitsReadEarly).then(|| self.limits_of_before(pcp));
        let mut limits = early.unwrap_or_else(|| pcp.limits());
        if limits.high == PcpLimits::OFF.high {
            if !variant::is(Variant::StoppedListKeepsPages) {
                return None;
            }
            limits.high = u32::MAX;
        }
        Some(PcpOwner { pcp, mm: self.mm, zone, limits })
    }

    /// Limits that were read when no grace period waited for this CPU.
    fn limits_of_before(&self, pcp: &PcpZone) -> PcpLimits {
        self.mm.platform.put_cpu();
        let limits = pcp.limits();
        spin_loop();
        self.mm.platform.get_cpu();
        limits
    }
}

impl<P: Platform> Drop for OwnCpu<'_, P> {
    #[inline]
    fn drop(&mut self) {
        self.mm.platform.put_cpu();
    }
}

impl<P: Platform> PcpOwner<'_, P> {
    /// Whether buddy blocks of `order` are put on the lists. Pageblocks from a time when they were kept may be there in
    /// any case.
    #[inline(always)]
    pub(crate) fn keeps(&self, order: Order) -> bool {
        order == Order::PAGE || self.limits.large > 0
    }

    /// Pageblocks that a refill brings.
    pub(crate) fn large_batch(&self) -> u32 {
        self.limits.large_batch()
    }

    /// Takes a buddy block of `order` and type `mt` and makes it an allocated one.
    #[inline(always)]
    pub(crate) fn allocate(&self, order: Order, mt: MigrateType, holder: HeldBy) -> Option<Pfn> {
        let (pfn, page) = self.pcp.pop(&self.mm.sparse, ListOf { order, mt })?;
        page.set_state(PageState::held(order, holder));
        Some(pfn)
    }

    /// Frees a buddy block to the list of its `order` and type `mt`, and flushes a batch when there are too many.
    #[inline(always)]
    pub(crate) fn free(&self, page: PageRef<'_>, pfn: Pfn, order: Order, mt: MigrateType) {
        let limits = self.limits;
        let (too_many, batch) = match order {
            Order::PAGE => (limits.high, limits.batch.into()),
            _ => (u32::from(limits.large) + 1, limits.large_batch()),
        };
        if self.pcp.push(page, pfn, ListOf { order, mt }) >= too_many {
            self.pcp.flush(self.mm, self.zone, order, batch);
        }
    }

    /// Moves buddy blocks of `order` and type `mt` from the buddy allocator to the list, as many as a refill brings
    /// (Linux `rmqueue_bulk`, `nr_pcp_alloc`).
    pub(crate) fn refill(&self, order: Order, mt: MigrateType) {
        let of = ListOf { order, mt };
        let mut zone = self.mm.lock_zone(self.zone);
        if order == Order::PAGE {
            // Linux brings one page less: a batch is one below a power of two.
            let mut left = (u32::from(self.limits.batch) + 1).max(1);
            while left > 0
                && let Some(block) = zone.rmqueue_run(mt, left)
            {
                left -= block.order().pages();
                self.pcp.push_pages(&block, mt);
            }
        } else {
            for _ in 0..self.limits.large_batch() {
                let Some(block) = zone.rmqueue(order, mt) else { break };
                self.pcp.push(block.head(), block.pfn(), of);
            }
        }
    }
}

#[cold]
#[inline(never)]
fn bad_page(pfn: Pfn, state: PageState, expected: PageState) -> ! {
    panic!("{pfn:?} on a per-CPU list: state is {state:?}, and should be {expected:?}")
}
