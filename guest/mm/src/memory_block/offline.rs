//! Taking memory blocks out of their zone.
//!
//! Mirrors Linux `memory_block_offline` and `offline_pages`; the order of steps is the reverse of the table
//! in `online`. Pages in use move elsewhere first (see `evacuate`).
//!
//! Invariant: while a memory block goes offline its memmap does not count as present, so that a zone that
//! keeps nothing else is seen to be empty.

use crate::added_block::{MemoryBlock, usable};
use crate::addr::{PfnRange, SectionNr};
use crate::evacuate::Part;
use crate::hotplug::Hotplug;
use crate::isolation::OfflineError;
use crate::node::ZoneId;
use crate::platform::Platform;
use crate::sparse::{Section, SectionState};

impl<P: Platform> Hotplug<'_, P> {
    /// Takes the memory block that begins with section `nr` out of its zone. Its pages move elsewhere
    /// first.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn offline(&self, nr: SectionNr) -> Result<(), OfflineError> {
        self.section_to_offline(nr)?;
        let block = MemoryBlock::at(&self.mm.sparse, nr).ok_or(OfflineError::NotOnline)?;
        let zone = self.mm.sparse.entry(nr).zone();
        let of = self.mm.zone(zone);
        let memmap = self.memmap_on_memory(block);
        of.sub_present(memmap.pages().into(), self.held());
        if let Err(error) = self.offline_rest(block, zone, memmap) {
            of.add_present(memmap.pages().into(), self.held());
            return Err(error);
        }
        self.deinit_memmap_on_memory(block, zone);
        Ok(())
    }

    /// Takes all but the memmap of `block` out of `zone` (Linux `offline_pages`).
    fn offline_rest(&self, block: MemoryBlock, zone: ZoneId, memmap: PfnRange) -> Result<(), OfflineError> {
        let parts = block.sections().map(|nr| self.usable_part(nr));
        self.mm.take_pageblocks(zone, parts.clone(), self.held())?;
        // Per-CPU lists are enabled again here: `update_limits` waits until they are.
        let of = self.mm.zone(zone);
        of.sub_managed(parts.map(|(_, blocks)| u64::from(blocks.pages())).sum(), self.held());
        of.sub_present(u64::from(block.frames().pages() - memmap.pages()), self.held());
        self.update_limits();
        Ok(())
    }

    /// The part of an online section that the allocator manages.
    fn usable_part(&self, nr: SectionNr) -> Part<'_> {
        let pages = self.online_pages(nr);
        (pages, usable(nr, pages.section()))
    }

    /// The entry of section `nr`, if it is online and was added.
    pub(super) fn section_to_offline(&self, nr: SectionNr) -> Result<&Section, OfflineError> {
        let section = self.mm.sparse.section(nr).ok_or(OfflineError::NotOnline)?;
        self.settle(nr.into());
        if self.mm.is_boot_memory(nr) {
            return Err(OfflineError::BootMemory);
        }
        if section.state() != SectionState::Online {
            return Err(OfflineError::NotOnline);
        }
        Ok(section)
    }
}
