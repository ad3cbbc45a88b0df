//! A CPU at its own lists of one zone.
//!
//! Mirrors the code of Linux that runs with `pcp->lock` held (`free_frozen_page_commit`,
//! `__rmqueue_pcplist`, `free_pcppages_bulk`, `rmqueue_bulk`). Differs from Linux on purpose: there is no lock, and a
//! function that needs the right to the lists is a method of [`PcpOwner`].
//!
//! Invariants: interrupts of the CPU are off meanwhile ([`Platform::irq_save`]). The limits are read once, at the beginning of an operation, and after [`Platform::get_cpu`]. So a grace
//! period that begins after other limits were published waits for every operation that goes by the former ones. A
//! [`PcpOwner`] exists only while the limits that it goes by are those of lists that are in use.

use super::{MOST_PAGES, PcpList, PcpZone, PerCpuPages, RUN_PAGES, TYPES};
use crate::Mm;
use crate::addr::{Order, Pfn};
use crate::free_block::FreeBlock;
use crate::free_lists::Place;
use crate::irq::IrqOff;
use crate::lock::assert_irq_off;
use crate::node::{NodeId, ZoneId};
use crate::page::{HeldBy, Kind, PageRef, PageState};
use crate::pageblock::MigrateType;
use crate::platform::Platform;
use crate::sparse::{SectionPages, Sparse};
use crate::sync::spin_loop;
use crate::variant::{self, Variant};
use crate::zone::{PcpLimits, ZoneGuard};
use crate::zonelist::Zonelist;

/// Order of the largest aligned range whose pages a run has.
const RUN_ORDER: Order = Order::new(RUN_PAGES.ilog2() as u8);

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
        page.set_state(listed(order));
        if order == Order::PAGE { self.pages.push(mt, pfn) } else { self.pageblocks.push(mt, pfn) }
    }

    /// Takes a buddy block off a list. The caller sets the state of its head. This is the check for a page that was
    /// overwritten on the list (Linux `check_new_page`).
    #[inline(always)]
    pub(crate) fn pop<'s>(
        &self,
        sparse: &'s Sparse,
        ListOf { order, mt }: ListOf,
    ) -> Option<(Pfn, PageRef<'s>)> {
        let pfn = if order == Order::PAGE { self.pages.pop(mt) } else { self.pageblocks.pop(mt) }?;
        let page = sparse.page(pfn);
        check_listed(pfn, page.state(), order);
        Some((pfn, page))
    }

    /// Puts the single pages of `bits` in the aligned range of 64 pages from `first` on, which are tails, on the list of
    /// type `mt`. The lowest one is the first to be used.
    fn push_pages(&self, pages: SectionPages<'_>, first: Pfn, bits: u64, mt: MigrateType) {
        pages.replace_tails(first, bits, listed(Order::PAGE));
        let (count, more) = (self.pages.count(), bits.count_ones());
        assert!(count + more <= MOST_PAGES as u32, "no room for {more} pages on a list of {count}");
        let mut left = bits;
        while left != 0 {
            let highest = left.ilog2();
            left ^= 1 << highest;
            self.pages.push(mt, first.add(highest));
        }
    }

    /// Moves up to `blocks` buddy blocks of `order` to the buddy allocator (Linux `free_pcppages_bulk`).
    #[cold]
    #[inline(never)]
    pub(super) fn flush<P: Platform>(&self, mm: &Mm<P>, zone: ZoneId, order: Order, blocks: u32) {
        let off = mm.irq_off();
        let mut guard = mm.lock_zone(zone, &off);
        let mut left = blocks;
        for mt in TYPES {
            left = if order == Order::PAGE {
                flush_pages(&self.pages, mt, &mut guard, left)
            } else {
                flush_pageblocks(&self.pageblocks, mt, &mut guard, left)
            };
        }
    }
}

/// Moves up to `most` single pages of type `mt` to the buddy allocator, neighbours together. Returns how many more it
/// would have moved.
fn flush_pages<const N: usize>(
    list: &PcpList<N>,
    mt: MigrateType,
    guard: &mut ZoneGuard<'_>,
    most: u32,
) -> u32 {
    let mut left = most;
    // Pages of one aligned range of 64 that were popped and are not free yet.
    let mut run: Option<(SectionPages<'_>, Pfn, u64)> = None;
    while left > 0
        && let Some(pfn) = list.pop(mt)
    {
        left -= 1;
        let (first, bit) = (pfn.align_down(RUN_ORDER), 1 << (pfn.get() % u64::BITS));
        let pages = match run {
            Some((pages, of, bits)) if of == first => {
                run = Some((pages, of, bits | bit));
                pages
            }
            _ => {
                let pages = guard.section_pages(pfn);
                if let Some(run) = run.replace((pages, first, bit)) {
                    free_run(guard, run);
                }
                pages
            }
        };
        let page = pages.page(pfn);
        check_listed(pfn, page.state(), Order::PAGE);
        page.set_state(PageState::new(Kind::Tail, Order::PAGE));
    }
    if let Some(run) = run {
        free_run(guard, run);
    }
    left
}

/// Frees the single pages of a run, which are tails.
#[inline]
fn free_run(guard: &mut ZoneGuard<'_>, (pages, first, bits): (SectionPages<'_>, Pfn, u64)) {
    if variant::is(Variant::FlushStaleType) {
        let frames = (0..u64::BITS).filter(|&at| bits >> at & 1 != 0).map(|at| first.add(at));
        for block in frames.map(|pfn| FreeBlock::new(pages, pfn, Order::PAGE, MigrateType::Movable)) {
            if guard.give(&block, Place::Head) {
                guard.insert(block.whole_pageblock(), Place::Head);
            }
        }
    } else {
        guard.free_some(pages, first, bits);
    }
}

/// Moves up to `most` pageblocks of type `mt` to the buddy allocator. Returns how many more it would have moved.
fn flush_pageblocks<const N: usize>(
    list: &PcpList<N>,
    mt: MigrateType,
    guard: &mut ZoneGuard<'_>,
    most: u32,
) -> u32 {
    let mut left = most;
    while left > 0
        && let Some(pfn) = list.pop(mt)
    {
        left -= 1;
        let pages = guard.section_pages(pfn);
        check_listed(pfn, pages.page(pfn).state(), Order::PAGEBLOCK);
        guard.free_and_merge(pages, pfn, Order::PAGEBLOCK, Place::Head);
    }
    left
}

impl<'m> ZoneGuard<'m> {
    /// Takes free pages for pages of type `mt` off the free lists, all of one aligned range of 2^`order`: the pages of the
    /// section, the first page of the 64 that the range lies in, and a bit for each.
    fn rmqueue_pages(&mut self, order: Order, mt: MigrateType) -> Option<(SectionPages<'m>, Pfn, u64)> {
        let list = self.smallest(Order::PAGE, mt);
        if let Some(first) =
            list.filter(|&list| list < Order::PAGEBLOCK).and_then(|list| self.first(list, mt))
        {
            let block = FreeBlock::new(self.section_pages(first), first, order, mt);
            let (first, bits) = self.take_lowest(&block)?;
            return Some((block.section_pages(), first, bits));
        }
        // From a pageblock of the other type that stays one, a single page is taken.
        let block = self.rmqueue(if list.is_some() { order } else { Order::PAGE }, mt)?;
        let bits = u64::MAX >> (u64::BITS - block.order().pages());
        let first = block.pfn().align_down(RUN_ORDER);
        Some((block.section_pages(), first, bits << (block.pfn().get() - first.get())))
    }
}

/// This CPU, while it may use its lists.
pub(crate) struct OwnCpu<'m, P: Platform> {
    cpu: &'m PerCpuPages,
    mm: &'m Mm<P>,
    // Dropped after `drop` ran.
    _off: IrqOff<'m, P>,
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
        let off = self.irq_off();
        OwnCpu { cpu: &self.per_cpu[self.platform.get_cpu()], mm: self, _off: off }
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
        assert_irq_off("a per-CPU list");
        let (pfn, page) = self.pcp.pop(&self.mm.sparse, ListOf { order, mt })?;
        page.set_state(PageState::held(order, holder));
        Some(pfn)
    }

    /// Frees a buddy block to the list of its `order` and type `mt`, and flushes a batch when there are too many.
    #[inline(always)]
    pub(crate) fn free(&self, page: PageRef<'_>, pfn: Pfn, order: Order, mt: MigrateType) {
        assert_irq_off("a per-CPU list");
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
        assert_irq_off("a per-CPU list");
        let of = ListOf { order, mt };
        let off = self.mm.irq_off();
        let mut zone = self.mm.lock_zone(self.zone, &off);
        if order == Order::PAGE {
            // A batch is one page less than a buddy block, and that page would have to be split off. Half of it will do: a
            // range that is free in part brings less, and the next ones bring ever less.
            let wanted = u32::from(self.limits.batch) + 1;
            let mut left = wanted;
            while left > wanted / 2
                && let range = Order::new(left.ilog2() as u8).min(RUN_ORDER)
                && let Some((pages, first, bits)) = zone.rmqueue_pages(range, mt)
            {
                left -= bits.count_ones();
                self.pcp.push_pages(pages, first, bits, mt);
            }
        } else {
            let mut left = self.limits.large_batch();
            while left > 0 {
                // Both halves of a larger buddy block, when there are no others: what is left of it need not go back.
                let is_pair = left > 1 && zone.smallest(order, mt) == Some(Order::MAX);
                let Some(block) = zone.rmqueue(if is_pair { Order::MAX } else { order }, mt) else { break };
                let mut push = |block: FreeBlock<'_>| {
                    self.pcp.push(block.head(), block.pfn(), of);
                    left -= 1;
                };
                if is_pair {
                    // The lower half comes to the head of the list, and is used first.
                    let (lower, upper) = block.split();
                    push(upper);
                    push(lower);
                } else {
                    push(block);
                }
            }
        }
    }
}

#[inline(always)]
fn check_listed(pfn: Pfn, state: PageState, order: Order) {
    if state != listed(order) {
        bad_page(pfn, state, listed(order));
    }
}

#[cold]
#[inline(never)]
fn bad_page(pfn: Pfn, state: PageState, expected: PageState) -> ! {
    panic!("{pfn:?} on a per-CPU list: state is {state:?}, and should be {expected:?}")
}
