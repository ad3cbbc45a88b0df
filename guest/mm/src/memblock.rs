//! Boot memory before there is a page allocator: the RAM, and the ranges of it that are in use.
//!
//! Mirrors Linux `mm/memblock.c` with fixed tables: a microVM's memory map has a handful of
//! entries. Allocations come from the top of memory, so that low memory is left for users that need it.
//!
//! Nodes are kept apart from memory: [`Memblock::set_node`] gives a range of addresses to a node, whether it
//! is RAM or not. Differs from Linux on purpose: a section belongs to one node as a whole, because zones are
//! made of sections here. It belongs to the node of its first RAM with a known node, or else to node 0.
//!
//! Invariants: both tables are sorted, and the ranges of a table do not touch or overlap. Ranges of different
//! nodes do not overlap.

use core::fmt;

use arrayvec::ArrayVec;

use crate::addr::{PAGE_SIZE, PfnRange, PhysAddr, PhysRange, SECTION_PAGES, SECTION_SIZE, SectionNr};
use crate::geometry::MEMBLOCK_RANGES;
use crate::node::{NodeId, ZoneId, ZoneType};

/// A table of [`MEMBLOCK_RANGES`] ranges is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemblockFull;

impl fmt::Display for MemblockFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {MEMBLOCK_RANGES} ranges of memory")
    }
}

impl core::error::Error for MemblockFull {}

/// The largest number of ranges with a known node.
const NODE_RANGES: usize = 32;

/// Why a range of addresses was not given to a node. The error leaves everything as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeOverlap {
    /// This part of the range belongs to that other node.
    With(PhysRange, NodeId),
    /// The table of ranges is full.
    Full,
}

impl fmt::Display for NodeOverlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::With(range, node) => write!(
                f,
                "{:#x} to {:#x} belongs to node {} already",
                range.start().get(),
                range.end().get(),
                node.get()
            ),
            Self::Full => f.write_str("too many ranges of addresses with a node"),
        }
    }
}

impl core::error::Error for NodeOverlap {}

/// Consecutive sections with RAM, all of one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: SectionNr,
    /// The section after the last section.
    pub(crate) end: SectionNr,
    pub(crate) zone: ZoneId,
}

impl Run {
    pub(crate) fn sections(self) -> impl Iterator<Item = SectionNr> {
        (self.first.get()..self.end.get()).map(SectionNr::new)
    }

    pub(crate) fn contains(self, nr: SectionNr) -> bool {
        self.first <= nr && nr < self.end
    }

    pub(crate) fn len(self) -> u32 {
        self.end.get() - self.first.get()
    }

    /// All its frames, RAM or not.
    pub(crate) fn frames(self) -> PfnRange {
        PfnRange::new(self.first.start(), self.len() * SECTION_PAGES)
    }

    /// Number of its pages that are RAM and not reserved.
    pub(crate) fn free_pages(self, memblock: &Memblock) -> u64 {
        memblock.free_in(self.frames()).map(|free| u64::from(free.pages())).sum()
    }
}

/// The memory of the machine and the parts of it that are in use, until
/// [`Mm::boot`](crate::Mm::boot).
///
/// ```
/// use tidevm_mm::{Memblock, NodeId, PhysAddr, PhysRange};
///
/// let range = |start, size| PhysRange::new(PhysAddr::new(start), size);
/// let mut memblock = Memblock::new();
/// // From the memory map of the firmware. The kernel lies in the first 4 MiB.
/// memblock.add(range(0, 256 << 20))?;
/// memblock.reserve(range(0, 4 << 20))?;
/// memblock.set_node(range(128 << 20, 128 << 20), NodeId::new(1))?;
/// // Memory for a page table, before there is an allocator.
/// let table = memblock.alloc(4096, 4096).expect("there is room");
/// assert!(memblock.free().all(|free| !(free.start()..free.end()).contains(&table)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Memblock {
    memory: Table,
    reserved: Table,
    nodes: ArrayVec<(PhysRange, NodeId), NODE_RANGES>,
}

impl Memblock {
    /// No memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { memory: Table::new(), reserved: Table::new(), nodes: ArrayVec::new_const() }
    }

    /// Adds `range` as RAM.
    ///
    /// # Errors
    /// [`MemblockFull`].
    pub fn add(&mut self, range: PhysRange) -> Result<(), MemblockFull> {
        self.memory.insert(range)
    }

    /// Reserves `range`, which is in use: it never becomes free. It need not be RAM, and may overlap reserved
    /// ranges.
    ///
    /// # Errors
    /// [`MemblockFull`].
    pub fn reserve(&mut self, range: PhysRange) -> Result<(), MemblockFull> {
        self.reserved.insert(range)
    }

    /// Gives `range` to `node`: the RAM in it, and memory that may be added there later. RAM outside all such
    /// ranges is on the first node.
    ///
    /// # Errors
    /// [`NodeOverlap`].
    pub fn set_node(&mut self, range: PhysRange, node: NodeId) -> Result<(), NodeOverlap> {
        for &(known, other) in &self.nodes {
            let common = known.intersect(range);
            if other != node && common.size() > 0 {
                return Err(NodeOverlap::With(common, other));
            }
        }
        self.nodes.try_push((range, node)).map_err(|_| NodeOverlap::Full)
    }

    /// Forgets all nodes: all RAM is then on the first node.
    pub fn forget_nodes(&mut self) {
        self.nodes.clear();
    }

    /// The node that section `nr` belongs to.
    pub fn node_of(&self, nr: SectionNr) -> NodeId {
        let section = PhysRange::new(nr.start().address(), SECTION_SIZE);
        let ram = || self.memory().map(|ram| ram.intersect(section)).filter(|ram| !ram.is_empty());
        let known = self.nodes.iter().filter_map(|&(range, node)| {
            let first = ram().map(|ram| ram.intersect(range)).find(|ram| !ram.is_empty())?;
            Some((first.start(), node))
        });
        known.min_by_key(|&(start, _)| start).map_or(NodeId::FIRST, |(_, node)| node)
    }

    /// Takes `size` bytes of free memory, aligned to `align` (a power of two), as high as possible and never at
    /// address 0.
    pub fn alloc(&mut self, size: u64, align: u64) -> Option<PhysAddr> {
        self.alloc_below(PhysAddr::MAX, size, align)
    }

    /// As [`alloc`](Self::alloc), but below `end`.
    pub fn alloc_below(&mut self, end: PhysAddr, size: u64, align: u64) -> Option<PhysAddr> {
        self.alloc_in(PhysRange::new(PhysAddr::new(0), end.get()), size, align)
    }

    /// As [`alloc`](Self::alloc), but on `node` if the node has enough memory.
    pub fn alloc_on(&mut self, node: NodeId, size: u64, align: u64) -> Option<PhysAddr> {
        let ranges = self.nodes.clone();
        let mut of_node = ranges.iter().rev().filter(|&&(_, of)| of == node);
        of_node.find_map(|&(range, _)| self.alloc_in(range, size, align)).or_else(|| self.alloc(size, align))
    }

    fn alloc_in(&mut self, within: PhysRange, size: u64, align: u64) -> Option<PhysAddr> {
        assert!(align.is_power_of_two(), "alignment {align} is not a power of two");
        let found = self.find(within, size, align)?;
        self.reserve(PhysRange::new(found, size)).ok()?;
        Some(found)
    }

    fn find(&self, within: PhysRange, size: u64, align: u64) -> Option<PhysAddr> {
        let memory = self.memory.ranges().iter().rev().map(|memory| memory.intersect(within));
        for memory in memory.filter(|memory| !memory.is_empty()) {
            let mut end = memory.end().get();
            // Looks at the gaps between reserved ranges, the highest first.
            for index in (0..=self.reserved.len).rev() {
                let gap_start = match index.checked_sub(1) {
                    Some(below) => self.reserved.ranges[below].end().get().max(memory.start().get()),
                    None => memory.start().get(),
                }
                .max(PAGE_SIZE);
                if end >= size && (end - size) & !(align - 1) >= gap_start {
                    return Some(PhysAddr::new((end - size) & !(align - 1)));
                }
                if index > 0 {
                    end = end.min(self.reserved.ranges[index - 1].start().get());
                }
            }
        }
        None
    }

    /// The RAM of the machine, ascending.
    pub fn memory(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.memory.ranges().iter().copied()
    }

    /// The first section from number `from` on that has RAM.
    pub(crate) fn section_from(&self, from: SectionNr) -> Option<SectionNr> {
        let start = from.start();
        let mut ram = self.memory().map(PhysRange::inner_frames);
        ram.find(|ram| !ram.is_empty() && ram.end() > start).map(|ram| ram.start().max(start).section())
    }

    /// The sections with RAM, ascending, in runs. The number of runs depends on the number of entries in the
    /// tables, not on the amount of memory.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        core::iter::successors(self.run_from(SectionNr::new(0)), |run| self.run_from(run.end))
    }

    /// The first run of sections from number `from` on, which begins a run or has no RAM.
    pub(crate) fn run_from(&self, from: SectionNr) -> Option<Run> {
        self.section_from(from).map(|first| self.run_at(first))
    }

    /// The run that begins with section `first`. It ends at the next section in which a range of RAM, of a
    /// node or of a zone begins or ends; such a section is a run of its own.
    fn run_at(&self, first: SectionNr) -> Run {
        let zone = self.node_of(first).zone(ZoneType::of_boot_memory(first));
        let nodes = self.nodes.iter().map(|&(range, _)| range);
        let ends = self.memory().chain(nodes).flat_map(|range| [range.start(), range.end()]);
        let ends = ends.chain([ZoneType::NORMAL_FROM]).filter(|&end| end > first.start().address());
        let next = ends.min().map_or(first, SectionNr::of);
        Run { first, end: next.max(SectionNr::new(first.get() + 1)), zone }
    }

    /// The reserved ranges, ascending.
    pub fn reserved(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.reserved.ranges().iter().copied()
    }

    /// The parts of memory that are not reserved, ascending.
    pub fn free(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.free_between(PhysRange::new(PhysAddr::new(0), PhysAddr::MAX.get()))
    }

    /// The frames of `within` that are RAM, ascending.
    pub(crate) fn ram_in(&self, within: PfnRange) -> impl Iterator<Item = PfnRange> + '_ {
        let ram = self.memory().map(move |ram| ram.inner_frames().intersect(within));
        ram.filter(|ram| !ram.is_empty())
    }

    /// The frames of `within` that are RAM and not reserved, ascending.
    pub(crate) fn free_in(&self, within: PfnRange) -> impl Iterator<Item = PfnRange> + '_ {
        let addresses = PhysRange::between(within.start().address(), within.end().address());
        let free = self.free_between(addresses.expect("a range of frames is one of addresses"));
        free.map(PhysRange::inner_frames).filter(|free| !free.is_empty())
    }

    /// The parts of `within` that are memory and not reserved, ascending.
    fn free_between(&self, within: PhysRange) -> impl Iterator<Item = PhysRange> + '_ {
        let memory = self.memory().map(move |memory| memory.intersect(within));
        memory.filter(|memory| !memory.is_empty()).flat_map(move |memory| {
            let mut rest = memory;
            let reserved = self.reserved.ranges();
            let mut reserved =
                reserved[reserved.partition_point(|range| range.end() <= memory.start())..].iter();
            core::iter::from_fn(move || {
                while !rest.is_empty() {
                    let Some(next) = reserved.next() else {
                        return Some(core::mem::replace(&mut rest, memory.from(memory.end())));
                    };
                    let gap = rest.before(next.start());
                    rest = rest.from(next.end());
                    if !gap.is_empty() {
                        return Some(gap);
                    }
                }
                None
            })
        })
    }
}

impl Default for Memblock {
    fn default() -> Self {
        Self::new()
    }
}

struct Table {
    ranges: [PhysRange; MEMBLOCK_RANGES],
    len: usize,
}

impl Table {
    const fn new() -> Self {
        let empty = PhysRange::new(PhysAddr::new(0), 0);
        Self { ranges: [empty; MEMBLOCK_RANGES], len: 0 }
    }

    fn ranges(&self) -> &[PhysRange] {
        &self.ranges[..self.len]
    }

    /// Adds `range`, merged with every range that it touches.
    fn insert(&mut self, range: PhysRange) -> Result<(), MemblockFull> {
        if range.is_empty() {
            return Ok(());
        }
        let first = self.ranges().partition_point(|known| known.end() < range.start());
        let last = first + self.ranges()[first..].partition_point(|known| known.start() <= range.end());
        if first == last {
            if self.len == MEMBLOCK_RANGES {
                return Err(MemblockFull);
            }
            self.ranges.copy_within(first..self.len, first + 1);
            self.ranges[first] = range;
            self.len += 1;
        } else {
            self.ranges[first] = range.hull(self.ranges[first]).hull(self.ranges[last - 1]);
            self.ranges.copy_within(last..self.len, first + 1);
            self.len -= last - first - 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Memblock;
    use crate::addr::{PhysAddr, PhysRange, SECTION_SIZE, SectionNr};
    use crate::node::{NodeId, ZoneType};

    const GIB: u64 = 1 << 30;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::between(PhysAddr::new(start), PhysAddr::new(end)).unwrap()
    }

    /// Runs hold each section with RAM once, in order, and with the zone that the section has by itself.
    #[test]
    fn runs_are_the_sections() {
        let half = SECTION_SIZE / 2;
        let memory =
            [(0, 0xa_0000), (1 << 20, 3 * GIB), (4 * GIB + half, 9 * GIB + 4096), (20 * GIB, 40 * GIB)];
        let nodes =
            [(0, GIB + half, 0), (GIB + half, 2 * GIB, 1), (4 * GIB, 30 * GIB, 2), (30 * GIB, 64 * GIB, 0)];
        for known in 0..=nodes.len() {
            let mut memblock = Memblock::new();
            memory.iter().for_each(|&(start, end)| memblock.add(range(start, end)).unwrap());
            for &(start, end, node) in &nodes[..known] {
                memblock.set_node(range(start, end), NodeId::new(node)).unwrap();
            }
            let mut expected = Vec::new();
            let mut next = memblock.section_from(SectionNr::new(0));
            while let Some(nr) = next {
                expected.push((nr, memblock.node_of(nr).zone(ZoneType::of_boot_memory(nr))));
                next = memblock.section_from(SectionNr::new(nr.get() + 1));
            }
            let runs: Vec<_> = memblock.runs().collect();
            let sections = runs.iter().flat_map(|run| run.sections().map(|nr| (nr, run.zone)));
            assert_eq!(sections.collect::<Vec<_>>(), expected, "{known} ranges of nodes");
            assert!(runs.len() < 24, "{} runs", runs.len());
        }
    }
}
