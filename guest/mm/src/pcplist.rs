//! Per-CPU lists: single pages kept by the CPU that freed them.
//!
//! Mirrors Linux `struct per_cpu_pages` for order 0. The limits `high` and `batch` are computed
//! once a zone, kept there, and published to the CPUs when they change.
//!
//! # Disabling a zone's lists
//! While memory is taken away no page of it may hide on a list. [`Mm::zone_pcp_disable`] sets
//! every CPU's limits to high 0 and batch 1, then drains every CPU. For each CPU the drain takes
//! the list's lock and reads the count inside: an operation that held the lock before is seen by
//! the drain, an operation after it sees the new limits (the stores come before the unlock that
//! it acquires). With those limits a page that is freed to the list is flushed at once, and a
//! refill takes exactly the page that it returns, so no list holds a page while its lock is free.
//! A type read before the pageblock was isolated does no harm: flushing reads it again under the
//! zone lock. `tests/interleavings/pcp.rs` is a model of all this that loom goes through; it repeats
//! these functions step by step.
//!
//! Differs from Linux on purpose: only single pages are kept; the lists are singly linked, newest
//! first, and flushing takes the newest.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use crate::Mm;
use crate::addr::{Order, Pfn};
use crate::buddy::Place;
use crate::hotplug::Hotplug;
use crate::lock::{Guard, Rank, SpinLock};
use crate::node::{NodeId, ZoneId};
use crate::page::{Kind, Link, Page, PageState};
use crate::pageblock::MigrateType;
use crate::platform::Platform;
use crate::sparse::Sparse;
use crate::zone::{PCP_OFF, Zone, pcp_limits};

/// Longest drain under one hold of the zone lock, in batches.
const DRAIN_BATCHES: u32 = 32;

/// What one CPU keeps to itself.
#[repr(align(64))]
pub struct PerCpu {
    zones: [PerCpuPages; ZoneId::COUNT],
    /// The node that the CPU is on.
    node: AtomicU8,
}

impl PerCpu {
    /// Empty lists.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            zones: [const { PerCpuPages::new() }; ZoneId::COUNT],
            node: AtomicU8::new(NodeId::FIRST.get()),
        }
    }

    #[inline]
    pub(crate) fn zone(&self, zone: ZoneId) -> &PerCpuPages {
        &self.zones[zone.index()]
    }

    #[inline]
    pub(crate) fn node(&self) -> NodeId {
        NodeId::new(self.node.load(Relaxed))
    }

    pub(crate) fn set_node(&self, node: NodeId) {
        self.node.store(node.get(), Relaxed);
    }
}

impl Default for PerCpu {
    fn default() -> Self {
        Self::new()
    }
}

/// One CPU's lists of one zone.
pub(crate) struct PerCpuPages {
    high: AtomicU32,
    batch: AtomicU32,
    lists: SpinLock<PcpLists>,
}

impl PerCpuPages {
    const fn new() -> Self {
        let (high, batch) = PCP_OFF;
        Self {
            high: AtomicU32::new(high),
            batch: AtomicU32::new(batch),
            lists: SpinLock::new(Rank::Pcp, PcpLists { first: [Link::NONE; 2], count: 0 }),
        }
    }

    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, PcpLists>> {
        self.lists.try_lock()
    }

    pub(crate) fn lock(&self) -> Guard<'_, PcpLists> {
        self.lists.lock()
    }

    /// Locks the lists while those of CPUs before this one are locked.
    pub(crate) fn lock_next(&self) -> Guard<'_, PcpLists> {
        self.lists.lock_next()
    }

    /// Pages that a refill brings (Linux `nr_pcp_alloc`).
    #[inline]
    pub(crate) fn refill(&self) -> u32 {
        let (high, batch) = self.limits();
        if high < batch { 1 } else { batch }
    }

    pub(crate) fn limits(&self) -> (u32, u32) {
        (self.high.load(Relaxed), self.batch.load(Relaxed))
    }

    fn set_limits(&self, (high, batch): (u32, u32)) {
        self.batch.store(batch, Relaxed);
        self.high.store(high, Relaxed);
    }
}

/// The lists themselves: one for unmovable, one for movable pages.
pub(crate) struct PcpLists {
    first: [Link; 2],
    count: u32,
}

impl PcpLists {
    #[inline]
    pub(crate) fn push(&mut self, page: &Page, pfn: Pfn, mt: MigrateType, zone: ZoneId) {
        let first = &mut self.first[mt.index() & 1];
        page.set_next(*first);
        page.set_state(PageState::new(Kind::Pcp, Order::PAGE, zone));
        *first = Link::to(pfn);
        self.count += 1;
    }

    /// Takes a page of type `mt`. Its state is the caller's to set; here it is looked at whether the
    /// page was overwritten on the list (Linux `check_new_page`).
    #[inline]
    pub(crate) fn pop<'s>(
        &mut self,
        sparse: &'s Sparse,
        mt: MigrateType,
        zone: ZoneId,
    ) -> Option<(Pfn, &'s Page)> {
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

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The pages on the lists.
    pub(crate) fn iter<'s>(&self, sparse: &'s Sparse) -> impl Iterator<Item = (Pfn, &'s Page)> {
        let mut lists = self.first;
        core::iter::from_fn(move || {
            let list = lists.iter_mut().find(|first| **first != Link::NONE)?;
            let pfn = list.pfn()?;
            let page = sparse.page(pfn);
            *list = page.next();
            Some((pfn, page))
        })
    }
}

impl<P: Platform> Mm<P> {
    #[inline]
    pub(crate) fn this_cpu(&self) -> &'static PerCpu {
        &self.per_cpu[self.platform.this_cpu()]
    }

    /// What every CPU that the machine may have keeps to itself.
    pub(crate) fn cpus(&self) -> &'static [PerCpu] {
        &self.per_cpu[..self.options.get().nr_cpus]
    }

    /// Frees one page to this CPU's list. False when the list is in use by another CPU: the page
    /// must go to the buddy then.
    #[inline]
    pub(crate) fn free_to_pcp(&self, page: &Page, pfn: Pfn, mt: MigrateType, zone: ZoneId) -> bool {
        let pcp = self.this_cpu().zone(zone);
        let Some(mut lists) = pcp.try_lock() else { return false };
        lists.push(page, pfn, mt, zone);
        let high = pcp.high.load(Relaxed);
        if lists.count >= high {
            let batch = pcp.batch.load(Relaxed);
            self.flush(zone, &mut lists, if high < batch { 1 } else { batch });
        }
        true
    }

    /// Moves up to `pages` pages from `lists` to the buddy (Linux `free_pcppages_bulk`).
    #[cold]
    #[inline(never)]
    fn flush(&self, zone: ZoneId, lists: &mut PcpLists, pages: u32) {
        let mut buddy = self.zone(zone).lock();
        for _ in 0..pages {
            let Some((pfn, _)) = lists
                .pop(&self.sparse, MigrateType::Movable, zone)
                .or_else(|| lists.pop(&self.sparse, MigrateType::Unmovable, zone))
            else {
                break;
            };
            let pages = self.sparse.pages(pfn.section()).expect("a page on a list has a section");
            buddy.free_block(&self.sparse, pages, pfn, Order::PAGE, Place::Head);
        }
    }

    /// Empties the lists of `zone` on every CPU (Linux `__drain_all_pages`, forced).
    pub(crate) fn drain_pcp(&self, zone: ZoneId) {
        self.counters.pcp_drains.fetch_add(1, Relaxed);
        for cpu in self.cpus() {
            let pcp = cpu.zone(zone);
            loop {
                let mut lists = pcp.lock();
                // Read under the lock: a count read before it could miss a refill in progress.
                let count = lists.count;
                if count == 0 {
                    break;
                }
                let (_, batch) = pcp.limits();
                self.flush(zone, &mut lists, count.min(batch * DRAIN_BATCHES));
            }
        }
    }

    /// Keeps the per-CPU lists of `zone` empty until the guard is dropped. Others who want to
    /// disable lists, of whatever zone, or to change their limits wait meanwhile; so the holder of
    /// the guard may allocate and free, but not call what changes or checks memory blocks.
    pub fn zone_pcp_disable(&self, zone: ZoneId) -> PcpDisabled<'_, P> {
        let lock = self.pcp_disable.lock_with(|| self.platform.relax());
        self.counters.pcp_disables.fetch_add(1, Relaxed);
        self.publish_pcp_limits(zone, PCP_OFF);
        self.drain_pcp(zone);
        PcpDisabled { mm: self, zone, _lock: lock }
    }

    fn publish_pcp_limits(&self, zone: ZoneId, limits: (u32, u32)) {
        for cpu in self.cpus() {
            cpu.zone(zone).set_limits(limits);
        }
    }

    /// The limits that follow from the size of `zone`.
    pub(crate) fn pcp_limits_of(&self, zone: &Zone) -> (u32, u32) {
        // The CPUs of its node are who mostly uses it; without any, all do (Linux `zone_highsize`).
        let near = self.nodes.nr_cpus(zone.id().node());
        pcp_limits(zone, if near > 0 { near } else { self.cpus().len() })
    }

    /// Pages on the lists of `zone`, all CPUs together.
    pub(crate) fn pcp_pages(&self, zone: ZoneId) -> u64 {
        self.cpus().iter().map(|cpu| u64::from(cpu.zone(zone).lock().count())).sum()
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// Recomputes the limits of every zone and publishes the ones that changed. Waits while lists are
    /// disabled, so the CPU that disabled them must not call it.
    pub(crate) fn update_pcp_limits(&self) {
        let mm = self.mm;
        let _lock = mm.pcp_disable.lock_with(|| mm.platform.relax());
        for zone in mm.zones() {
            let limits = mm.pcp_limits_of(zone);
            if limits != zone.pcp_limits() {
                zone.set_pcp_limits(limits);
                mm.publish_pcp_limits(zone.id(), limits);
                mm.counters.pcp_limit_updates.fetch_add(1, Relaxed);
            }
        }
    }
}

#[cold]
#[inline(never)]
fn bad_page(pfn: Pfn, state: PageState, expected: PageState) -> ! {
    panic!("{pfn:?} on a per-CPU list: state is {state:?}, and should be {expected:?}")
}

/// The per-CPU lists of a zone stay empty while this exists; dropping it puts the zone's limits
/// back. So they are enabled by who disabled them, once:
///
/// ```compile_fail,E0382
/// use tidevm_mm::{NodeId, ZoneType, sim::SimMachine};
///
/// let disabled = SimMachine::default().boot().zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Dma32));
/// drop(disabled);
/// drop(disabled);
/// ```
pub struct PcpDisabled<'m, P: Platform> {
    mm: &'m Mm<P>,
    zone: ZoneId,
    // Released after `drop` ran: nobody sees the lists enabled before they are.
    _lock: Guard<'m, ()>,
}

impl<P: Platform> Drop for PcpDisabled<'_, P> {
    fn drop(&mut self) {
        let limits = self.mm.zone(self.zone).pcp_limits();
        self.mm.publish_pcp_limits(self.zone, limits);
    }
}

#[cfg(test)]
mod tests;
