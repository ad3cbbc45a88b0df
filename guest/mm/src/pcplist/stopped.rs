//! The lists of all CPUs, while no CPU uses its own.
//!
//! Mirrors Linux `zone_pcp_disable`, `zone_pcp_enable` and `__drain_all_pages`. Differs from Linux on purpose: the limits
//! of stopped lists keep the owners away, so the drain needs no lock of theirs and is exact.
//!
//! Invariants: a [`PcpStopped`] is made after the grace period that follows the limits of stopped lists, and the zones'
//! own limits are published again when it is dropped, under the same hold of the memory hotplug lock. So it alone uses
//! the lists of its zones. A request has one grace period, however many zones it stops.

use super::PcpZone;
use crate::Mm;
use crate::addr::{Order, Pfn};
use crate::hotplug::{Hotplug, HotplugHeld};
use crate::node::ZoneId;
use crate::page::PageRef;
use crate::platform::Platform;
use crate::sync::{Ordering::Relaxed, spin_loop};
use crate::variant::{self, Variant};
use crate::zone::{PcpLimits, Zone};

/// Longest drain under one hold of the zone lock, in batches.
const DRAIN_BATCHES: u32 = 32;

impl<P: Platform> Mm<P> {
    /// Stops the lists of `zones` on every CPU.
    pub(crate) fn stop_pcp<'m>(&'m self, zones: &'m [Zone], held: &'m HotplugHeld) -> PcpStopped<'m, P> {
        self.stop(zones, held);
        PcpStopped { mm: self, zones, held }
    }

    /// Stops the lists of `zone` and drains them. They stay empty until the result is dropped.
    pub(crate) fn disable_pcp<'m>(&'m self, zone: ZoneId, held: &'m HotplugHeld) -> PcpStopped<'m, P> {
        self.disable(zone, held);
        PcpStopped { mm: self, zones: self.only(zone), held }
    }

    /// Empties the lists of `zone` on every CPU. They are in use again when this returns.
    pub(crate) fn drain_pcp(&self, zone: ZoneId, held: &HotplugHeld) {
        self.stop_and_drain(zone, held);
        self.restore(self.only(zone), held);
        self.platform.drained();
    }

    /// Keeps the per-CPU lists of `zone` empty until the result is dropped. It holds the memory hotplug lock, so other
    /// CPUs that want to disable lists, of any zone, or to change their limits wait meanwhile. The holder may allocate
    /// and free, but must not call functions that take that lock: those that change or check memory blocks.
    pub fn zone_pcp_disable(&self, zone: ZoneId) -> PcpDisabled<'_, P> {
        let hotplug = self.hotplug();
        self.disable(zone, hotplug.held());
        PcpDisabled { hotplug, zone }
    }

    fn only(&self, zone: ZoneId) -> &[Zone] {
        core::slice::from_ref(self.zone(zone))
    }

    fn disable(&self, zone: ZoneId, held: &HotplugHeld) {
        self.counters.pcp_disables.fetch_add(1, Relaxed);
        self.stop_and_drain(zone, held);
        self.platform.drained();
    }

    /// From now on until [`restore`](Self::restore) no CPU uses its lists of `zones`.
    fn stop(&self, zones: &[Zone], held: &HotplugHeld) {
        let off = || zones.iter().for_each(|zone| self.publish_pcp_limits(zone.id(), PcpLimits::OFF, held));
        let look_empty = || zones.iter().all(|zone| self.pcp_pages(zone.id()) == 0);
        if variant::is(Variant::LimitsAfterGrace) {
            self.platform.synchronize();
            spin_loop();
            off();
            return;
        }
        off();
        if variant::is(Variant::NoGrace) || variant::is(Variant::NoGraceIfEmpty) && look_empty() {
            return;
        }
        self.platform.synchronize();
    }

    /// Gives every CPU the limits of `zones` again.
    fn restore(&self, zones: &[Zone], held: &HotplugHeld) {
        zones.iter().for_each(|zone| self.publish_pcp_limits(zone.id(), zone.pcp_limits(), held));
    }

    /// Stops the lists of `zone` and empties them (Linux `__drain_all_pages`, forced).
    fn stop_and_drain(&self, zone: ZoneId, held: &HotplugHeld) {
        self.counters.pcp_drains.fetch_add(1, Relaxed);
        if variant::is(Variant::LimitsAfterDrain) {
            self.platform.synchronize();
            self.lists(zone).for_each(|lists| while lists.drain_some() {});
            self.publish_pcp_limits(zone, PcpLimits::OFF, held);
            return;
        }
        let early = variant::is(Variant::DrainCountsBefore)
            .then(|| self.lists(zone).map(|lists| lists.count()).sum::<u32>());
        self.stop(self.only(zone), held);
        if early != Some(0) {
            self.lists(zone).for_each(|lists| while lists.drain_some() {});
        }
    }

    /// The lists of `zone` that each CPU has. They are stopped.
    fn lists(&self, zone: ZoneId) -> impl Iterator<Item = StoppedLists<'_, P>> + Clone {
        self.cpus().iter().map(move |cpu| StoppedLists { pcp: cpu.zone(zone), mm: self, zone })
    }
}

/// The lists that all CPUs have of some zones, stopped until this is dropped: each CPU leaves its own as they are.
pub(crate) struct PcpStopped<'m, P: Platform> {
    mm: &'m Mm<P>,
    zones: &'m [Zone],
    held: &'m HotplugHeld,
}

impl<P: Platform> PcpStopped<'_, P> {
    /// The lists of `zone` that each CPU has.
    pub(crate) fn lists(&self, zone: ZoneId) -> impl Iterator<Item = StoppedLists<'_, P>> + Clone {
        assert!(self.zones.iter().any(|of| of.id() == zone), "the lists of {zone:?} are in use");
        self.mm.lists(zone)
    }
}

impl<P: Platform> Drop for PcpStopped<'_, P> {
    fn drop(&mut self) {
        self.mm.restore(self.zones, self.held);
    }
}

/// One CPU's lists of one zone, which are stopped.
pub(crate) struct StoppedLists<'m, P: Platform> {
    pcp: &'m PcpZone,
    mm: &'m Mm<P>,
    zone: ZoneId,
}

impl<'m, P: Platform> StoppedLists<'m, P> {
    /// Pages on the lists.
    pub(crate) fn count(&self) -> u32 {
        self.pcp.count()
    }

    /// The buddy blocks on the lists: their heads and their order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (Pfn, PageRef<'m>, Order)> + use<'m, P> {
        let (sparse, pcp) = (&self.mm.sparse, self.pcp);
        let pages = pcp.pages.heads().map(|pfn| (pfn, Order::PAGE));
        let pageblocks = pcp.pageblocks.heads().map(|pfn| (pfn, Order::PAGEBLOCK));
        pages.chain(pageblocks).map(move |(pfn, order)| (pfn, sparse.page(pfn), order))
    }

    /// Moves one hold's worth of buddy blocks to the buddy allocator. False when there were none.
    pub(super) fn drain_some(&self) -> bool {
        // The limits of the CPU are those of stopped lists.
        let batch = u32::from(self.mm.zone(self.zone).pcp_limits().batch);
        let (order, most) = match self.pcp.pages.count() {
            0 => (Order::PAGEBLOCK, DRAIN_BATCHES),
            _ => (Order::PAGE, batch * DRAIN_BATCHES),
        };
        let count = self.pcp.blocks(order);
        if count == 0 {
            return false;
        }
        self.pcp.flush(self.mm, self.zone, order, count.min(most));
        true
    }
}

/// The per-CPU lists of a zone stay empty while this exists; dropping it restores the zone's limits. So
/// lists are enabled once, by the holder that disabled them:
///
/// ```compile_fail,E0382
/// use tidevm_mm::{NodeId, ZoneType};
/// use tidevm_mm_sim::SimMachine;
///
/// let disabled = SimMachine::default().boot().zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Dma32));
/// drop(disabled);
/// drop(disabled);
/// ```
pub struct PcpDisabled<'m, P: Platform> {
    // Its lock is released after `drop` ran, so no CPU changes limits before these are restored.
    hotplug: Hotplug<'m, P>,
    zone: ZoneId,
}

impl<P: Platform> Drop for PcpDisabled<'_, P> {
    fn drop(&mut self) {
        let mm = self.hotplug.mm;
        mm.restore(mm.only(self.zone), self.hotplug.held());
    }
}
