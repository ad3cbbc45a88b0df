//! The names of nodes and zones. A node is memory and CPUs that are near to each other.
//!
//! Mirrors Linux `enum zone_type`, `NODE_DATA(nid)->node_zones` and the `ZONEID` field of `page->flags`:
//! every node has all zones, most of them empty, and the node and zone of a page are one number.
//!
//! Invariant: there are at most [`MAX_NODES`] nodes, so that this number has four bits at most and a whole
//! zonelist is one word (see `zonelist`).

use crate::addr::{PhysAddr, SectionNr};
use crate::geometry::MAX_NODES;

/// Number of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(u8);

impl NodeId {
    /// The node of a machine that has only one.
    pub const FIRST: Self = Self(0);

    /// Node `number`.
    ///
    /// # Panics
    /// When it is not below [`MAX_NODES`].
    #[inline]
    #[must_use]
    pub const fn new(number: u8) -> Self {
        assert!((number as usize) < MAX_NODES, "more nodes than there can be");
        Self(number)
    }

    /// The node whose number is in the low bits of `word`. A word that a node's number was stored in needs no check.
    #[inline]
    pub(crate) const fn of_low_bits(word: u8) -> Self {
        Self(word % MAX_NODES as u8)
    }

    /// All nodes that a machine can have, ascending.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        (0..MAX_NODES as u8).map(Self)
    }

    /// The number.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// For tables with one entry per node.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its zone of type `zone`.
    #[inline]
    #[must_use]
    pub const fn zone(self, zone: ZoneType) -> ZoneId {
        ZoneId(self.0 << ZoneId::TYPE_BITS | zone as u8)
    }
}

/// Memory that serves one kind of request (Linux `enum zone_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ZoneType {
    /// Memory below 4 GiB that the kernel may use.
    Dma32 = 0,
    /// Memory above 4 GiB that the kernel may use.
    Normal = 1,
    /// Memory for movable pages only, so that it can be taken away again.
    Movable = 2,
}

impl ZoneType {
    /// Number of zones.
    pub const COUNT: usize = 3;
    /// All zones, lowest first.
    pub const ALL: [Self; Self::COUNT] = [Self::Dma32, Self::Normal, Self::Movable];

    /// Where boot memory begins to be Normal.
    pub(crate) const NORMAL_FROM: PhysAddr = PhysAddr::new(4 << 30);

    /// The zone of boot memory in section `nr`.
    pub(crate) fn of_boot_memory(nr: SectionNr) -> Self {
        if nr.start().address() < Self::NORMAL_FROM { Self::Dma32 } else { Self::Normal }
    }

    /// Whether section `nr`, added at run time, can be in a zone of this type.
    pub(crate) fn may_have(self, nr: SectionNr) -> bool {
        let is_low = nr.start().address() < Self::NORMAL_FROM;
        match self {
            Self::Dma32 => is_low,
            Self::Normal => !is_low,
            Self::Movable => true,
        }
    }

    /// For tables with one entry per zone.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A zone of a node. Bits 0..=1 are the type, the bits above them the node; the type is never 3, which is
/// device memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ZoneId(u8);

impl ZoneId {
    const TYPE_BITS: u32 = 2;
    const NO_TYPE: u8 = (1 << Self::TYPE_BITS) - 1;
    /// Number of bits of a zone's number.
    pub(crate) const BITS: u32 = Self::TYPE_BITS + MAX_NODES.ilog2();
    /// Different numbers: those of zones, and one for each node that is not a zone's.
    pub(crate) const NUMBERS: usize = 1 << Self::BITS;
    /// Number of zones, of all nodes.
    pub(crate) const COUNT: usize = MAX_NODES * ZoneType::COUNT;

    /// The zone of this number, if there is one.
    #[inline]
    pub(crate) const fn from_bits(bits: u8) -> Option<Self> {
        if bits >> Self::BITS == 0 && bits & Self::NO_TYPE != Self::NO_TYPE { Some(Self(bits)) } else { None }
    }

    /// The zone whose number is in the low bits of `word`. A word that only zones' numbers are stored in needs no check.
    #[inline]
    pub(crate) const fn of_low_bits(word: u8) -> Self {
        Self(word % Self::NUMBERS as u8)
    }

    /// The number.
    #[inline]
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// For tables with one entry per number, which are indexed without a check.
    #[inline]
    pub(crate) const fn number(self) -> usize {
        self.0 as usize % Self::NUMBERS
    }

    /// The zone at `index` of tables with one entry per zone.
    pub(crate) const fn at(index: usize) -> Self {
        NodeId::new((index / ZoneType::COUNT) as u8).zone(ZoneType::ALL[index % ZoneType::COUNT])
    }

    /// All zones that a machine can have.
    pub(crate) fn all() -> impl Iterator<Item = Self> + Clone {
        (0..Self::COUNT).map(Self::at)
    }

    /// For tables with one entry per zone.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        // Each node has four numbers, and three of them are zones.
        (self.0 - (self.0 >> Self::TYPE_BITS)) as usize
    }

    /// The node.
    #[inline]
    #[must_use]
    pub const fn node(self) -> NodeId {
        NodeId(self.0 >> Self::TYPE_BITS)
    }

    /// The type.
    #[must_use]
    #[inline]
    pub const fn zone_type(self) -> ZoneType {
        match self.0 & Self::NO_TYPE {
            0 => ZoneType::Dma32,
            1 => ZoneType::Normal,
            _ => ZoneType::Movable,
        }
    }
}

const _: () = assert!(ZoneId::COUNT as u32 * ZoneId::BITS < u64::BITS, "a zonelist is one word, with an end");
const _: () = assert!(ZoneType::COUNT == ZoneId::NO_TYPE as usize);

impl core::fmt::Debug for ZoneId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} of node {}", self.zone_type(), self.node().get())
    }
}

#[cfg(test)]
mod tests {
    use super::{NodeId, ZoneId, ZoneType};

    #[test]
    fn every_zone_has_a_number_and_a_place() {
        let mut index = 0;
        for node in NodeId::all() {
            for zone in ZoneType::ALL {
                let id = node.zone(zone);
                assert_eq!((id.node(), id.zone_type(), id.index()), (node, zone, index));
                assert_eq!((ZoneId::from_bits(id.bits()), ZoneId::at(index)), (Some(id), id));
                assert_eq!((ZoneId::of_low_bits(id.bits()), NodeId::of_low_bits(node.get())), (id, node));
                index += 1;
            }
        }
        assert_eq!(index, ZoneId::COUNT);
        assert_eq!([3, 7, 11, 15, 16, 255].map(ZoneId::from_bits), [None; 6]);
    }
}
