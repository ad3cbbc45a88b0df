//! Memory blocks: sections that are added, go online and offline, and are removed together.
//!
//! Mirrors Linux `struct memory_block` and the geometry rules of `mhp_supports_memmap_on_memory`. A
//! memory block is a power of two of sections, aligned to its size. When its memmap lies on it, ONE
//! reserve at its start holds that of all its sections, one pageblock for each.
//!
//! Differs from Linux on purpose: the size belongs to each memory block and not to the machine, so
//! that a range that large blocks do not fit can have small ones.
//!
//! Invariants: the table entry of a memory block's first section says how many sections it has, from
//! add to remove; those of the others say 0. All its sections are in one state whenever the memory
//! hotplug lock is free.

use crate::addr::{MEMMAP_PAGES, PfnRange, SECTION_PAGES, SectionNr};
use crate::altmap::VmemAltmap;
use crate::node::{NodeId, ZoneId};
use crate::pageblock_set::PageblockSet;
use crate::sparse::{Section, SectionState, Sparse};

/// Most sections of a memory block: with more, its memmap would not fit into its first section.
pub const MAX_BLOCK_SECTIONS: u32 = u64::BITS;

/// The unit in which memory is added and removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryBlock {
    first: SectionNr,
    sections: u32,
}

impl MemoryBlock {
    /// The block of `sections` sections from `first` on, if such a block can be.
    pub(crate) fn new(first: SectionNr, sections: usize) -> Option<Self> {
        let sections = u32::try_from(sections).ok().filter(|&sections| sections <= MAX_BLOCK_SECTIONS)?;
        let aligned = sections.is_power_of_two() && first.get().is_multiple_of(sections);
        aligned.then_some(Self { first, sections })
    }

    /// The block that was added with `first` as its first section.
    pub(crate) fn at(sparse: &Sparse, first: SectionNr) -> Option<Self> {
        let sections = sparse.section(first)?.block_sections();
        (sections > 0).then_some(Self { first, sections })
    }

    /// Its first section.
    pub(crate) fn first(self) -> SectionNr {
        self.first
    }

    /// How many sections it has.
    pub(crate) fn len(self) -> u32 {
        self.sections
    }

    /// Its sections, ascending.
    pub(crate) fn sections(self) -> impl Iterator<Item = SectionNr> + Clone {
        (self.first.get()..self.first.get() + self.sections).map(SectionNr::new)
    }

    /// All its frames.
    pub(crate) fn frames(self) -> PfnRange {
        PfnRange::new(self.first.start(), self.sections * SECTION_PAGES)
    }

    /// Pages of the memmap of all its sections.
    pub(crate) fn memmap_pages(self) -> u32 {
        self.sections * MEMMAP_PAGES
    }

    /// The sub-sections of the first section in which the memmap lies when it lies on the block.
    pub(crate) fn reserve(self) -> PageblockSet {
        PageblockSet::range(0..self.sections)
    }
}

/// The sub-sections of section `nr` that hold memmap of their own memory block.
pub(crate) fn memmap_blocks(nr: SectionNr, section: &Section) -> PageblockSet {
    let pages = VmemAltmap::of(nr, section).map_or(0, VmemAltmap::offset);
    PageblockSet::range(0..pages / MEMMAP_PAGES)
}

/// What there is to know of a memory block. Each section of boot memory is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStats {
    /// Its first section.
    pub first: SectionNr,
    /// How many sections it has.
    pub sections: u32,
    /// Its node.
    pub node: NodeId,
    /// Whether it was there at boot.
    pub boot: bool,
    /// Present, which is offline, or online.
    pub state: SectionState,
    /// The zone that it is in, while it is online.
    pub zone: Option<ZoneId>,
    /// Pages of a hot-added block that are plugged.
    pub plugged: u32,
    /// Pages of a hot-added block's memmap.
    pub memmap: u32,
    /// Whether its memmap lies on it.
    pub memmap_on_memory: bool,
}

impl BlockStats {
    /// Those of the memory block that begins with section `nr`, if one does.
    pub(crate) fn at(sparse: &Sparse, nr: SectionNr) -> Option<Self> {
        let section = sparse.section(nr)?;
        let block = MemoryBlock::at(sparse, nr);
        if block.is_none() && !section.is_boot() {
            return None;
        }
        let state = section.state();
        let plugged = |block: MemoryBlock| {
            block.sections().filter_map(|nr| Some(sparse.section(nr)?.plugged().pages())).sum()
        };
        Some(Self {
            first: nr,
            sections: block.map_or(1, MemoryBlock::len),
            node: section.node(),
            boot: section.is_boot(),
            state,
            zone: (state == SectionState::Online).then(|| section.zone()),
            plugged: block.map_or(0, plugged),
            memmap: block.map_or(0, MemoryBlock::memmap_pages),
            memmap_on_memory: VmemAltmap::of(nr, section).is_some(),
        })
    }
}
