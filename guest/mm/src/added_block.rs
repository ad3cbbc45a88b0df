//! A hot-added memory block: its geometry, and its way from a mapped memmap to free pages.
//!
//! Mirrors Linux `struct memory_block`, the geometry rules of `mhp_supports_memmap_on_memory`, and
//! `memmap_init_range` for hot-added memory. `memory_block` takes these steps one by one; `deferred` takes all of
//! them for a memory block that an allocation wants. Differs from Linux on purpose: each step is proven to be the
//! owner's (see [`SectionOwner`]).
//!
//! Invariants: a memory block is a power of two of sections, aligned to its size. When its memmap lies on it, one
//! reserve at its start holds the memmap of all its sections, one pageblock per section.

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, Pfn, PfnRange, SECTION_PAGES, SectionNr};
use crate::altmap::VmemAltmap;
use crate::memmap_init::init_hot_added;
use crate::node::ZoneId;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::{Section, SectionOwner, SectionState, Sparse};

/// Most sections of a memory block: with more, its memmap would not fit into its first section.
pub const MAX_BLOCK_SECTIONS: u32 = u64::BITS;

/// The unit in which memory is added and removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryBlock {
    first: SectionNr,
    sections: u32,
}

impl MemoryBlock {
    /// The memory block of `sections` sections from `first` on, if there can be one.
    pub(crate) fn new(first: SectionNr, sections: usize) -> Option<Self> {
        let sections = u32::try_from(sections).ok().filter(|&sections| sections <= MAX_BLOCK_SECTIONS)?;
        let aligned = sections.is_power_of_two() && first.get().is_multiple_of(sections);
        aligned.then_some(Self { first, sections })
    }

    /// The memory block that was added with `first` as its first section.
    pub(crate) fn at(sparse: &Sparse, first: SectionNr) -> Option<Self> {
        let sections = sparse.section(first)?.block_sections();
        (sections > 0).then_some(Self { first, sections })
    }

    /// The memory block that was added and has section `nr`.
    pub(crate) fn with(sparse: &Sparse, nr: SectionNr) -> Option<Self> {
        let sizes = (0..=MAX_BLOCK_SECTIONS.ilog2()).map(|log| 1 << log);
        let firsts = sizes.map(|size: u32| SectionNr::new(nr.get() & !(size - 1)));
        let mut blocks = firsts.filter_map(|first| Self::at(sparse, first));
        blocks.find(|block| nr.get() - block.first.get() < block.sections)
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

    /// The pageblocks of its sections when it is wholly plugged.
    pub(crate) fn all_pageblocks(self) -> &'static [PageblockSet] {
        const ALL: [PageblockSet; MAX_BLOCK_SECTIONS as usize] =
            [PageblockSet::ALL; MAX_BLOCK_SECTIONS as usize];
        &ALL[..self.sections as usize]
    }

    /// Pages of the memmap of all its sections.
    pub(crate) fn memmap_pages(self) -> u32 {
        self.sections * MEMMAP_PAGES
    }

    /// The memmaps of its sections when they lie on it.
    fn memmaps(self) -> impl Iterator<Item = Pfn> {
        let first = self.first.start();
        (0..self.sections).map(move |index| first.add(index * MEMMAP_PAGES))
    }

    /// The pageblocks of the first section in which the memmap lies when it lies on the memory block.
    pub(crate) fn reserve(self) -> PageblockSet {
        PageblockSet::range(0..self.sections)
    }
}

/// The pageblocks of section `nr` that hold the memmap of their own memory block.
pub(crate) fn memmap_pageblocks(nr: SectionNr, section: &Section) -> PageblockSet {
    let pages = VmemAltmap::of(nr, section).map_or(0, VmemAltmap::offset);
    PageblockSet::range(0..pages / MEMMAP_PAGES)
}

/// The pageblocks of section `nr` that can be allocated when it is online.
pub(crate) fn usable(nr: SectionNr, section: &Section) -> PageblockSet {
    section.plugged().without(memmap_pageblocks(nr, section))
}

impl<P: Platform> Mm<P> {
    /// Makes the sections of `block` Present. Their memmaps are mapped, and come from `altmap` if there is one.
    /// `plugged` has one set per section; `zeroed` says whether the memmaps are all zero.
    pub(crate) fn make_block_present(
        &self,
        block: MemoryBlock,
        plugged: &[PageblockSet],
        altmap: Option<VmemAltmap>,
        zeroed: bool,
        owner: &impl SectionOwner,
    ) {
        let first = self.sparse.entry(block.first());
        if let Some(altmap) = altmap {
            altmap.store(first);
        }
        for (nr, &plugged) in block.sections().zip(plugged) {
            let section = self.sparse.entry(nr);
            section.set_plugged(plugged, owner);
            section.set_zeroed(zeroed);
            self.sparse.set_state(nr, SectionState::Present, owner);
        }
        first.set_block_sections(block.len(), owner);
    }

    /// Initialises the pages of a Present section that is about to join `zone`.
    pub(crate) fn init_added_section(&self, nr: SectionNr, zone: ZoneId, owner: &impl SectionOwner) {
        let pages = self.sparse.pages_to_initialise(nr, owner);
        self.init_section(pages, zone);
        init_hot_added(pages, memmap_pageblocks(nr, pages.section()));
        self.sparse.set_state(nr, SectionState::Initialised, owner);
    }

    /// Pages of `block` that the allocator manages when it is online.
    pub(crate) fn usable_pages(&self, block: MemoryBlock) -> u64 {
        let sections = block.sections().map(|nr| usable(nr, self.sparse.entry(nr)));
        sections.map(|usable| u64::from(usable.pages())).sum()
    }

    /// Gives the pages of `block`, which is Online in `zone`, to the allocator.
    pub(crate) fn free_block(&self, block: MemoryBlock, zone: ZoneId) {
        for nr in block.sections() {
            let pages = self.sparse.online_pages(nr).expect("an online section has pages");
            for run in usable(nr, pages.section()).runs() {
                self.lock_zone(zone, &self.irq_off()).free_range(pages, nr.pageblocks(&run));
            }
        }
    }

    /// Maps `block`, which is prepared, and its memmap.
    pub(crate) fn map_plugged(&self, block: MemoryBlock) {
        self.platform.map_prepared_direct(block.frames());
        for (nr, memmap) in block.sections().zip(block.memmaps()) {
            self.platform.map_prepared_memmap(nr, memmap);
        }
    }

    /// Takes all steps for `block`, which is wholly plugged and mapped: it is online in `zone` afterwards. `zeroed` says
    /// whether its memory is zero. Returns the number of pages freed. Takes no lock but the zone's, and allocates nothing.
    pub(crate) fn init_plugged(
        &self,
        block: MemoryBlock,
        zone: ZoneId,
        zeroed: bool,
        owner: &impl SectionOwner,
    ) -> u64 {
        for (nr, memmap) in block.sections().zip(block.memmaps()) {
            self.sparse.entry(nr).set_memmap(Some(memmap));
        }
        let pages = block.memmap_pages();
        let altmap = VmemAltmap::new(block.first(), pages).with_allocated(pages);
        self.make_block_present(block, block.all_pageblocks(), Some(altmap), zeroed, owner);
        block.sections().for_each(|nr| self.init_added_section(nr, zone, owner));
        block.sections().for_each(|nr| self.sparse.set_state(nr, SectionState::Online, owner));
        self.free_block(block, zone);
        self.usable_pages(block)
    }
}
