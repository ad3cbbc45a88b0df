//! Which zones serve a request, in which order: those of the nearest node first.
//!
//! Mirrors Linux `build_zonelists` and `find_next_best_node`: all zones of the asking CPU's node from
//! the top, then all of the next node by distance. A zonelist is one word, replaced by one store when
//! a zone gets its first memory or loses its last, so who reads it sees either the old or the new one.
//!
//! Differs from Linux on purpose: nodes at the same distance are not taken by turns (Linux
//! `node_load`), because with four of them turns decide nothing.
//!
//! Invariant: the words change under the memory hotplug lock; distances and the nodes of CPUs are set
//! before boot.

use core::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use crate::Mm;
use crate::node::{MAX_NODES, NodeId, ZoneId};
use crate::page::ZoneType;
use crate::platform::Platform;
use crate::zone::Zone;

/// Distance of a node to itself (Linux `LOCAL_DISTANCE`, ACPI's SLIT).
const LOCAL_DISTANCE: u8 = 10;
/// Distance of two nodes of which nothing is known (Linux `REMOTE_DISTANCE`).
const REMOTE_DISTANCE: u8 = 20;

/// Zones in the order in which they are asked: four bits each, the first one lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zonelist(u64);

impl Zonelist {
    /// Four bits that are no zone end the list.
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

/// One node, as others see it.
struct Node {
    /// For requests that may use up to Normal, and up to Movable.
    zonelists: [AtomicU64; 2],
    /// To every node, in tenths of the distance to itself.
    distance: [AtomicU8; MAX_NODES],
    nr_cpus: AtomicU32,
}

/// All nodes.
pub(crate) struct Nodes {
    nodes: [Node; MAX_NODES],
    /// One more than the highest node that has CPUs or memory (Linux `nr_node_ids`).
    end: AtomicU8,
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
        }
    }

    /// The zones for a request of a CPU on `node` that may use `highest` and what is below.
    #[inline]
    pub(crate) fn zonelist(&self, node: NodeId, highest: ZoneType) -> Zonelist {
        let movable = usize::from(highest == ZoneType::Movable);
        Zonelist(self.nodes[node.index()].zonelists[movable].load(Acquire))
    }

    /// CPUs on `node`.
    pub(crate) fn nr_cpus(&self, node: NodeId) -> usize {
        self.nodes[node.index()].nr_cpus.load(Relaxed) as usize
    }

    /// The nodes that have or had CPUs or memory, ascending, and those between.
    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + Clone + use<> {
        NodeId::all().take(self.end.load(Relaxed).into())
    }

    /// From now on `node` is one of them.
    pub(crate) fn include(&self, node: NodeId) {
        self.end.fetch_max(node.get() + 1, Relaxed);
    }

    /// The nodes, the nearest to `from` first, which is itself.
    pub(crate) fn by_distance(&self, from: NodeId) -> impl Iterator<Item = NodeId> {
        let mut left: [Option<NodeId>; MAX_NODES] = [None; MAX_NODES];
        self.ids().for_each(|node| left[node.index()] = Some(node));
        // The nearest; of equals one without CPUs, who would want their memory themselves, and of
        // those the one that follows, so that not all turn to the first.
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

    /// Rebuilds all zonelists from which zones have memory (Linux `build_all_zonelists`).
    pub(crate) fn build_zonelists(&self, zones: &[Zone; ZoneId::COUNT]) {
        for node in NodeId::all() {
            for (highest, list) in [ZoneType::Normal, ZoneType::Movable].into_iter().zip(0..) {
                let mut nearest = [None; MAX_NODES];
                self.by_distance(node).zip(&mut nearest).for_each(|(node, slot)| *slot = Some(node));
                // From the end, because each is put in front.
                let order = nearest.into_iter().rev().flatten();
                let zonelist = order
                    .flat_map(|node| ZoneType::ALL.into_iter().map(move |zone| node.zone(zone)))
                    .filter(|zone| zone.zone_type() <= highest && zones[zone.index()].present() > 0)
                    .fold(Zonelist::EMPTY, Zonelist::push_front);
                let list: usize = list;
                // Pairs with the Acquire in `zonelist`: who finds a zone finds what is in it.
                self.nodes[node.index()].zonelists[list].store(zonelist.0, Release);
            }
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Says that CPU `cpu` is on `node`. Before [`Mm::boot`]; a CPU of which nothing is said is on the
    /// first node.
    pub fn set_cpu_node(&self, cpu: usize, node: NodeId) {
        self.per_cpu[cpu].set_node(node);
    }

    /// Says how far `to` is from `from`, in tenths of the distance of a node to itself. Before
    /// [`Mm::boot`]; two nodes of which nothing is said are twice as far.
    pub fn set_distance(&self, from: NodeId, to: NodeId, distance: u8) {
        self.nodes.nodes[from.index()].distance[to.index()].store(distance, Relaxed);
    }

    /// How far `to` is from `from`, likewise.
    pub fn distance(&self, from: NodeId, to: NodeId) -> u8 {
        match from == to {
            true => LOCAL_DISTANCE,
            false => self.nodes.nodes[from.index()].distance[to.index()].load(Relaxed),
        }
    }

    /// Counts the CPUs of each node.
    pub(crate) fn count_cpus(&self) {
        for cpu in self.cpus() {
            self.nodes.nodes[cpu.node().index()].nr_cpus.fetch_add(1, Relaxed);
            self.nodes.include(cpu.node());
        }
    }

    /// The zones that have memory, or could: those of all nodes.
    pub(crate) fn zones(&self) -> impl Iterator<Item = &Zone> + Clone {
        self.zones[..self.nodes.ids().count() * ZoneType::COUNT].iter()
    }

    #[inline]
    pub(crate) fn zone(&self, id: ZoneId) -> &Zone {
        &self.zones[id.index()]
    }

    /// Rebuilds the zonelists.
    pub(crate) fn build_zonelists(&self) {
        self.nodes.build_zonelists(&self.zones);
    }
}
