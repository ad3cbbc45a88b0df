//! Memory blocks: the sections that are added, go online and offline, and are removed together.
//!
//! Mirrors Linux `drivers/base/memory.c` and `mm/memory_hotplug.c`. The geometry of a memory block is in
//! `added_block`.
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
//! | all steps at once for a range that is wholly plugged, and the way back | `range` |
//!
//! Invariants: the table entry of a memory block's first section says how many sections it has, from
//! add to remove; the entries of its other sections say 0. All its sections are in one state whenever the
//! memory hotplug lock is free.

mod add;
mod offline;
mod offline_and_remove;
mod online;
mod pageblocks;
mod range;
mod remove;

pub use add::{AddError, MhpFlags};
pub use offline_and_remove::OfflineAndRemoveError;
pub use online::OnlineError;
pub use range::{AddAndOnlineError, AddedPart, RemovedPart};
pub use remove::RemoveError;

use crate::Mm;
use crate::added_block::MemoryBlock;
use crate::addr::{MEMMAP_PAGES, SECTION_PAGES, SectionNr, SectionRange};
use crate::altmap::VmemAltmap;
use crate::deferred::DeferredRange;
use crate::hotplug::Hotplug;
use crate::node::{NodeId, ZoneId};
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::{Section, SectionPages, SectionState, Sparse};

/// The state of a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockState {
    /// Its memory can be allocated.
    Online,
    /// It was added, and no zone has it.
    Offline,
    /// Its struct pages are not initialised yet: it belongs to its zone, and becomes Online when its memory is wanted.
    Deferred,
}

/// The facts about a memory block. Each section of boot memory counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryBlockStats {
    /// Its first section.
    pub first: SectionNr,
    /// How many memory blocks like it lie side by side, this one included. More than one for deferred memory
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

    /// The facts about deferred memory.
    fn deferred(range: &DeferredRange) -> Self {
        let sections = range.block();
        let plugged = |pages: u32| if range.is_boot() { 0 } else { sections * pages };
        Self {
            first: range.sections.first(),
            count: range.blocks(),
            sections,
            node: range.zone.node(),
            boot: range.is_boot(),
            state: BlockState::Deferred,
            zone: Some(range.zone),
            plugged: plugged(SECTION_PAGES),
            memmap: plugged(MEMMAP_PAGES),
            memmap_on_memory: !range.is_boot(),
        }
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// Calls `tell` with every memory block from section `from` on, ascending, until it returns false. Memory
    /// that was deferred when the walk began is told as such, a whole range at once.
    pub fn each_memory_block(&self, from: SectionNr, mut tell: impl FnMut(MemoryBlockStats) -> bool) {
        let sparse = &self.mm.sparse;
        // A copy, because `tell` may allocate, and an allocation may claim what is deferred.
        let deferred = self.mm.deferred.freeze(&self.mm.irq_off()).ranges().clone();
        let mut next = from;
        let mut ranges = deferred.iter().filter_map(|range| range.whole_from(from));
        loop {
            let range = ranges.next();
            let before_range =
                |nr: &SectionNr| *nr >= next && range.is_none_or(|range| *nr < range.sections.first());
            let known = sparse.numbers().filter(before_range);
            if !known.filter_map(|nr| MemoryBlockStats::at(sparse, nr)).all(&mut tell) {
                return;
            }
            let Some(range) = range else { return };
            if !tell(MemoryBlockStats::deferred(&range)) {
                return;
            }
            next = range.sections.end();
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
