//! Memory blocks: online and offline; and their sub-sections one by one.
//!
//! Mirrors Linux `memory_block_online` and `memory_block_offline` with `online_pages`,
//! `offline_pages` and `mhp_init_memmap_on_memory`, in the same order:
//!
//! | step of online | way back, or step of offline |
//! |---|---|
//! | pages of the memmap on memory are initialised and join the zone's span | they leave it (last) |
//! | the rest is initialised; here [`FaultStep::Online`] may stop it | |
//! | the rest counts as `present`, its plugged part as `managed`, and can be allocated | migrated, isolated, taken (second) |
//! | the memmap counts as `present` | no more (first; again if the rest stays) |
//!
//! While a memory block goes offline its memmap does not count, so that a zone that keeps nothing else
//! is seen to be empty.
//!
//! Accounting, in pages of the block's zone: `present` counts the whole block while it is online,
//! `managed` what the allocator got of it: the plugged sub-sections without the memmap.
//!
//! Differs from Linux on purpose: memory that comes online is not isolated first, because it
//! becomes visible to the allocator after everything that can fail. The sub-sections are those of the sub-block
//! mode of `drivers/virtio/virtio_mem.c`.

use crate::Mm;
use crate::addr::{PfnRange, SECTION_PAGES, SectionNr};
use crate::altmap::VmemAltmap;
use crate::evacuate::Part;
use crate::isolation::OfflineError;
use crate::memmap_init::init_hot_added;
use crate::memory_block::{MemoryBlock, memmap_blocks};
use crate::node::{ZoneId, ZoneType};
use crate::pageblock_set::PageblockSet;
use crate::platform::{FaultStep, NoPageTable, Platform};
use crate::sparse::{Section, SectionPages, SectionState};

/// Why memory was not put into a zone. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnlineError {
    /// No memory block that was added begins there.
    NotPresent,
    /// The memory block is online already.
    Online,
    /// The memory block is not online, so its sub-sections cannot be.
    NotOnline,
    /// The zone cannot hold memory at this address.
    WrongZone,
    /// Some of the sub-sections are plugged already, or the memory block was there at boot.
    Plugged,
    /// No page for a page table.
    NoPageTable,
    /// [`Platform::fault`] stopped it.
    Vetoed,
    /// It is device memory, which is never in a zone of the allocator.
    Device,
}

impl<P: Platform> Mm<P> {
    /// Puts the memory block that begins with section `nr` into `zone` of its node: its plugged sub-sections can
    /// be allocated afterwards.
    ///
    /// # Errors
    /// See [`OnlineError`].
    pub fn online(&self, nr: SectionNr, zone: ZoneType) -> Result<(), OnlineError> {
        let _hotplug = self.lock_hotplug();
        let block = self.block_to_online(nr, zone)?;
        self.online_block(block, self.entry(nr).node().zone(zone), || self.platform.fault(FaultStep::Online))
    }

    fn block_to_online(&self, nr: SectionNr, zone: ZoneType) -> Result<MemoryBlock, OnlineError> {
        let section = self.sparse.section(nr).ok_or(OnlineError::NotPresent)?;
        // Boot memory comes by itself.
        if self.is_boot_memory(nr) {
            return Err(OnlineError::Online);
        }
        if section.is_device() {
            return Err(OnlineError::Device);
        }
        let block = MemoryBlock::at(&self.sparse, nr).ok_or(OnlineError::NotPresent)?;
        if section.state() != SectionState::Present {
            return Err(OnlineError::Online);
        }
        let below_4g = nr.start().address().get() < 4 << 30;
        match zone {
            ZoneType::Dma32 if !below_4g => Err(OnlineError::WrongZone),
            ZoneType::Normal if below_4g => Err(OnlineError::WrongZone),
            _ => Ok(block),
        }
    }

    /// Puts a memory block that is offline into `zone`. Nothing but a `veto`, asked half way, keeps it from
    /// that.
    pub(crate) fn online_block(
        &self,
        block: MemoryBlock,
        zone: ZoneId,
        veto: impl FnOnce() -> bool,
    ) -> Result<(), OnlineError> {
        let memmap = self.init_memmap_on_memory(block, zone);
        if let Err(error) = self.online_rest(block, zone, memmap, veto) {
            self.deinit_memmap_on_memory(block, zone);
            return Err(error);
        }
        self.zone(zone).add_present(memmap.pages().into());
        Ok(())
    }

    /// Where a memory block's memmap lies on it; empty when it lies elsewhere.
    fn memmap_on_memory(&self, block: MemoryBlock) -> PfnRange {
        let altmap = VmemAltmap::of(block.first(), self.entry(block.first()));
        PfnRange::new(block.first().start(), altmap.map_or(0, VmemAltmap::offset))
    }

    /// Initialises the pages in which the memory block's own memmap lies, if it does, and makes them a
    /// part of `zone` (Linux `mhp_init_memmap_on_memory`). Returns them.
    fn init_memmap_on_memory(&self, block: MemoryBlock, zone: ZoneId) -> PfnRange {
        let memmap = self.memmap_on_memory(block);
        if memmap.is_empty() {
            return memmap;
        }
        let first = block.first();
        self.init_hot_added(first, zone);
        self.zone(zone).grow_span(memmap);
        if memmap.pages() == SECTION_PAGES {
            // Nothing else is in that section.
            self.sparse.set_state(first, SectionState::Online);
        }
        memmap
    }

    /// The way back of [`init_memmap_on_memory`](Self::init_memmap_on_memory), and the end of a memory
    /// block's time in `zone`, wherever its memmap lies.
    fn deinit_memmap_on_memory(&self, block: MemoryBlock, zone: ZoneId) {
        self.set_states(block, SectionState::Present);
        self.zone(zone).shrink_span(&self.sparse, block.frames());
    }

    /// Initialises the pages of a section that is about to join `zone`.
    fn init_hot_added(&self, nr: SectionNr, zone: ZoneId) {
        let pages = self.sparse.pages_to_initialise(nr);
        self.init_section(pages, zone);
        init_hot_added(pages, memmap_blocks(nr, pages.section()));
        self.sparse.set_state(nr, SectionState::Initialised);
    }

    /// Puts all but the memmap of a memory block into `zone` (Linux `online_pages`). If it fails, the
    /// block's sections are as they were or initialised.
    fn online_rest(
        &self,
        block: MemoryBlock,
        zone: ZoneId,
        memmap: PfnRange,
        veto: impl FnOnce() -> bool,
    ) -> Result<(), OnlineError> {
        for nr in block.sections().filter(|&nr| self.entry(nr).state() == SectionState::Present) {
            self.init_hot_added(nr, zone);
        }
        if veto() {
            return Err(OnlineError::Vetoed);
        }
        let of = self.zone(zone);
        self.nodes.include(zone.node());
        of.grow_span(block.frames());
        of.add_present(u64::from(block.frames().pages() - memmap.pages()));
        self.set_states(block, SectionState::Online);
        for nr in block.sections() {
            let pages = self.online_pages(nr);
            let usable = usable(nr, pages.section());
            of.add_managed(usable.pages().into());
            for run in usable.runs() {
                self.free_range(pages, nr.pageblocks(&run));
            }
        }
        self.update_limits();
        Ok(())
    }

    fn set_states(&self, block: MemoryBlock, state: SectionState) {
        for nr in block.sections().filter(|&nr| self.entry(nr).state() != state) {
            self.sparse.set_state(nr, state);
        }
    }

    /// Puts freshly plugged sub-sections of an online memory block into its zone, all of them or none:
    /// those in `blocks` of section `nr` and of the sections that follow, an element each.
    ///
    /// # Errors
    /// See [`OnlineError`].
    pub fn online_pageblocks(
        &self,
        nr: SectionNr,
        blocks: impl AsRef<[PageblockSet]>,
    ) -> Result<(), OnlineError> {
        let _hotplug = self.lock_hotplug();
        let blocks = blocks.as_ref();
        let sections = self.sections_of_one_block(nr, blocks.len()).ok_or(OnlineError::NotOnline)?;
        for (nr, &blocks) in sections.clone().zip(blocks) {
            let section = self.entry(nr);
            if section.state() != SectionState::Online {
                return Err(OnlineError::NotOnline);
            }
            if section.is_boot() || section.plugged().intersects(blocks) {
                return Err(OnlineError::Plugged);
            }
        }
        self.map_sections(sections.clone(), blocks).map_err(|NoPageTable| OnlineError::NoPageTable)?;
        if self.platform.fault(FaultStep::Online) {
            sections.zip(blocks).for_each(|(nr, &blocks)| self.unmap_direct(nr, blocks));
            return Err(OnlineError::Vetoed);
        }
        for (nr, &blocks) in sections.zip(blocks) {
            self.free_pageblocks(self.online_pages(nr), blocks);
        }
        self.update_limits();
        Ok(())
    }

    /// Gives sub-sections that were not plugged up to now to the allocator.
    fn free_pageblocks(&self, pages: SectionPages<'_>, blocks: PageblockSet) {
        let section = pages.section();
        section.set_plugged(section.plugged().union(blocks));
        let zone = self.zone(section.zone());
        zone.add_managed(blocks.pages().into());
        for block in blocks.iter() {
            self.lock_zone(section.zone()).free_offline_pageblock(pages, block);
        }
    }

    /// The `count` sections from `nr` on, if they are in the table and no memory block begins behind the
    /// first.
    fn sections_of_one_block(
        &self,
        nr: SectionNr,
        count: usize,
    ) -> Option<impl Iterator<Item = SectionNr> + Clone + use<P>> {
        let end = nr.get().checked_add(u32::try_from(count).ok()?)?;
        let sections = (nr.get()..end).map(SectionNr::new);
        let mut entries = sections.clone().map(|nr| self.sparse.section(nr));
        entries.next()??;
        entries
            .all(|section| section.is_some_and(|section| section.block_sections() == 0))
            .then_some(sections)
    }

    /// Takes the memory block that begins with section `nr` out of its zone. Its pages move elsewhere
    /// first.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn offline(&self, nr: SectionNr) -> Result<(), OfflineError> {
        let _hotplug = self.lock_hotplug();
        self.offline_block(self.block_to_offline(nr)?)
    }

    pub(crate) fn block_to_offline(&self, nr: SectionNr) -> Result<MemoryBlock, OfflineError> {
        self.section_to_offline(nr)?;
        MemoryBlock::at(&self.sparse, nr).ok_or(OfflineError::NotOnline)
    }

    /// Takes a memory block that is online out of its zone.
    pub(crate) fn offline_block(&self, block: MemoryBlock) -> Result<(), OfflineError> {
        let zone = self.entry(block.first()).zone();
        let of = self.zone(zone);
        let memmap = self.memmap_on_memory(block);
        of.sub_present(memmap.pages().into());
        if let Err(error) = self.offline_rest(block, zone, memmap) {
            of.add_present(memmap.pages().into());
            return Err(error);
        }
        self.deinit_memmap_on_memory(block, zone);
        Ok(())
    }

    /// Takes all but the memmap of a memory block out of `zone` (Linux `offline_pages`).
    fn offline_rest(&self, block: MemoryBlock, zone: ZoneId, memmap: PfnRange) -> Result<(), OfflineError> {
        let parts = block.sections().map(|nr| self.usable_part(nr));
        self.take_pageblocks(zone, parts.clone())?;
        // Only now, when per-CPU lists are enabled again: new limits are published below.
        let of = self.zone(zone);
        of.sub_managed(parts.map(|(_, blocks)| u64::from(blocks.pages())).sum());
        of.sub_present(u64::from(block.frames().pages() - memmap.pages()));
        self.update_limits();
        Ok(())
    }

    /// What the allocator has of an online section.
    fn usable_part(&self, nr: SectionNr) -> Part<'_> {
        let pages = self.online_pages(nr);
        (pages, usable(nr, pages.section()))
    }

    /// Takes sub-sections of an online memory block out of its zone and unmaps them, all of them or
    /// none: those in `blocks` of section `nr` and of the sections that follow, an element each. Their
    /// pages move elsewhere first.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn offline_pageblocks(
        &self,
        nr: SectionNr,
        blocks: impl AsRef<[PageblockSet]>,
    ) -> Result<(), OfflineError> {
        let _hotplug = self.lock_hotplug();
        let blocks = blocks.as_ref();
        let sections = self.sections_of_one_block(nr, blocks.len()).ok_or(OfflineError::NotOnline)?;
        for (nr, &blocks) in sections.clone().zip(blocks) {
            let section = self.section_to_offline(nr)?;
            if !section.plugged().contains_all(blocks) {
                return Err(OfflineError::NotPlugged);
            }
            if memmap_blocks(nr, section).intersects(blocks) {
                return Err(OfflineError::HoldsMemmap);
            }
        }
        let zone = self.entry(nr).zone();
        let parts = sections.zip(blocks).map(|(nr, &blocks)| (self.online_pages(nr), blocks));
        self.take_pageblocks(zone, parts.clone())?;
        for (pages, blocks) in parts {
            let section = pages.section();
            self.zone(zone).sub_managed(blocks.pages().into());
            section.set_plugged(section.plugged().without(blocks));
            self.unmap_direct(pages.nr(), blocks);
        }
        self.update_limits();
        Ok(())
    }

    fn section_to_offline(&self, nr: SectionNr) -> Result<&Section, OfflineError> {
        let section = self.sparse.section(nr).ok_or(OfflineError::NotOnline)?;
        if self.is_boot_memory(nr) {
            return Err(OfflineError::BootMemory);
        }
        if section.state() != SectionState::Online {
            return Err(OfflineError::NotOnline);
        }
        Ok(section)
    }

    fn online_pages(&self, nr: SectionNr) -> SectionPages<'_> {
        self.sparse.online_pages(nr).expect("an online section has pages")
    }
}

/// What of a section can be allocated when it is online.
fn usable(nr: SectionNr, section: &Section) -> PageblockSet {
    section.plugged().without(memmap_blocks(nr, section))
}
