//! Which zones serve a request, in which order: the zones of the nearest node first.
//!
//! Mirrors Linux `build_zonelists` and `find_next_best_node`: all zones of the asking CPU's node from
//! the top, then all of the next node by distance. A zonelist is one word. One store replaces it when a
//! zone gets its first memory or loses its last, so a reader sees either the old or the new one.
//!
//! Differs from Linux on purpose: nodes at the same distance are not taken in turns (Linux
//! `node_load`), because with four nodes turns decide nothing.
//!
//! Invariants: the words change under the memory hotplug lock. Distances and the nodes of CPUs are set
//! before boot.

use crate::Mm;
use crate::geometry::MAX_NODES;
use crate::hotplug::Hotplug;
use crate::irq::IrqOff;
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::platform::Platform;
use crate::sync::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use crate::zone::{Zone, ZoneGuard};

/// Distance from a node to itself (Linux `LOCAL_DISTANCE`, ACPI's SLIT).
const LOCAL_DISTANCE: u8 = 10;
/// Distance between two nodes for which none was set (Linux `REMOTE_DISTANCE`).
const REMOTE_DISTANCE: u8 = 20;

/// Zones in the order in which they are tried: four bits each, the first one lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zonelist(u64);

impl Zonelist {
    /// Four bits that name no zone end the list.
    const EMPTY: Self = Self(u64::MAX);

    #[inline]
    pub(crate) fn first(self) -> Option<ZoneId> {
        ZoneId::from_bits((self.0 & ((1 << ZoneId::BITS) - 1)) as u8)
    }

    fn push_front(self, zone: ZoneId) -> Self {
        Self(self.0 << ZoneId::BITS | u64::from(zone.bits()))
    }
}

impl Iterator for Zonelist {
    type Item = ZoneId;

    #[inline]
    fn next(&mut self) -> Option<ZoneId> {
        let first = self.first()?;
        self.0 = self.0 >> ZoneId::BITS | !(u64::MAX >> ZoneId::BITS);
        Some(first)
    }
}

/// One node, seen from the others.
struct Node {
    /// For requests that may use up to Normal, and up to Movable.
    zonelists: [AtomicU64; 2],
    /// The distance to every node, in tenths of the distance to itself.
    distance: [AtomicU8; MAX_NODES],
    nr_cpus: AtomicU32,
}

/// All nodes.
pub(crate) struct Nodes {
    nodes: [Node; MAX_NODES],
    /// One more than the highest node that has CPUs or memory (Linux `nr_node_ids`).
    end: AtomicU8,
    /// The zones with memory that the zonelists were built from, one bit per zone.
    built_from: AtomicU32,
}

impl Nodes {
    pub(crate) const fn new() -> Self {
        Self {
            nodes: [const {
                Node {
                    zonelists: [const { AtomicU64::new(Zonelist::EMPTY.0) }; 2],
                    distance: [const { AtomicU8::new(REMOTE_DISTANCE) }; MAX_NODES],
                    nr_cpus: AtomicU32::new(0),
                }
            }; MAX_NODES],
            end: AtomicU8::new(1),
            built_from: AtomicU32::new(0),
        }
    }

    /// The zones for a request of a CPU on `node` that may use zones of type `highest` and below.
    #[inline]
    pub(crate) fn zonelist(&self, node: NodeId, highest: ZoneType) -> Zonelist {
        let movable = usize::from(highest == ZoneType::Movable);
        Zonelist(self.nodes[node.index()].zonelists[movable].load(Acquire))
    }

    /// CPUs on `node`.
    pub(crate) fn nr_cpus(&self, node: NodeId) -> usize {
        self.nodes[node.index()].nr_cpus.load(Relaxed) as usize
    }

    /// Counts one more CPU on `node`.
    pub(crate) fn add_cpu(&self, node: NodeId) {
        self.nodes[node.index()].nr_cpus.fetch_add(1, Relaxed);
        self.include(node);
    }

    /// The nodes up to the highest that has or had CPUs or memory, ascending.
    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + Clone + use<> {
        NodeId::all().take(self.end.load(Relaxed).into())
    }

    /// Makes `node` one of [`ids`](Self::ids).
    pub(crate) fn include(&self, node: NodeId) {
        self.end.fetch_max(node.get() + 1, Relaxed);
    }

    /// The nodes, from the nearest to `from`, which is itself, to the farthest.
    pub(crate) fn by_distance(&self, from: NodeId) -> impl Iterator<Item = NodeId> {
        let mut left: [Option<NodeId>; MAX_NODES] = [None; MAX_NODES];
        self.ids().for_each(|node| left[node.index()] = Some(node));
        // The nearest. Ties: prefer a node without CPUs, then the next higher number, so that not every
        // node falls back to node 0.
        let penalty = |node: NodeId| {
            let distance = self.nodes[from.index()].distance[node.index()].load(Relaxed);
            u32::from(distance) + u32::from(node < from) + u32::from(self.nr_cpus(node) > 0)
        };
        let key = move |node: NodeId| if node == from { 0 } else { penalty(node) };
        let keys = left.map(|node| node.map_or(u32::MAX, key));
        core::iter::from_fn(move || {
            let next = (0..MAX_NODES).filter(|&node| left[node].is_some()).min_by_key(|&node| keys[node])?;
            left[next].take()
        })
    }

    /// Rebuilds all zonelists from the zones that have memory (Linux `build_all_zonelists`): one bit of `populated` per
    /// zone.
    pub(crate) fn build_zonelists(&self, populated: u32) {
        let is_only = self.ids().count() == 1;
        let mut lists = self.zonelists_from(NodeId::FIRST, populated);
        for node in NodeId::all() {
            // With one node, it is the nearest from everywhere.
            if !is_only {
                lists = self.zonelists_from(node, populated);
            }
            for (place, list) in self.nodes[node.index()].zonelists.iter().zip(lists) {
                // Pairs with the Acquire in `zonelist`: a CPU that finds a zone there also finds its pages.
                place.store(list.0, Release);
            }
        }
    }

    /// The zonelists for requests of `node`: up to Normal, and up to Movable.
    fn zonelists_from(&self, node: NodeId, populated: u32) -> [Zonelist; 2] {
        let mut nearest = [None; MAX_NODES];
        self.by_distance(node).zip(&mut nearest).for_each(|(node, slot)| *slot = Some(node));
        [ZoneType::Normal, ZoneType::Movable].map(|highest| {
            // From the farthest to the nearest, because each zone is put in front of the list.
            let order = nearest.into_iter().rev().flatten();
            order
                .flat_map(|node| ZoneType::ALL.into_iter().map(move |zone| node.zone(zone)))
                .filter(|zone| zone.zone_type() <= highest && populated >> zone.index() & 1 != 0)
                .fold(Zonelist::EMPTY, Zonelist::push_front)
        })
    }
}

impl<P: Platform> Mm<P> {
    /// Sets the distance from `from` to `to`, in tenths of the distance from a node to itself, before
    /// [`Mm::boot`]. Two nodes whose distance is not set are twice as far.
    pub fn set_distance(&self, from: NodeId, to: NodeId, distance: u8) {
        self.nodes.nodes[from.index()].distance[to.index()].store(distance, Relaxed);
    }

    /// The distance from `from` to `to`, in tenths of the distance from a node to itself.
    pub fn distance(&self, from: NodeId, to: NodeId) -> u8 {
        match from == to {
            true => LOCAL_DISTANCE,
            false => self.nodes.nodes[from.index()].distance[to.index()].load(Relaxed),
        }
    }

    /// All zones of the nodes in use, with or without memory.
    pub(crate) fn zones(&self) -> core::slice::Iter<'_, Zone> {
        self.zones[..self.nodes.ids().count() * ZoneType::COUNT].iter()
    }

    #[inline]
    pub(crate) fn zone(&self, id: ZoneId) -> &Zone {
        &self.zones[id.index()]
    }

    /// Takes the lock of zone `id`.
    #[inline]
    pub(crate) fn lock_zone<'z>(&'z self, id: ZoneId, _off: &'z IrqOff<'_, P>) -> ZoneGuard<'z> {
        self.zone(id).lock(&self.sparse)
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// Rebuilds the zonelists, if a zone has got its first memory or lost its last.
    pub(crate) fn build_zonelists(&self) {
        let built_from = &self.mm.nodes.built_from;
        let populated = self.populated();
        if built_from.load(Relaxed) != populated {
            built_from.store(populated, Relaxed);
            self.mm.nodes.build_zonelists(populated);
        }
    }

    /// The zones with memory, one bit per zone.
    fn populated(&self) -> u32 {
        let bit = |zone: &Zone| u32::from(zone.present() > 0) << zone.id().index();
        self.mm.zones().map(bit).fold(0, |all, bit| all | bit)
    }

    /// Rebuilds the zonelists, whether a zone has changed or not.
    pub(crate) fn rebuild_zonelists(&self) {
        self.mm.nodes.build_zonelists(self.populated());
    }
}

#[cfg(test)]
mod tests {
    use super::Zonelist;
    use crate::addr::SECTION_PAGES;
    use crate::node::{NodeId, ZoneId, ZoneType};
    use crate::sim::{Sim, SimMachine};
    use crate::zone::Watermark;
    use crate::{MemoryContent, Mm, PageblockSet, SectionNr};

    #[test]
    fn a_zonelist_has_room_for_all_zones() {
        let all = || NodeId::all().flat_map(|node| ZoneType::ALL.map(|zone| node.zone(zone)));
        let mut list = Zonelist::EMPTY;
        assert_eq!(list.next(), None);
        for (count, zone) in all().enumerate() {
            assert_eq!(list.count(), count);
            list = list.push_front(zone);
        }
        let ascending: std::vec::Vec<ZoneId> = all().collect();
        assert!(list.eq(ascending.into_iter().rev()));
    }

    /// Three CPUs on node 0, one on node 1, none on node 2; two equal sections of Normal on the first two,
    /// and one of Dma32 on node 0.
    fn machine() -> &'static Mm<Sim> {
        let section = |nr: u32, node: u8| (nr * SECTION_PAGES, SECTION_PAGES, node);
        SimMachine {
            memory: [0, 32, 33].map(|nr| (nr * SECTION_PAGES, SECTION_PAGES)).into(),
            nodes: [section(32, 0), section(33, 1)].into(),
            cpus: 4,
            cpu_nodes: [0, 0, 0, 1].into(),
            ..SimMachine::default()
        }
        .boot()
    }

    /// The per-CPU lists of a zone may keep as many pages as its low watermark, shared by the CPUs of the
    /// node, or by all CPUs when it has none.
    #[test]
    fn limits_of_lists_are_shared_by_the_cpus_of_the_node() {
        let mm = machine();
        mm.hotplug()
            .add_memory(NodeId::new(2), SectionNr::new(34), PageblockSet::ALL, MemoryContent::Unknown)
            .unwrap();
        mm.hotplug().online(SectionNr::new(34), ZoneType::Normal).unwrap();
        let zones = [0, 1, 2].map(|node| mm.zone(NodeId::new(node).zone(ZoneType::Normal)));
        let lows = zones.map(|zone| zone.watermark(Watermark::Low));
        assert!(lows.iter().all(|&low| low > 4 * 28), "shares of it, not the least that there is: {lows:?}");
        for ((zone, low), sharers) in zones.iter().zip(lows).zip([3, 1, 4]) {
            let limits = zone.pcp_limits();
            let least = 4 * u64::from(limits.batch);
            assert_eq!(u64::from(limits.high), (low / sharers).clamp(least, 256), "{:?}", zone.id());
            for cpu in mm.cpus() {
                assert_eq!(cpu.zone(zone.id()).limits(), limits);
            }
        }
    }

    /// The least free memory is one number for the machine, and zones share it by size. Reserves are for
    /// zones of the same node.
    #[test]
    fn watermarks_and_reserves_of_nodes() {
        let mm = machine();
        let zone = |node, zone| mm.zone(NodeId::new(node).zone(zone));
        let kernel = [(0, ZoneType::Dma32), (0, ZoneType::Normal), (1, ZoneType::Normal)];
        let kernel = kernel.map(|(node, of)| zone(node, of));
        let lowmem: u64 = kernel.iter().map(|zone| zone.managed()).sum();
        let least = (lowmem * 64).isqrt() / 4;
        for zone in kernel {
            assert_eq!(zone.watermark(Watermark::Min), least * zone.managed() / lowmem, "{:?}", zone.id());
        }
        let [dma32, normal, other] = kernel;
        assert_eq!(dma32.lowmem_reserve(ZoneType::Normal), normal.managed() / 256);
        assert_eq!(dma32.lowmem_reserve(ZoneType::Dma32), 0);
        assert_eq!(normal.lowmem_reserve(ZoneType::Movable), 0);
        mm.hotplug()
            .add_memory(NodeId::new(1), SectionNr::new(34), PageblockSet::ALL, MemoryContent::Unknown)
            .unwrap();
        mm.hotplug().online(SectionNr::new(34), ZoneType::Movable).unwrap();
        let movable = zone(1, ZoneType::Movable);
        assert_eq!(other.lowmem_reserve(ZoneType::Movable), movable.managed() / 32);
        assert_eq!(normal.lowmem_reserve(ZoneType::Movable), 0, "another node's");
        assert_eq!(movable.watermark(Watermark::Min), 32);
    }
}
