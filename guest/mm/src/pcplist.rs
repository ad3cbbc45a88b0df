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
//! A list is an array of frame numbers, not links in struct pages. So a page that is freed and taken again touches its
//! state only, and pages all over memory are freed at the cost of one cache line each. A refill brings the free pages
//! of an aligned range of 64 at a time, and a flush gives the neighbours among its pages back together.
//!
//! Differs from Linux on purpose: nothing between a page and a pageblock is kept, and only large zones keep
//! pageblocks; the newest are used first, and flushing takes the newest; a list has room for a fixed number of pages;
//! and lists have no lock.
//!
//! Invariants: a page is in state `Pcp` exactly when it is on one list. Lists and counts are changed through
//! [`PcpOwner`](owner::PcpOwner) and [`PcpStopped`] only. Limits are written under the memory hotplug lock only.

mod owner;
mod stopped;

use crate::Mm;
use crate::addr::{Order, PAGEBLOCK_ORDER, Pfn};
use crate::hotplug::{Hotplug, HotplugHeld};
use crate::node::{NodeId, ZoneId};
use crate::pageblock::MigrateType;
use crate::platform::Platform;
use crate::sync::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    UnseenU32,
};
use crate::variant::{self, Variant};
use crate::zone::{PcpLimits, Zone};

pub(crate) use owner::{ListOf, listed};
pub use stopped::PcpDisabled;
pub(crate) use stopped::{PcpStopped, StoppedLists};

/// Single pages that a CPU keeps of a zone at most: those of its limits, and those of a refill for the other type.
const MOST_PAGES: usize = PcpLimits::MOST_PAGES as usize + RUN_PAGES;
/// Pageblocks that a CPU keeps of a zone at most. A refill brings no more than the limits allow.
const MOST_PAGEBLOCKS: usize = 2 * PcpLimits::MOST_PAGEBLOCKS as usize;
/// Most pages that a refill brings.
const RUN_PAGES: usize = u64::BITS as usize;

/// The migrate types of which there are lists.
const TYPES: [MigrateType; 2] = [MigrateType::Unmovable, MigrateType::Movable];

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

/// The buddy blocks of one order that one CPU keeps of one zone, `N` at most: two stacks of frame numbers in one array.
/// The unmovable ones grow from its beginning, the movable ones from its end. Other CPUs may read the counts, which are
/// then those of some moment.
struct PcpList<const N: usize> {
    /// Buddy blocks by type: unmovable, movable.
    counts: [AtomicU32; 2],
    /// A model checker does not see them, because they are too many: it sees the counts beside them.
    heads: [UnseenU32; N],
}

impl<const N: usize> PcpList<N> {
    const fn new() -> Self {
        Self { counts: [const { AtomicU32::new(0) }; 2], heads: [const { UnseenU32::new(0) }; N] }
    }

    /// Where the `nth` buddy block of a type lies, from the oldest on.
    #[inline(always)]
    fn place(&self, mt: MigrateType, nth: u32) -> &UnseenU32 {
        let nth = nth as usize;
        &self.heads[if mt.index() & 1 == 0 { nth } else { N.wrapping_sub(1 + nth) }]
    }

    #[inline(always)]
    fn count_of(&self, mt: MigrateType) -> &AtomicU32 {
        &self.counts[mt.index() & 1]
    }

    /// Buddy blocks of both types.
    #[inline(always)]
    fn count(&self) -> u32 {
        self.counts[0].load(Relaxed) + self.counts[1].load(Relaxed)
    }

    /// Returns the buddy blocks of both types.
    #[inline(always)]
    fn push(&self, mt: MigrateType, head: Pfn) -> u32 {
        let (of, other) = (mt.index() & 1, mt.index() & 1 ^ 1);
        let [count, others] = [of, other].map(|mt| self.counts[mt].load(Relaxed));
        self.place(mt, count).store(head.get(), Relaxed);
        self.counts[of].store(count + 1, Relaxed);
        count + 1 + others
    }

    /// Takes the newest.
    #[inline(always)]
    fn pop(&self, mt: MigrateType) -> Option<Pfn> {
        let left = self.count_of(mt).load(Relaxed).checked_sub(1)?;
        self.count_of(mt).store(left, Relaxed);
        Some(Pfn::new(self.place(mt, left).load(Relaxed)))
    }

    /// The heads of both types.
    fn heads(&self) -> impl Iterator<Item = Pfn> {
        let of = move |mt| (0..self.count_of(mt).load(Relaxed)).map(move |nth| self.place(mt, nth));
        TYPES.into_iter().flat_map(of).map(|head| Pfn::new(head.load(Relaxed)))
    }
}

/// One CPU's lists of one zone, and their limits. One CPU at a time uses the lists, so their words are written by
/// plain stores.
pub(crate) struct PcpZone {
    /// See [`PcpLimits::packed`].
    limits: AtomicU64,
    pages: PcpList<MOST_PAGES>,
    pageblocks: PcpList<MOST_PAGEBLOCKS>,
}

impl PcpZone {
    pub(crate) const fn new() -> Self {
        Self {
            limits: AtomicU64::new(PcpLimits::OFF.packed()),
            pages: PcpList::new(),
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

    /// Buddy blocks of `order`, of which lists are kept.
    #[inline(always)]
    fn blocks(&self, order: Order) -> u32 {
        debug_assert!(is_kept(order), "no list keeps {order:?}");
        if order == Order::PAGE { self.pages.count() } else { self.pageblocks.count() }
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
