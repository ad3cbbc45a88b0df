//! Memory blocks: the sections that are added, go online and offline, and are removed together.
//!
//! Mirrors Linux `struct memory_block` and the geometry rules of `mhp_supports_memmap_on_memory`. A
//! memory block is a power of two of sections, aligned to its size. When its memmap lies on it, ONE
//! reserve at its start holds the memmap of all its sections, one pageblock per section.
//!
//! Differs from Linux on purpose: each memory block has its own size, so that a range that large memory
//! blocks do not fit can have small ones.
//!
//! | step of its life | file |
//! |---|---|
//! | mapped, with a memmap | `add` |
//! | put into a zone | `online` |
//! | pageblocks plugged and unplugged while it is online | `pageblocks` |
//! | taken out of its zone | `offline` |
//! | unmapped | `remove`; several at once: `offline_and_remove` |
//!
//! Invariants: the table entry of a memory block's first section says how many sections it has, from
//! add to remove; the entries of its other sections say 0. All its sections are in one state whenever the
//! memory hotplug lock is free.

mod add;
mod offline;
mod offline_and_remove;
mod online;
mod pageblocks;
mod remove;

pub use add::{AddError, MhpFlags};
pub use offline_and_remove::OfflineAndRemoveError;
pub use online::OnlineError;
pub use remove::RemoveError;

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, PfnRange, SECTION_PAGES, SectionNr, SectionRange};
use crate::altmap::VmemAltmap;
use crate::hotplug::Hotplug;
use crate::memblock::Run;
use crate::node::{NodeId, ZoneId};
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::{Section, SectionPages, SectionState, Sparse};

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
fn usable(nr: SectionNr, section: &Section) -> PageblockSet {
    section.plugged().without(memmap_pageblocks(nr, section))
}

/// The state of a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Its memory can be allocated.
    Online,
    /// It was added, and no zone has it.
    Offline,
    /// Boot memory whose struct pages are not initialised yet: it belongs to its zone, and becomes Online when its
    /// memory is wanted.
    Deferred,
}

/// The facts about a memory block. Each section of boot memory counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBlockStats {
    /// Its first section.
    pub first: SectionNr,
    /// How many memory blocks like it lie side by side, this one included. More than one for deferred boot memory
    /// only: it is known by ranges.
    pub count: u32,
    /// How many sections it has.
    pub sections: u32,
    /// Its node.
    pub node: NodeId,
    /// Whether it is boot memory.
    pub boot: bool,
    /// Its state.
    pub state: BlockState,
    /// Its zone, unless it is offline.
    pub zone: Option<ZoneId>,
    /// Pages of a hot-added memory block that are plugged.
    pub plugged: u32,
    /// Pages of a hot-added memory block's memmap.
    pub memmap: u32,
    /// Whether its memmap lies on it.
    pub memmap_on_memory: bool,
}

impl MemoryBlockStats {
    /// The facts about the memory block that begins with section `nr`, if one does.
    pub(crate) fn at(sparse: &Sparse, nr: SectionNr) -> Option<Self> {
        let section = sparse.section(nr)?;
        let block = MemoryBlock::at(sparse, nr);
        if block.is_none() && !section.is_boot() {
            return None;
        }
        let is_online = section.state() == SectionState::Online;
        let plugged = |block: MemoryBlock| {
            block.sections().filter_map(|nr| Some(sparse.section(nr)?.plugged().pages())).sum()
        };
        Some(Self {
            first: nr,
            count: 1,
            sections: block.map_or(1, MemoryBlock::len),
            node: section.node(),
            boot: section.is_boot(),
            state: if is_online { BlockState::Online } else { BlockState::Offline },
            zone: is_online.then(|| section.zone()),
            plugged: block.map_or(0, plugged),
            memmap: block.map_or(0, MemoryBlock::memmap_pages),
            memmap_on_memory: VmemAltmap::of(nr, section).is_some(),
        })
    }

    /// What is known of deferred boot memory.
    fn deferred(run: Run) -> Self {
        Self {
            first: run.first,
            count: run.len(),
            sections: 1,
            node: run.zone.node(),
            boot: true,
            state: BlockState::Deferred,
            zone: Some(run.zone),
            plugged: 0,
            memmap: 0,
            memmap_on_memory: false,
        }
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// Calls `tell` with every memory block from section `from` on, ascending, until it returns false. Boot memory
    /// that was deferred when the walk began is told as such, a whole run at once.
    pub fn each_memory_block(&self, from: SectionNr, mut tell: impl FnMut(MemoryBlockStats) -> bool) {
        let sparse = &self.mm.sparse;
        // A copy, because `tell` may allocate, and an allocation may claim what is deferred.
        let deferred = *self.mm.deferred.freeze();
        let mut next = from;
        loop {
            let run = deferred.run_from(next);
            let before_run = |nr: &SectionNr| *nr >= next && run.is_none_or(|run| *nr < run.first);
            let known = sparse.numbers().filter(before_run);
            if !known.filter_map(|nr| MemoryBlockStats::at(sparse, nr)).all(&mut tell) {
                return;
            }
            let Some(run) = run else { return };
            if !tell(MemoryBlockStats::deferred(run)) {
                return;
            }
            next = run.end;
        }
    }

    /// The pages of section `nr`, which is online.
    fn online_pages(&self, nr: SectionNr) -> SectionPages<'_> {
        self.mm.sparse.online_pages(nr).expect("an online section has pages")
    }
}

impl<P: Platform> Mm<P> {
    /// The state of section `nr`.
    pub fn section_state(&self, nr: SectionNr) -> SectionState {
        self.sparse.section(nr).map_or(SectionState::Absent, Section::state)
    }

    /// The pageblocks of hot-added section `nr` that are plugged.
    pub fn plugged(&self, nr: SectionNr) -> PageblockSet {
        self.sparse.section(nr).map_or(PageblockSet::NONE, Section::plugged)
    }

    /// The memory blocks from the start of `range` on, up to the first gap or the end of `range`. The last
    /// one may reach beyond the end.
    fn blocks_in(&self, range: SectionRange) -> impl Iterator<Item = MemoryBlock> {
        let mut rest = range.sections();
        core::iter::from_fn(move || {
            let block = MemoryBlock::at(&self.sparse, rest.next()?)?;
            // The other sections of the memory block.
            (1..block.len()).for_each(|_| _ = rest.next());
            Some(block)
        })
    }
}
