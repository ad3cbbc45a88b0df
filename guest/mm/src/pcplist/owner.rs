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
use crate::page::{HolderWord, Kind, Link, Page, PageState};
use crate::pageblock::MigrateType;
use crate::platform::Platform;
use crate::sparse::Sparse;
use crate::sync::{Ordering::Relaxed, spin_loop};
use crate::variant::{self, Variant};
use crate::zone::PCP_OFF;

impl PcpZone {
    /// Puts `page` on the list of type `mt`. The caller has the right to the lists. Returns the pages on them.
    #[inline]
    pub(crate) fn push(&self, page: &Page, pfn: Pfn, mt: MigrateType, zone: ZoneId) -> u32 {
        let first = &self.first[mt.index() & 1];
        page.set_next(first.get());
        page.set_state(PageState::new(Kind::Pcp, Order::PAGE, zone));
        first.set(Link::to(pfn));
        let count = self.count() + 1;
        self.count.store(count, Relaxed);
        count
    }

    /// Takes a page of type `mt`. The caller has the right to the lists, and sets the page's state. This is the check
    /// for a page that was overwritten on the list (Linux `check_new_page`).
    #[inline]
    pub(crate) fn pop<'s>(
        &self,
        sparse: &'s Sparse,
        mt: MigrateType,
        zone: ZoneId,
    ) -> Option<(Pfn, &'s Page)> {
        let first = &self.first[mt.index() & 1];
        let pfn = first.get().pfn()?;
        let page = sparse.page(pfn);
        let expected = PageState::new(Kind::Pcp, Order::PAGE, zone);
        if page.state() != expected {
            bad_page(pfn, page.state(), expected);
        }
        first.set(page.next());
        self.count.store(self.count() - 1, Relaxed);
        Some((pfn, page))
    }

    /// Moves up to `pages` pages to the buddy allocator (Linux `free_pcppages_bulk`). The caller has the right to the
    /// lists.
    #[cold]
    #[inline(never)]
    pub(super) fn flush<P: Platform>(&self, mm: &Mm<P>, zone: ZoneId, pages: u32) {
        let mut guard = mm.lock_zone(zone);
        for _ in 0..pages {
            let Some((pfn, _)) = self
                .pop(&mm.sparse, MigrateType::Movable, zone)
                .or_else(|| self.pop(&mm.sparse, MigrateType::Unmovable, zone))
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
    high: u32,
    batch: u32,
}

impl<P: Platform> Mm<P> {
    /// This CPU. A grace period waits until the result is dropped.
    #[inline]
    pub(crate) fn own_cpu(&self) -> OwnCpu<'_, P> {
        OwnCpu { cpu: &self.per_cpu[self.platform.get_cpu()], mm: self }
    }

    /// Frees one page to this CPU's list. False when the list is stopped: then the page must go to the buddy
    /// allocator.
    #[inline]
    pub(crate) fn free_to_pcp(&self, page: &Page, pfn: Pfn, mt: MigrateType, zone: ZoneId) -> bool {
        let cpu = self.own_cpu();
        let Some(lists) = cpu.lists(zone) else { return false };
        lists.free(page, pfn, mt);
        true
    }
}

impl<P: Platform> OwnCpu<'_, P> {
    /// Its node.
    #[inline]
    pub(crate) fn node(&self) -> NodeId {
        self.cpu.node()
    }

    /// Its lists of `zone`; none while they are stopped.
    #[inline]
    pub(crate) fn lists(&self, zone: ZoneId) -> Option<PcpOwner<'_, P>> {
        let pcp = self.cpu.zone(zone);
        let early = variant::is(Variant::LimitsReadEarly).then(|| self.limits_of_before(pcp));
        let (mut high, batch) = early.unwrap_or_else(|| pcp.limits());
        if high == PCP_OFF.0 {
            if !variant::is(Variant::StoppedListKeepsPages) {
                return None;
            }
            high = u32::MAX;
        }
        Some(PcpOwner { pcp, mm: self.mm, zone, high, batch })
    }

    /// Limits that were read when no grace period waited for this CPU.
    fn limits_of_before(&self, pcp: &PcpZone) -> (u32, u32) {
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
    /// Takes a page of type `mt` and makes it an allocated one.
    #[inline]
    pub(crate) fn allocate(&self, mt: MigrateType, holder: HolderWord) -> Option<Pfn> {
        let (pfn, page) = self.pcp.pop(&self.mm.sparse, mt, self.zone)?;
        page.set_holder(holder);
        page.set_state(PageState::new(Kind::Allocated, Order::PAGE, self.zone));
        Some(pfn)
    }

    /// Frees one page to the list of type `mt`, and flushes a batch when there are too many.
    #[inline]
    pub(crate) fn free(&self, page: &Page, pfn: Pfn, mt: MigrateType) {
        if self.pcp.push(page, pfn, mt, self.zone) >= self.high {
            self.pcp.flush(self.mm, self.zone, self.batch);
        }
    }

    /// Moves pages of type `mt` from the buddy allocator to the list, as many as a refill brings (Linux
    /// `rmqueue_bulk`, `nr_pcp_alloc`).
    pub(crate) fn refill(&self, mt: MigrateType) {
        let mut zone = self.mm.lock_zone(self.zone);
        for _ in 0..self.batch {
            let Some(block) = zone.rmqueue(Order::PAGE, mt) else { break };
            self.pcp.push(block.head(), block.pfn(), mt, self.zone);
        }
    }
}

#[cold]
#[inline(never)]
fn bad_page(pfn: Pfn, state: PageState, expected: PageState) -> ! {
    panic!("{pfn:?} on a per-CPU list: state is {state:?}, and should be {expected:?}")
}
