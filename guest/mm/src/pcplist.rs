//! Per-CPU lists: single pages kept by the CPU that freed them.
//!
//! Mirrors Linux `struct per_cpu_pages` for order 0. The limits `high` and `batch` are computed once per
//! zone, kept there, and published to the CPUs when they change.
//!
//! # Disabling a zone's lists
//! While memory is taken away, no page of it may stay on a per-CPU list. [`Mm::zone_pcp_disable`] sets
//! every CPU's limits to high 0 and batch 1, then drains every CPU. For each CPU the drain takes the
//! list's lock and reads the count inside. An operation that held the lock before is seen by the drain.
//! An operation after it sees the new limits, because the stores come before the unlock that the
//! operation acquires. With those limits a page that is freed to the list is flushed at once, and a
//! refill takes exactly the page that it returns, so no list holds a page while its lock is free. A
//! migrate type that was read before the pageblock was isolated does no harm: flushing reads it again
//! under the zone lock. `tests/interleavings/pcp.rs` runs all this in thousands of orders.
//!
//! Differs from Linux on purpose: only single pages are kept; the lists are singly linked, newest
//! first, and flushing takes the newest.
//!
//! Invariants: a page is in state `Pcp` exactly when it is on one list. Lists, count, and the limits
//! that an operation goes by are read and written through [`PcpGuard`] only. Limits are written under
//! the pcp disable lock only. High and batch are one word, so no operation goes by limits of two
//! publications.

mod guard;

use arrayvec::ArrayVec;

use crate::Mm;
use crate::addr::Pfn;
use crate::hotplug::Hotplug;
use crate::lock::{Guard, Locks, Rank, SpinLock};
use crate::node::{NodeId, ZoneId};
use crate::page::{Link, Page};
use crate::pageblock::MigrateType;
use crate::platform::Platform;
use crate::sync::{AtomicU8, AtomicU64, Ordering::Relaxed};
use crate::variant::{self, Variant};
use crate::zone::{PCP_OFF, Zone, pcp_limits};

pub(crate) use guard::PcpGuard;

/// Most CPUs that a machine can have.
pub const MAX_CPUS: usize = 64;

/// The pages that one CPU keeps, and its node.
#[repr(align(64))]
pub struct PerCpuPages {
    zones: [PcpZone; ZoneId::COUNT],
    /// The node that the CPU is on.
    node: AtomicU8,
}

impl PerCpuPages {
    /// Empty lists.
    #[must_use]
    pub const fn new() -> Self {
        Self { zones: [const { PcpZone::new() }; ZoneId::COUNT], node: AtomicU8::new(NodeId::FIRST.get()) }
    }

    #[inline]
    pub(crate) fn zone(&self, zone: ZoneId) -> &PcpZone {
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

impl Default for PerCpuPages {
    fn default() -> Self {
        Self::new()
    }
}

/// One CPU's lists of one zone, and their limits.
pub(crate) struct PcpZone {
    /// See [`packed`].
    limits: AtomicU64,
    lists: SpinLock<PcpLists>,
}

impl PcpZone {
    const fn new() -> Self {
        Self {
            limits: AtomicU64::new(packed(PCP_OFF)),
            lists: SpinLock::new(Rank::Pcp, PcpLists { first: [Link::NONE; 2], count: 0 }),
        }
    }

    /// High and batch, to be told. An operation on the lists reads them under the lock.
    #[inline]
    pub(crate) fn limits(&self) -> (u32, u32) {
        let word = self.limits.load(Relaxed);
        (word as u32, (word >> 32) as u32)
    }

    fn set_limits(&self, limits: (u32, u32)) {
        self.limits.store(packed(limits), Relaxed);
        #[cfg(test)]
        crate::steps::made();
    }
}

/// High and batch in one word: high in the lower half. One access reads or writes both, so no order of steps can tear
/// them: a refill or a flush that mixes two publications is impossible, and no model or mutant can show one.
const fn packed((high, batch): (u32, u32)) -> u64 {
    high as u64 | (batch as u64) << 32
}

/// The lists themselves: one for unmovable, one for movable pages.
struct PcpLists {
    first: [Link; 2],
    count: u32,
}

impl<P: Platform> Mm<P> {
    #[inline]
    pub(crate) fn this_cpu(&self) -> &'static PerCpuPages {
        &self.per_cpu[self.platform.this_cpu()]
    }

    /// The lists of every CPU that the machine may have.
    pub(crate) fn cpus(&self) -> &'static [PerCpuPages] {
        &self.per_cpu[..self.options.get().nr_cpus]
    }

    /// Sets the node of CPU `cpu`, before [`Mm::boot`]. A CPU whose node is not set is on the first node.
    pub fn set_cpu_node(&self, cpu: usize, node: NodeId) {
        self.per_cpu[cpu].set_node(node);
    }

    /// Counts the CPUs of each node.
    pub(crate) fn count_cpus(&self) {
        self.cpus().iter().for_each(|cpu| self.nodes.add_cpu(cpu.node()));
    }

    /// Takes the lock of the lists of `zone` that `cpu` has, if it is free.
    #[inline]
    pub(crate) fn try_lock_pcp<'m>(&'m self, cpu: &'m PerCpuPages, zone: ZoneId) -> Option<PcpGuard<'m, P>> {
        let pcp = cpu.zone(zone);
        Some(PcpGuard::new(pcp.lists.try_lock()?, pcp, self, zone))
    }

    /// Waits for the lock of the lists of `zone` that `cpu` has.
    pub(crate) fn lock_pcp<'m>(&'m self, cpu: &'m PerCpuPages, zone: ZoneId) -> PcpGuard<'m, P> {
        let pcp = cpu.zone(zone);
        PcpGuard::new(pcp.lists.lock(), pcp, self, zone)
    }

    /// Waits for the locks of the lists of `zone` that all CPUs have, and holds them together. Like
    /// [`SpinLock::lock_next`], only one function may do so.
    pub(crate) fn lock_all_pcp(&self, zone: ZoneId) -> ArrayVec<PcpGuard<'_, P>, MAX_CPUS> {
        let guard = |cpu: &'static PerCpuPages| {
            let pcp = cpu.zone(zone);
            PcpGuard::new(pcp.lists.lock_next(), pcp, self, zone)
        };
        self.cpus().iter().map(guard).collect()
    }

    /// Frees one page to this CPU's list. False when another CPU uses the list: then the page must go to
    /// the buddy allocator.
    #[inline]
    pub(crate) fn free_to_pcp(&self, page: &Page, pfn: Pfn, mt: MigrateType, zone: ZoneId) -> bool {
        let Some(mut lists) = self.try_lock_pcp(self.this_cpu(), zone) else { return false };
        lists.free(page, pfn, mt);
        true
    }

    /// Empties the lists of `zone` on every CPU (Linux `__drain_all_pages`, forced).
    pub(crate) fn drain_pcp(&self, zone: ZoneId) {
        self.counters.pcp_drains.fetch_add(1, Relaxed);
        for cpu in self.cpus() {
            #[cfg(feature = "shuttle")]
            if self.drain_wrongly(cpu, zone) {
                continue;
            }
            while self.lock_pcp(cpu, zone).drain_some() {}
        }
        self.platform.drained();
    }

    /// Drains the lists of `cpu` in a way that misses pages, if such a [`Variant`] is chosen.
    #[cfg(feature = "shuttle")]
    fn drain_wrongly(&self, cpu: &PerCpuPages, zone: ZoneId) -> bool {
        let (skips, counts) =
            (variant::is(Variant::DrainSkipsEmpty), variant::is(Variant::DrainCountsBefore));
        let looks_empty = (skips || counts) && cpu.zone(zone).lists.peek(|lists| lists.count) == 0;
        if looks_empty && counts {
            drop(self.lock_pcp(cpu, zone));
        }
        looks_empty
    }

    /// Keeps the per-CPU lists of `zone` empty until the guard is dropped. Another CPU that wants to
    /// disable lists, of any zone, or to change their limits waits meanwhile. So the holder of the guard
    /// may allocate and free, but must not call functions that change or check memory blocks.
    pub fn zone_pcp_disable(&self, zone: ZoneId) -> PcpDisabled<'_, P> {
        let limits = self.lock_pcp_limits();
        self.counters.pcp_disables.fetch_add(1, Relaxed);
        if variant::is(Variant::LimitsAfterDrain) {
            self.drain_pcp(zone);
            limits.publish(zone, PCP_OFF);
        } else {
            limits.publish(zone, PCP_OFF);
            self.drain_pcp(zone);
        }
        PcpDisabled { limits, zone }
    }

    /// Takes the pcp disable lock.
    fn lock_pcp_limits(&self) -> PcpLimits<'_, P> {
        PcpLimits { mm: self, _lock: self.pcp_disable.lock_with(|| self.platform.relax()) }
    }

    /// The limits that follow from the size of `zone`.
    pub(crate) fn pcp_limits_of(&self, zone: &Zone) -> (u32, u32) {
        // The CPUs of its node use it most. Without any, all CPUs use it (Linux `zone_highsize`).
        let near = self.nodes.nr_cpus(zone.id().node());
        pcp_limits(zone, if near > 0 { near } else { self.cpus().len() })
    }

    /// Pages on the lists of `zone`, all CPUs together.
    pub(crate) fn pcp_pages(&self, zone: ZoneId) -> u64 {
        self.cpus().iter().map(|cpu| u64::from(self.lock_pcp(cpu, zone).count())).sum()
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// Recomputes the limits of every zone and publishes those that changed. Waits while lists are
    /// disabled, so the CPU that disabled them must not call it.
    pub(crate) fn update_pcp_limits(&self) {
        let limits = self.mm.lock_pcp_limits();
        self.mm.zones().for_each(|zone| limits.update(zone));
    }
}

/// The right to change the limits of per-CPU lists: the pcp disable lock is held.
struct PcpLimits<'m, P: Platform> {
    mm: &'m Mm<P>,
    _lock: Guard<'m, ()>,
}

impl<P: Platform> PcpLimits<'_, P> {
    /// Gives every CPU's lists of `zone` these limits.
    fn publish(&self, zone: ZoneId, limits: (u32, u32)) {
        Locks::with(Rank::PcpDisable, Rank::PcpDisable).assert("publishing the limits of per-CPU lists");
        let mut cpus = self.mm.cpus();
        if variant::is(Variant::LimitsSkipLastCpu) && limits == PCP_OFF {
            cpus = &cpus[..cpus.len() - 1];
        }
        for cpu in cpus {
            cpu.zone(zone).set_limits(limits);
        }
    }

    /// Recomputes the limits of `zone`, and publishes them if they changed.
    fn update(&self, zone: &Zone) {
        let limits = self.mm.pcp_limits_of(zone);
        if limits != zone.pcp_limits() {
            zone.set_pcp_limits(limits);
            self.publish(zone.id(), limits);
            self.mm.counters.pcp_limit_updates.fetch_add(1, Relaxed);
        }
    }
}

/// The per-CPU lists of a zone stay empty while this exists; dropping it restores the zone's limits. So
/// lists are enabled once, by the holder that disabled them:
///
/// ```compile_fail,E0382
/// use tidevm_mm::{NodeId, ZoneType, sim::SimMachine};
///
/// let disabled = SimMachine::default().boot().zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Dma32));
/// drop(disabled);
/// drop(disabled);
/// ```
pub struct PcpDisabled<'m, P: Platform> {
    // Its lock is released after `drop` ran, so no CPU changes limits before these are restored.
    limits: PcpLimits<'m, P>,
    zone: ZoneId,
}

impl<P: Platform> Drop for PcpDisabled<'_, P> {
    fn drop(&mut self) {
        let limits = self.limits.mm.zone(self.zone).pcp_limits();
        self.limits.publish(self.zone, limits);
    }
}

#[cfg(test)]
mod tests;
