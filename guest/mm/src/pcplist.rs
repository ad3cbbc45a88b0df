//! Per-CPU lists: single pages, and pageblocks, kept by the CPU that freed them.
//!
//! Mirrors Linux `struct per_cpu_pages` for order 0 and for the order of huge pages. The limits ([`PcpLimits`]) are
//! computed once per zone, kept there, and published to the CPUs when they change.
//!
//! # Who uses a list
//! Its CPU does, by plain loads and stores: a list has no lock. An operation begins with one look at the limits
//! ([`OwnCpu::lists`](owner::OwnCpu::lists)). While they are those of stopped lists ([`PcpLimits::OFF`]), the CPU leaves
//! its list as it is and goes to the buddy allocator. Whoever needs the lists of other CPUs holds the memory hotplug lock and does this
//! ([`Mm::stop_pcp`]):
//! 1. It publishes [`PcpLimits::OFF`] to every CPU.
//! 2. It waits for a grace period ([`Platform::synchronize`]). An operation that went by earlier limits has ended
//!    then, and what it wrote is seen. An operation that begins later sees the new limits.
//! 3. It uses the lists of all CPUs.
//! 4. It publishes the zone's limits again, by a Release store. The CPU that goes by them has read them by an Acquire
//!    load, so it sees what the other one did to its list.
//!
//! Steps 1 and 2 take the place of a lock that every operation would take, so the fast path has no locked instruction.
//!
//! # Disabling a zone's lists
//! While memory is taken away, no page of it may stay on a per-CPU list. [`Mm::zone_pcp_disable`] stops the
//! lists, drains them, and keeps them stopped. A migrate type that was read before the pageblock was isolated does no
//! harm: the free that read it has ended before the drain, and a page that leaves a list has its type read again under
//! the zone lock. `tests/interleavings/pcp.rs` runs all this in thousands of orders, and `sync/tests/pcplist.rs` its
//! memory orderings.
//!
//! A refill brings the free pages of an aligned range of 64 as a run, so taking many pages touches no struct page but
//! the ones that have the pages' states.
//!
//! Differs from Linux on purpose: nothing between a page and a pageblock is kept, and only large zones keep
//! pageblocks; the lists are singly linked, newest first, and flushing takes the newest; and lists have no lock.
//!
//! Invariants: a page is in state `Pcp`, or a tail that belongs to no buddy block, exactly when it is on one list. Lists and count are changed through
//! [`PcpOwner`](owner::PcpOwner) and [`PcpStopped`] only. Limits are written under the memory hotplug lock only.

mod owner;
mod stopped;

use crate::Mm;
use crate::addr::{Order, PAGEBLOCK_ORDER, Pfn};
use crate::hotplug::{Hotplug, HotplugHeld};
use crate::node::{NodeId, ZoneId};
use crate::page::LinkCell;
use crate::platform::Platform;
use crate::sync::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use crate::variant::{self, Variant};
use crate::zone::{PcpLimits, Zone};

pub(crate) use owner::{ListOf, listed};
pub use stopped::PcpDisabled;
pub(crate) use stopped::{PcpStopped, StoppedLists};

/// Most CPUs that a machine can have.
pub const MAX_CPUS: usize = 64;

/// The pages that one CPU keeps, and its node.
#[repr(align(64))]
pub struct PerCpuPages {
    /// By the zone's number.
    zones: [PcpZone; ZoneId::NUMBERS],
    /// The node that the CPU is on.
    node: AtomicU8,
}

impl PerCpuPages {
    /// Empty lists.
    #[must_use]
    pub const fn new() -> Self {
        Self { zones: [const { PcpZone::new() }; ZoneId::NUMBERS], node: AtomicU8::new(NodeId::FIRST.get()) }
    }

    #[inline]
    pub(crate) fn zone(&self, zone: ZoneId) -> &PcpZone {
        &self.zones[zone.number()]
    }

    #[inline]
    pub(crate) fn node(&self) -> NodeId {
        NodeId::of_low_bits(self.node.load(Relaxed))
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

/// The buddy blocks of one order that one CPU keeps of one zone. Other CPUs may read the count, which is then one of
/// some moment.
struct PcpList {
    /// One list for unmovable, one for movable pages.
    first: [LinkCell; 2],
    /// Buddy blocks on both.
    count: AtomicU32,
}

impl PcpList {
    const fn new() -> Self {
        Self { first: [const { LinkCell::new() }; 2], count: AtomicU32::new(0) }
    }

    #[inline]
    fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }
}

/// Single pages of one aligned range of 64, as a refill brings them. They have no links, and their states stay those of
/// tails, because each is taken in its turn.
struct PcpRun {
    /// The first page of the range. It may be frame 0, which is no page of the run.
    first: AtomicU32,
    /// A bit for each page.
    bits: AtomicU64,
}

impl PcpRun {
    const fn new() -> Self {
        Self { first: AtomicU32::new(0), bits: AtomicU64::new(0) }
    }

    /// Its pages: the first page of the range, and a bit for each. None when there are none.
    #[inline]
    fn pages(&self) -> Option<(Pfn, u64)> {
        let bits = self.bits.load(Relaxed);
        (bits != 0).then(|| (Pfn::new(self.first.load(Relaxed)), bits))
    }

    #[inline]
    fn set(&self, first: Pfn, bits: u64) {
        self.first.store(first.get(), Relaxed);
        self.bits.store(bits, Relaxed);
    }

    /// Takes the first page.
    #[inline]
    fn take(&self) -> Option<Pfn> {
        let (first, bits) = self.pages()?;
        self.bits.store(bits & (bits - 1), Relaxed);
        Some(first.add(bits.trailing_zeros()))
    }

    /// Takes all pages.
    fn take_all(&self) -> Option<(Pfn, u64)> {
        let all = self.pages()?;
        self.bits.store(0, Relaxed);
        Some(all)
    }
}

/// The pages of `bits` in the range that begins with `first`, ascending.
fn pages_of((first, bits): (Pfn, u64)) -> impl Iterator<Item = Pfn> {
    (0..u64::BITS).filter(move |&at| bits >> at & 1 != 0).map(move |at| first.add(at))
}

/// One CPU's lists of one zone, and their limits. One CPU at a time uses the lists, so their words are written by
/// plain stores.
pub(crate) struct PcpZone {
    /// See [`PcpLimits::packed`].
    limits: AtomicU64,
    /// Single pages; `count` counts those of `runs` too.
    pages: PcpList,
    /// Single pages that come after those of the list, by type as the lists are.
    runs: [PcpRun; 2],
    pageblocks: PcpList,
}

impl PcpZone {
    pub(crate) const fn new() -> Self {
        Self {
            limits: AtomicU64::new(PcpLimits::OFF.packed()),
            pages: PcpList::new(),
            runs: [const { PcpRun::new() }; 2],
            pageblocks: PcpList::new(),
        }
    }

    /// The limits.
    #[inline]
    pub(crate) fn limits(&self) -> PcpLimits {
        // Pairs with the Release in `set_limits`: a CPU that reads limits of lists that were stopped before sees what
        // was done to the lists meanwhile.
        PcpLimits::unpacked(self.limits.load(Acquire))
    }

    pub(crate) fn set_limits(&self, limits: PcpLimits) {
        self.limits.store(limits.packed(), Release);
        #[cfg(test)]
        crate::steps::made();
    }

    /// The list of `order`, of which lists are kept.
    #[inline]
    fn list(&self, order: Order) -> &PcpList {
        debug_assert!(is_kept(order), "no list keeps {order:?}");
        if order == Order::PAGE { &self.pages } else { &self.pageblocks }
    }

    /// Pages on the lists.
    pub(crate) fn count(&self) -> u32 {
        self.pages.count() + (self.pageblocks.count() << PAGEBLOCK_ORDER)
    }
}

/// Whether there are lists of buddy blocks of `order`.
#[inline]
pub(crate) fn is_kept(order: Order) -> bool {
    order == Order::PAGE || order == Order::PAGEBLOCK
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

    /// The limits that follow from the size of `zone`.
    pub(crate) fn pcp_limits_of(&self, zone: &Zone) -> PcpLimits {
        // The CPUs of its node use it most. Without any, all CPUs use it (Linux `zone_highsize`).
        let near = self.nodes.nr_cpus(zone.id().node());
        PcpLimits::of(zone, if near > 0 { near } else { self.cpus().len() })
    }

    /// Pages on the lists of `zone`, all CPUs together. Exact when no CPU uses its lists.
    pub(crate) fn pcp_pages(&self, zone: ZoneId) -> u64 {
        self.cpus().iter().map(|cpu| u64::from(cpu.zone(zone).count())).sum()
    }

    /// Gives every CPU's lists of `zone` these limits.
    fn publish_pcp_limits(&self, zone: ZoneId, limits: PcpLimits, _held: &HotplugHeld) {
        let mut cpus = self.cpus();
        if variant::is(Variant::LimitsSkipLastCpu) && limits == PcpLimits::OFF {
            cpus = &cpus[..cpus.len() - 1];
        }
        for cpu in cpus {
            cpu.zone(zone).set_limits(limits);
        }
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// Recomputes the limits of every zone and publishes those that changed.
    pub(crate) fn update_pcp_limits(&self) {
        for zone in self.mm.zones() {
            let limits = self.mm.pcp_limits_of(zone);
            if limits != zone.pcp_limits() {
                zone.set_pcp_limits(limits);
                self.mm.publish_pcp_limits(zone.id(), limits, self.held());
                self.mm.counters.pcp_limit_updates.fetch_add(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
