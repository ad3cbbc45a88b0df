//! Removing a memory block that is offline: nothing of it is mapped afterwards.
//!
//! Mirrors Linux `try_remove_memory` for one memory block. Several at a time are in `offline_and_remove`.
//!
//! Invariant: no page of the memory block is looked at any more when its memmap is unmapped, because the
//! sections are Absent before [`Platform::synchronize`] is called.

use core::fmt;

use crate::added_block::MemoryBlock;
use crate::addr::SectionNr;
use crate::altmap::VmemAltmap;
use crate::hotplug::Hotplug;
use crate::memmap::MemmapSource;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::SectionState;

/// Why a memory block was not removed. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemoveError {
    /// No memory block that was added begins there.
    NotPresent,
    /// The memory block is online, or boot memory.
    Online,
    /// It is device memory, which [`Hotplug::memunmap_pages`] removes.
    Device,
    /// The range has several memory blocks whose memmap lies on them, and the policy is
    /// [`RemovalPolicy::Range`](crate::RemovalPolicy::Range): they leave one by one, as they came.
    Granularity,
    /// Some of the range's memory blocks have their memmap on them, and some have not.
    Mixed,
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPresent => "no memory block that was added begins there",
            Self::Online => "the memory block is online or boot memory",
            Self::Device => "it is device memory",
            Self::Granularity => "memory blocks whose memmap lies on them must be removed one by one",
            Self::Mixed => "some of the memory blocks have their memmap on them and some have not",
        })
    }
}

impl core::error::Error for RemoveError {}

impl<P: Platform> Hotplug<'_, P> {
    /// Removes the memory block that begins with section `nr` and is offline: nothing of it is mapped
    /// afterwards.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub fn remove_memory(&self, nr: SectionNr) -> Result<(), RemoveError> {
        let block = self.block_to_remove(nr)?;
        self.remove_block(block);
        Ok(())
    }

    /// The memory block that begins with section `nr`, if there is one and it is offline.
    pub(super) fn block_to_remove(&self, nr: SectionNr) -> Result<MemoryBlock, RemoveError> {
        let section = self.mm.sparse.section(nr).ok_or(RemoveError::NotPresent)?;
        self.settle(nr.into());
        if self.mm.is_boot_memory(nr) {
            return Err(RemoveError::Online);
        }
        if section.is_device() {
            return Err(RemoveError::Device);
        }
        let block = MemoryBlock::at(&self.mm.sparse, nr).ok_or(RemoveError::NotPresent)?;
        match section.state() {
            SectionState::Present => Ok(block),
            _ => Err(RemoveError::Online),
        }
    }

    /// Removes `block`, which is offline.
    pub(super) fn remove_block(&self, block: MemoryBlock) {
        for nr in block.sections() {
            self.mm.sparse.set_state(nr, SectionState::Absent, self.held());
        }
        let first = self.mm.sparse.entry(block.first());
        let altmap = VmemAltmap::of(block.first(), first);
        let mut source = MemmapSource::new(first.node(), altmap);
        self.unmap_memmaps(block.sections(), &mut source);
        if let Some(altmap) = source.altmap() {
            altmap.clear(first);
        }
        for nr in block.sections() {
            let section = self.mm.sparse.entry(nr);
            self.unmap_direct(nr, section.plugged());
            section.set_plugged(PageblockSet::NONE, self.held());
        }
        first.set_block_sections(0, self.held());
    }
}
