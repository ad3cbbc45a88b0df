//! Adding memory blocks: mapped, with a memmap, and not yet in a zone.
//!
//! Mirrors Linux `add_memory_resource` and `create_altmaps_and_memory_blocks`. An option chosen at boot says
//! whether the memmap lies in a reserve at the start of the memory block itself (see `altmap`) or in older
//! memory; a caller whose memory block cannot hold it asks for older memory.
//!
//! Differs from Linux on purpose:
//! - a failed step undoes all steps before it, including those of earlier memory blocks of the range (Linux
//!   leaves them);
//! - a memory block may be plugged in part;
//! - where the memmap lies on the memory, each memory block of a range has an altmap of its own, so that each
//!   can be removed alone.
//!
//! Invariant: a section is Present only while its memmap and its plugged pageblocks are mapped.

use core::fmt;

use crate::added_block::MemoryBlock;
use crate::addr::{SectionNr, SectionRange};
use crate::altmap::VmemAltmap;
use crate::hotplug::Hotplug;
use crate::memmap::{MemmapError, MemmapSource};
use crate::node::NodeId;
use crate::options::MemoryContent;
use crate::pageblock_set::PageblockSet;
use crate::platform::{NoPageTable, Platform};

/// Why a memory block was not added. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddError {
    /// There cannot be a memory block of so many sections at this place.
    Misaligned,
    /// The section table has no entry for it.
    OutOfRange,
    /// Some of it was added before, or is boot memory.
    Exists,
    /// No pageblock of it is plugged.
    NothingPlugged,
    /// The first pageblocks, where the memmap is to lie, are not all plugged.
    NoMemmap,
    /// No page for a page table.
    NoPageTable,
    /// No memory for the memmap.
    NoMemory,
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Misaligned => "no memory block of this size can begin there",
            Self::OutOfRange => "the section table has no entry for the memory block",
            Self::Exists => "there is memory in the memory block already",
            Self::NothingPlugged => "no pageblock of the memory block is plugged",
            Self::NoMemmap => "the pageblocks that are to hold the memmap are not plugged",
            Self::NoPageTable => "no page for a page table",
            Self::NoMemory => "no memory for the memmap",
        })
    }
}

impl core::error::Error for AddError {}

impl From<MemmapError> for AddError {
    fn from(error: MemmapError) -> Self {
        match error {
            MemmapError::NoMemory => Self::NoMemory,
            MemmapError::NoPageTable => Self::NoPageTable,
        }
    }
}

impl From<NoPageTable> for AddError {
    fn from(NoPageTable: NoPageTable) -> Self {
        Self::NoPageTable
    }
}

/// How memory is added (Linux `mhp_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MhpFlags {
    /// The content of the memory.
    pub content: MemoryContent,
    /// Whether the memmap may lie in the memory, if that was chosen at boot (Linux
    /// `MHP_MEMMAP_ON_MEMORY`).
    pub memmap_on_memory: bool,
}

impl MhpFlags {
    /// Memory with this content. The memmap may lie in it.
    #[must_use]
    pub const fn new(content: MemoryContent) -> Self {
        Self { content, memmap_on_memory: true }
    }

    /// The same with another [`memmap_on_memory`](Self::memmap_on_memory).
    #[must_use]
    pub const fn with_memmap_on_memory(mut self, memmap_on_memory: bool) -> Self {
        self.memmap_on_memory = memmap_on_memory;
        self
    }
}

impl From<MemoryContent> for MhpFlags {
    /// As [`MhpFlags::new`].
    fn from(content: MemoryContent) -> Self {
        Self::new(content)
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// Adds the memory block that begins with section `nr` to `node`. It has one section per element of
    /// `plugged`, which says which pageblocks of the section are usable. They are mapped, and the memory
    /// block's memmap is made and mapped. None of the memory can be allocated before
    /// [`online`](Self::online).
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_memory(
        &self,
        node: NodeId,
        nr: SectionNr,
        plugged: impl AsRef<[PageblockSet]>,
        flags: impl Into<MhpFlags>,
    ) -> Result<(), AddError> {
        let (plugged, flags) = (plugged.as_ref(), flags.into());
        let block = self.check_addable(nr, plugged)?;
        let on_memory = flags.memmap_on_memory && self.mm.options.get().memmap_on_memory;
        if on_memory && !plugged[0].contains_all(block.reserve()) {
            return Err(AddError::NoMemmap);
        }
        block.sections().for_each(|nr| self.mm.sparse.entry(nr).set_node(node));
        self.map_sections(block.sections(), plugged)?;
        let altmap = on_memory.then(|| VmemAltmap::new(nr, block.memmap_pages()));
        let mut source = MemmapSource::new(node, altmap);
        if let Err(error) = self.map_memmaps(block.sections(), &mut source) {
            self.unmap_sections(block.sections(), plugged);
            return Err(error.into());
        }
        // From here on nothing fails. Pages of older memory have been used.
        let zeroed = on_memory && flags.content == MemoryContent::Zero;
        self.mm.make_block_present(block, plugged, source.altmap(), zeroed, self.held());
        Ok(())
    }

    /// The memory block that begins with section `nr` and has one section per element of `plugged`, if it can
    /// be added.
    fn check_addable(&self, nr: SectionNr, plugged: &[PageblockSet]) -> Result<MemoryBlock, AddError> {
        self.mm.sparse.section(nr).ok_or(AddError::OutOfRange)?;
        let block = MemoryBlock::new(nr, plugged.len()).ok_or(AddError::Misaligned)?;
        self.check_vacant(SectionRange::new(nr, block.len()).ok_or(AddError::OutOfRange)?)?;
        if plugged.iter().all(|pageblocks| pageblocks.is_empty()) {
            return Err(AddError::NothingPlugged);
        }
        Ok(block)
    }

    /// Whether there is no memory in `range`, deferred or not.
    pub(super) fn check_vacant(&self, range: SectionRange) -> Result<(), AddError> {
        if range.end().get() > self.mm.sparse.len() {
            return Err(AddError::OutOfRange);
        }
        self.mm.first_taken(range).map_or(Ok(()), |_| Err(AddError::Exists))
    }
    /// Adds the sections of `range`, wholly plugged, to `node` as memory blocks of `block_sections` sections
    /// each: all of them or none. Each is added as by [`add_memory`](Self::add_memory).
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_memory_range(
        &self,
        node: NodeId,
        range: SectionRange,
        block_sections: u32,
        flags: impl Into<MhpFlags>,
    ) -> Result<(), AddError> {
        self.mm.sparse.section(range.first()).ok_or(AddError::OutOfRange)?;
        let block = MemoryBlock::new(range.first(), block_sections as usize).ok_or(AddError::Misaligned)?;
        if range.is_empty() || !range.len().is_multiple_of(block_sections) {
            return Err(AddError::Misaligned);
        }
        let plugged = block.all_pageblocks();
        let flags = flags.into();
        for first in range.sections().step_by(plugged.len()) {
            if let Err(error) = self.add_memory(node, first, plugged, flags) {
                let done = range.before(first);
                self.mm.blocks_in(done).for_each(|block| self.remove_block(block));
                return Err(error);
            }
        }
        Ok(())
    }
}
