//! Memory blocks: add, online, offline, remove; and their sub-sections one by one.
//!
//! Mirrors Linux `mm/memory_hotplug.c` and the sub-block mode of `drivers/virtio/virtio_mem.c`. A
//! memory block is one section of 128 MiB. Where its memmap lies was chosen at boot: in the
//! block's own first 2 MiB (see `altmap`), or in memory that was there before.
//!
//! Accounting, in pages of the block's zone: `present` counts the whole block while it is online,
//! `managed` what the allocator got of it: the plugged sub-sections without the memmap.
//!
//! Differs from Linux on purpose: a step that fails takes back all steps before it; an added
//! block may be plugged in part; memory that comes online is not isolated first, because it
//! becomes visible to the allocator as the very last step.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, Order, Pfn, SECTION_PAGES, SectionNr};
use crate::altmap::VmemAltmap;
use crate::buddy::Place;
use crate::isolation::OfflineError;
use crate::lock::Guard;
use crate::memmap_init::{Content, init_hot_added};
use crate::node::NodeId;
use crate::page::{Holder, ZoneType};
use crate::page_alloc::Gfp;
use crate::pageblock::MigrateType;
use crate::platform::{FaultStep, NoPageTable, Platform};
use crate::sparse::{Section, SectionPages, SectionState};
use crate::subsection::SubSections;

/// Why a memory block was not added. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// The section table has no entry for it.
    OutOfRange,
    /// It was added before, or there at boot.
    Exists,
    /// No sub-section of it is plugged.
    NothingPlugged,
    /// The first sub-section, where the memmap is to lie, is not plugged.
    NoMemmap,
    /// No page for a page table.
    NoPageTable,
    /// No room for the memmap.
    NoMemory,
}

/// Why memory was not put into a zone. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnlineError {
    /// The memory block is not added.
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

/// Why a memory block was not removed. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveError {
    /// The memory block is not added.
    NotPresent,
    /// The memory block is online, or boot memory.
    Online,
    /// It is device memory, which [`Mm::memunmap_pages`] removes.
    Device,
}

impl<P: Platform> Mm<P> {
    pub(crate) fn lock_hotplug(&self) -> Guard<'_, ()> {
        self.hotplug.lock_with(|| self.platform.relax())
    }

    /// Where memory block `nr` stands.
    pub fn section_state(&self, nr: SectionNr) -> SectionState {
        self.sparse.section(nr).map_or(SectionState::Absent, Section::state)
    }

    /// The sub-sections of hot-added memory block `nr` that are plugged.
    pub fn plugged(&self, nr: SectionNr) -> SubSections {
        self.sparse.section(nr).map_or(SubSections::NONE, Section::plugged)
    }

    /// Adds memory block `nr` to `node`. The sub-sections `plugged` are usable: maps them, and makes and
    /// maps the block's memmap, where there is `content` now if the memmap lies in the block. None of
    /// it can be allocated yet.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_memory(
        &self,
        node: NodeId,
        nr: SectionNr,
        plugged: SubSections,
        content: Content,
    ) -> Result<(), AddError> {
        let _hotplug = self.lock_hotplug();
        let section = self.sparse.section(nr).ok_or(AddError::OutOfRange)?;
        if section.state() != SectionState::Absent {
            return Err(AddError::Exists);
        }
        if plugged.is_empty() {
            return Err(AddError::NothingPlugged);
        }
        let on_memory = self.memmap_on_memory.load(Relaxed);
        if on_memory && !plugged.contains_all(SubSections::FIRST) {
            return Err(AddError::NoMemmap);
        }
        section.set_node(node);
        self.map_direct(nr, plugged).map_err(|NoPageTable| AddError::NoPageTable)?;
        if let Err(error) = self.add_memmap(nr, section, on_memory) {
            self.unmap_direct(nr, plugged);
            return Err(error);
        }
        section.set_plugged(plugged);
        // Pages of older memory have been used.
        section.set_zeroed(on_memory && content == Content::Zero);
        self.sparse.set_state(nr, SectionState::Present);
        Ok(())
    }

    /// Takes pages for the memmap of `section` and maps it.
    fn add_memmap(&self, nr: SectionNr, section: &Section, on_memory: bool) -> Result<(), AddError> {
        let memmap = self.alloc_memmap(nr, section, on_memory).ok_or(AddError::NoMemory)?;
        section.set_memmap(memmap);
        if self.platform.fault(FaultStep::MapMemmap) || self.platform.map_memmap(nr, memmap).is_err() {
            self.free_memmap(nr, section);
            return Err(AddError::NoPageTable);
        }
        Ok(())
    }

    fn alloc_memmap(&self, nr: SectionNr, section: &Section, on_memory: bool) -> Option<Pfn> {
        if self.platform.fault(FaultStep::AllocMemmap) {
            return None;
        }
        if on_memory {
            let mut altmap = VmemAltmap::new(nr, MEMMAP_PAGES);
            let pfn = altmap.alloc(Order::PAGEBLOCK)?;
            altmap.store(section);
            self.counters.memmap_altmap_pages.fetch_add(MEMMAP_PAGES.into(), Relaxed);
            return Some(pfn);
        }
        let pfn = self.alloc_pages_node(section.node(), Order::PAGEBLOCK, Gfp::Kernel).ok()?;
        self.sparse.page(pfn).set_holder(Holder::Memmap.word());
        self.counters.memmap_boot_pages.fetch_add(MEMMAP_PAGES.into(), Relaxed);
        Some(pfn)
    }

    /// Gives the pages of the section's memmap, which is not mapped, back to where they came from.
    fn free_memmap(&self, nr: SectionNr, section: &Section) {
        match VmemAltmap::of(nr, section) {
            Some(mut altmap) => {
                altmap.free(Order::PAGEBLOCK);
                altmap.clear(section);
                self.counters.memmap_altmap_pages.fetch_sub(MEMMAP_PAGES.into(), Relaxed);
            }
            None => {
                self.free_pages(section.memmap(), Order::PAGEBLOCK);
                self.counters.memmap_boot_pages.fetch_sub(MEMMAP_PAGES.into(), Relaxed);
            }
        }
    }

    /// Puts memory block `nr` into `zone` of its node: its plugged sub-sections can be allocated afterwards.
    ///
    /// # Errors
    /// See [`OnlineError`].
    pub fn online(&self, nr: SectionNr, zone: ZoneType) -> Result<(), OnlineError> {
        let _hotplug = self.lock_hotplug();
        let section = self.sparse.section(nr).ok_or(OnlineError::NotPresent)?;
        match section.state() {
            // Boot memory comes by itself.
            _ if section.is_boot() => return Err(OnlineError::Online),
            _ if section.is_device() => return Err(OnlineError::Device),
            SectionState::Present => {}
            SectionState::Online => return Err(OnlineError::Online),
            _ => return Err(OnlineError::NotPresent),
        }
        let below_4g = nr.start().address().get() < 4 << 30;
        match zone {
            ZoneType::Dma32 if !below_4g => return Err(OnlineError::WrongZone),
            ZoneType::Normal if below_4g => return Err(OnlineError::WrongZone),
            _ => {}
        }
        let pages = self.sparse.pages_to_initialise(nr);
        let memmap = memmap_blocks(nr, section);
        let zone = section.node().zone(zone);
        self.init_section(pages, zone);
        init_hot_added(pages, memmap);
        self.sparse.set_state(nr, SectionState::Initialised);
        if self.platform.fault(FaultStep::Online) {
            self.sparse.set_state(nr, SectionState::Present);
            return Err(OnlineError::Vetoed);
        }
        let of = self.zone(zone);
        self.nodes.include(section.node());
        of.grow_span(nr.frames());
        of.add_present(SECTION_PAGES.into());
        self.sparse.set_state(nr, SectionState::Online);
        let usable = section.plugged().without(memmap);
        of.add_managed(usable.pages().into());
        for run in usable.runs() {
            self.free_range(pages, nr.pageblocks(&run));
        }
        self.update_limits();
        Ok(())
    }

    /// Puts freshly plugged sub-sections of an online memory block into its zone.
    ///
    /// # Errors
    /// See [`OnlineError`].
    pub fn online_subsections(&self, nr: SectionNr, blocks: SubSections) -> Result<(), OnlineError> {
        let _hotplug = self.lock_hotplug();
        let section = self.sparse.section(nr).ok_or(OnlineError::NotOnline)?;
        if section.state() != SectionState::Online {
            return Err(OnlineError::NotOnline);
        }
        if section.is_boot() || section.plugged().intersects(blocks) {
            return Err(OnlineError::Plugged);
        }
        self.map_direct(nr, blocks).map_err(|NoPageTable| OnlineError::NoPageTable)?;
        if self.platform.fault(FaultStep::Online) {
            self.unmap_direct(nr, blocks);
            return Err(OnlineError::Vetoed);
        }
        let pages = self.online_pages(nr);
        section.set_plugged(section.plugged().union(blocks));
        let zone = self.zone(section.zone());
        zone.add_managed(blocks.pages().into());
        for block in blocks.iter() {
            let mut buddy = zone.lock();
            section.pageblocks.set_type(block, MigrateType::Movable);
            // One by one, because each is a block of its own in state `Offline` up to here.
            let (first, _) = pages.covering(block);
            buddy.free_block(&self.sparse, pages, first, Order::PAGEBLOCK, Place::Tail);
        }
        self.update_limits();
        Ok(())
    }

    /// Takes memory block `nr` out of its zone. Its pages move elsewhere first.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn offline(&self, nr: SectionNr) -> Result<(), OfflineError> {
        let _hotplug = self.lock_hotplug();
        let section = self.section_to_offline(nr)?;
        let pages = self.online_pages(nr);
        let blocks = section.plugged().without(memmap_blocks(nr, section));
        self.take_pageblocks(pages, blocks)?;
        // Only now, when per-CPU lists are enabled again: new limits are published below.
        let zone = self.zone(section.zone());
        self.sparse.set_state(nr, SectionState::Present);
        zone.sub_managed(blocks.pages().into());
        zone.sub_present(SECTION_PAGES.into());
        zone.shrink_span(&self.sparse, nr);
        self.update_limits();
        Ok(())
    }

    /// Takes sub-sections of an online memory block out of its zone and unmaps them. Their pages
    /// move elsewhere first.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn offline_subsections(&self, nr: SectionNr, blocks: SubSections) -> Result<(), OfflineError> {
        let _hotplug = self.lock_hotplug();
        let section = self.section_to_offline(nr)?;
        if !section.plugged().contains_all(blocks) {
            return Err(OfflineError::NotPlugged);
        }
        if memmap_blocks(nr, section).intersects(blocks) {
            return Err(OfflineError::HoldsMemmap);
        }
        self.take_pageblocks(self.online_pages(nr), blocks)?;
        self.zone(section.zone()).sub_managed(blocks.pages().into());
        section.set_plugged(section.plugged().without(blocks));
        self.unmap_direct(nr, blocks);
        self.update_limits();
        Ok(())
    }

    fn section_to_offline(&self, nr: SectionNr) -> Result<&Section, OfflineError> {
        let section = self.sparse.section(nr).ok_or(OfflineError::NotOnline)?;
        if section.is_boot() {
            return Err(OfflineError::BootMemory);
        }
        if section.state() != SectionState::Online {
            return Err(OfflineError::NotOnline);
        }
        Ok(section)
    }

    fn online_pages(&self, nr: SectionNr) -> SectionPages<'_> {
        self.sparse.pages(nr).expect("an online section has pages")
    }

    /// Removes memory block `nr`, which is offline: nothing of it is mapped afterwards.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub fn remove_memory(&self, nr: SectionNr) -> Result<(), RemoveError> {
        let _hotplug = self.lock_hotplug();
        let section = self.sparse.section(nr).ok_or(RemoveError::NotPresent)?;
        match section.state() {
            _ if section.is_boot() => return Err(RemoveError::Online),
            _ if section.is_device() => return Err(RemoveError::Device),
            SectionState::Present => {}
            SectionState::Absent => return Err(RemoveError::NotPresent),
            SectionState::Initialised | SectionState::Online => return Err(RemoveError::Online),
        }
        self.sparse.set_state(nr, SectionState::Absent);
        self.platform.synchronize();
        self.platform.unmap_memmap(nr);
        self.free_memmap(nr, section);
        self.unmap_direct(nr, section.plugged());
        section.set_plugged(SubSections::NONE);
        Ok(())
    }

    /// Maps `blocks` of section `nr`, all of them or none.
    pub(crate) fn map_direct(&self, nr: SectionNr, blocks: SubSections) -> Result<(), NoPageTable> {
        let mut mapped = SubSections::NONE;
        for run in blocks.runs() {
            let range = nr.pageblocks(&run);
            if self.platform.fault(FaultStep::MapDirect) || self.platform.map_direct(range).is_err() {
                self.unmap_direct(nr, mapped);
                return Err(NoPageTable);
            }
            mapped = mapped.union(SubSections::range(run));
        }
        Ok(())
    }

    pub(crate) fn unmap_direct(&self, nr: SectionNr, blocks: SubSections) {
        for run in blocks.runs() {
            self.platform.unmap_direct(nr.pageblocks(&run));
        }
    }
}

/// The sub-sections of section `nr` that hold its own memmap.
pub(crate) fn memmap_blocks(nr: SectionNr, section: &Section) -> SubSections {
    let pages = VmemAltmap::of(nr, section).map_or(0, VmemAltmap::offset);
    SubSections::range(0..pages / crate::PAGEBLOCK_PAGES)
}
