//! Memory blocks: add and remove.
//!
//! Mirrors Linux `add_memory_resource`, `try_remove_memory` and `mm/sparse-vmemmap.c`. Where the
//! memmap of a memory block lies was chosen at boot: in a reserve at the block's own start (see
//! `altmap`), or in memory that was there before; a caller whose memory is not fit for the first may
//! ask for the second. In older memory a large page may not be left for it: then it is made of small ones.
//!
//! Differs from Linux on purpose: a step that fails takes back all steps before it, in a range of
//! memory blocks those of the others too (Linux leaves what it has); and an added block may be plugged
//! in part.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, Order, Pfn, SectionNr};
use crate::altmap::VmemAltmap;
use crate::lock::Guard;
use crate::memmap_init::MemoryContent;
use crate::memory_block::{BlockStats, MemoryBlock};
use crate::node::NodeId;
use crate::page_alloc::Gfp;
use crate::pageblock_set::PageblockSet;
use crate::platform::{FaultStep, MemmapFrames, NoPageTable, Platform};
use crate::sparse::{Section, SectionState};

/// Why a memory block was not added. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// There cannot be a memory block of so many sections at this place.
    Misaligned,
    /// The section table has no entry for it.
    OutOfRange,
    /// Some of it was added before, or there at boot.
    Exists,
    /// No sub-section of it is plugged.
    NothingPlugged,
    /// The first sub-sections, where the memmap is to lie, are not all plugged.
    NoMemmap,
    /// No page for a page table.
    NoPageTable,
    /// No room for the memmap.
    NoMemory,
}

/// Why a memory block was not removed. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveError {
    /// No memory block that was added begins there.
    NotPresent,
    /// The memory block is online, or boot memory.
    Online,
    /// It is device memory, which [`Mm::memunmap_pages`] removes.
    Device,
    /// The range has several memory blocks, and their memmap lies on them: they were added one by one,
    /// and [`RemovalPolicy::Range`](crate::RemovalPolicy::Range) takes a range the way it came.
    Granularity,
    /// Some of the range's memory blocks have their memmap on them, and some have not.
    Mixed,
}

/// How memory is added (Linux `mhp_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MhpFlags {
    /// What is in the memory.
    pub content: MemoryContent,
    /// Whether the memmap may lie in the memory, if that was chosen at boot (Linux
    /// `MHP_MEMMAP_ON_MEMORY`).
    pub memmap_on_memory: bool,
}

impl From<MemoryContent> for MhpFlags {
    /// The memmap may lie in the memory.
    fn from(content: MemoryContent) -> Self {
        Self { content, memmap_on_memory: true }
    }
}

impl<P: Platform> Mm<P> {
    pub(crate) fn lock_hotplug(&self) -> Guard<'_, ()> {
        self.hotplug.lock_with(|| self.platform.relax())
    }

    /// Where section `nr` stands.
    pub fn section_state(&self, nr: SectionNr) -> SectionState {
        self.sparse.section(nr).map_or(SectionState::Absent, Section::state)
    }

    /// The sub-sections of hot-added section `nr` that are plugged.
    pub fn plugged(&self, nr: SectionNr) -> PageblockSet {
        self.sparse.section(nr).map_or(PageblockSet::NONE, Section::plugged)
    }

    /// Tells `tell` of every memory block from section `from` on, ascending, until it has had enough and
    /// returns false. It may not change memory blocks. Boot memory that is not initialised is left out.
    pub fn each_memory_block(&self, from: SectionNr, tell: impl FnMut(BlockStats) -> bool) {
        let _hotplug = self.lock_hotplug();
        let blocks = self.sparse.numbers().skip_while(|nr| *nr < from);
        let _ = blocks.filter_map(|nr| BlockStats::at(&self.sparse, nr)).all(tell);
    }

    /// Adds the memory block that begins with section `nr` to `node`. It has as many sections as there are
    /// elements in `plugged`, which says what of each is usable: maps that, and makes and maps the
    /// block's memmap. None of it can be allocated yet.
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
        let _hotplug = self.lock_hotplug();
        self.add_block(node, nr, plugged.as_ref(), flags.into())
    }

    /// [`add_memory`](Self::add_memory) under the memory hotplug lock.
    pub(crate) fn add_block(
        &self,
        node: NodeId,
        nr: SectionNr,
        plugged: &[PageblockSet],
        flags: MhpFlags,
    ) -> Result<(), AddError> {
        self.sparse.section(nr).ok_or(AddError::OutOfRange)?;
        let block = MemoryBlock::new(nr, plugged.len()).ok_or(AddError::Misaligned)?;
        for nr in block.sections() {
            let section = self.sparse.section(nr).ok_or(AddError::OutOfRange)?;
            if section.state() != SectionState::Absent || self.is_boot_memory(nr) {
                return Err(AddError::Exists);
            }
        }
        if plugged.iter().all(|blocks| blocks.is_empty()) {
            return Err(AddError::NothingPlugged);
        }
        let on_memory = flags.memmap_on_memory && self.memmap_on_memory.load(Relaxed);
        if on_memory && !plugged[0].contains_all(block.reserve()) {
            return Err(AddError::NoMemmap);
        }
        block.sections().for_each(|nr| self.entry(nr).set_node(node));
        self.map_sections(block.sections(), plugged).map_err(|NoPageTable| AddError::NoPageTable)?;
        if let Err(error) = self.add_memmaps(block, on_memory) {
            block.sections().zip(plugged).for_each(|(nr, &plugged)| self.unmap_direct(nr, plugged));
            return Err(error);
        }
        for (nr, &plugged) in block.sections().zip(plugged) {
            let section = self.entry(nr);
            section.set_plugged(plugged);
            // Pages of older memory have been used.
            section.set_zeroed(on_memory && flags.content == MemoryContent::Zero);
            self.sparse.set_state(nr, SectionState::Present);
        }
        self.entry(nr).set_block_sections(block.len());
        Ok(())
    }

    /// Removes the memory block that begins with section `nr` and is offline: nothing of it is mapped
    /// afterwards.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub fn remove_memory(&self, nr: SectionNr) -> Result<(), RemoveError> {
        let _hotplug = self.lock_hotplug();
        let block = self.block_to_remove(nr)?;
        self.remove_block(block);
        Ok(())
    }

    /// The memory block that begins with section `nr`, if it is there and offline.
    pub(crate) fn block_to_remove(&self, nr: SectionNr) -> Result<MemoryBlock, RemoveError> {
        let section = self.sparse.section(nr).ok_or(RemoveError::NotPresent)?;
        if self.is_boot_memory(nr) {
            return Err(RemoveError::Online);
        }
        if section.is_device() {
            return Err(RemoveError::Device);
        }
        let block = MemoryBlock::at(&self.sparse, nr).ok_or(RemoveError::NotPresent)?;
        match section.state() {
            SectionState::Present => Ok(block),
            _ => Err(RemoveError::Online),
        }
    }

    /// Removes a memory block that is offline.
    pub(crate) fn remove_block(&self, block: MemoryBlock) {
        for nr in block.sections() {
            self.sparse.set_state(nr, SectionState::Absent);
        }
        self.platform.synchronize();
        self.remove_memmaps(block, block.len());
        for nr in block.sections() {
            let section = self.entry(nr);
            self.unmap_direct(nr, section.plugged());
            section.set_plugged(PageblockSet::NONE);
        }
        self.entry(block.first()).set_block_sections(0);
    }

    /// The table's entry of a section of a memory block.
    pub(crate) fn entry(&self, nr: SectionNr) -> &Section {
        self.sparse.section(nr).expect("the sections of a memory block are in the table")
    }

    /// Takes pages for the memmap of a memory block and maps it.
    fn add_memmaps(&self, block: MemoryBlock, on_memory: bool) -> Result<(), AddError> {
        if on_memory {
            let first = block.first();
            VmemAltmap::new(first, block.memmap_pages()).store(self.entry(first));
        }
        for (nr, done) in block.sections().zip(0..) {
            if let Err(error) = self.add_memmap(block, nr) {
                // Nobody has seen those before it, but a CPU may have looked there by speculation.
                self.platform.synchronize();
                self.remove_memmaps(block, done);
                return Err(error);
            }
        }
        Ok(())
    }

    fn add_memmap(&self, block: MemoryBlock, nr: SectionNr) -> Result<(), AddError> {
        if self.platform.fault(FaultStep::AllocMemmap) {
            return Err(AddError::NoMemory);
        }
        let Some(memmap) = self.alloc_memmap(block) else {
            return self.add_memmap_base(nr);
        };
        self.entry(nr).set_memmap(Some(memmap));
        if self.platform.fault(FaultStep::MapMemmap) || self.platform.map_memmap(nr, memmap).is_err() {
            self.free_memmap(block, memmap);
            return Err(AddError::NoPageTable);
        }
        Ok(())
    }

    /// Takes single pages for the memmap of section `nr` and maps it by them: memory is too fragmented for
    /// anything better (Linux `vmemmap_populate_basepages`).
    fn add_memmap_base(&self, nr: SectionNr) -> Result<(), AddError> {
        let mut frames: MemmapFrames = [Pfn::new(0); _];
        let free = |frames: &[Pfn]| frames.iter().for_each(|&pfn| self.free_pages(pfn, Order::PAGE));
        for index in 0..frames.len() {
            match self.alloc_pages_node(self.entry(nr).node(), Order::PAGE, Gfp::Memmap) {
                Ok(pfn) => frames[index] = pfn,
                Err(_) => {
                    free(&frames[..index]);
                    return Err(AddError::NoMemory);
                }
            }
        }
        self.entry(nr).set_memmap(None);
        if self.platform.fault(FaultStep::MapMemmap) || self.platform.map_memmap_base(nr, &frames).is_err() {
            free(&frames);
            return Err(AddError::NoPageTable);
        }
        self.counters.memmap_boot_pages.fetch_add(MEMMAP_PAGES.into(), Relaxed);
        self.counters.memmaps_by_base_pages.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Unmaps the memmaps of the first `count` sections of a memory block, and ends its reserve.
    fn remove_memmaps(&self, block: MemoryBlock, count: u32) {
        for nr in block.sections().take(count as usize) {
            match self.entry(nr).memmap() {
                Some(memmap) => {
                    self.platform.unmap_memmap(nr);
                    self.free_memmap(block, memmap);
                }
                None => {
                    let frames = self.platform.unmap_memmap_base(nr);
                    frames.into_iter().for_each(|pfn| self.free_pages(pfn, Order::PAGE));
                    self.counters.memmap_boot_pages.fetch_sub(MEMMAP_PAGES.into(), Relaxed);
                    self.counters.memmaps_by_base_pages.fetch_sub(1, Relaxed);
                }
            }
        }
        let first = self.entry(block.first());
        if let Some(altmap) = VmemAltmap::of(block.first(), first) {
            altmap.clear(first);
        }
    }

    /// A large page for the memmap of the next section of a memory block.
    fn alloc_memmap(&self, block: MemoryBlock) -> Option<Pfn> {
        let first = self.entry(block.first());
        let (pfn, counter) = match VmemAltmap::of(block.first(), first) {
            Some(mut altmap) => {
                let pfn = altmap.alloc(Order::PAGEBLOCK).expect("a pageblock for each section");
                altmap.store(first);
                (pfn, &self.counters.memmap_altmap_pages)
            }
            None => {
                let pfn = self.alloc_pages_node(first.node(), Order::PAGEBLOCK, Gfp::Memmap).ok()?;
                (pfn, &self.counters.memmap_boot_pages)
            }
        };
        counter.fetch_add(MEMMAP_PAGES.into(), Relaxed);
        Some(pfn)
    }

    /// Gives the large page of a section's memmap, which is not mapped, back to where it came from.
    fn free_memmap(&self, block: MemoryBlock, memmap: Pfn) {
        let first = self.entry(block.first());
        let counter = match VmemAltmap::of(block.first(), first) {
            Some(mut altmap) => {
                altmap.free(Order::PAGEBLOCK);
                altmap.store(first);
                &self.counters.memmap_altmap_pages
            }
            None => {
                self.free_pages(memmap, Order::PAGEBLOCK);
                &self.counters.memmap_boot_pages
            }
        };
        counter.fetch_sub(MEMMAP_PAGES.into(), Relaxed);
    }

    /// Maps what is `plugged` of each section, all of it or nothing.
    pub(crate) fn map_sections(
        &self,
        sections: impl Iterator<Item = SectionNr> + Clone,
        plugged: &[PageblockSet],
    ) -> Result<(), NoPageTable> {
        for (done, (nr, &here)) in sections.clone().zip(plugged).enumerate() {
            if let Err(error) = self.map_direct(nr, here) {
                let before = sections.zip(&plugged[..done]);
                before.for_each(|(nr, &plugged)| self.unmap_direct(nr, plugged));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Maps `blocks` of section `nr`, all of them or none.
    pub(crate) fn map_direct(&self, nr: SectionNr, blocks: PageblockSet) -> Result<(), NoPageTable> {
        let mut mapped = PageblockSet::NONE;
        for run in blocks.runs() {
            let range = nr.pageblocks(&run);
            if self.platform.fault(FaultStep::MapDirect) || self.platform.map_direct(range).is_err() {
                self.unmap_direct(nr, mapped);
                return Err(NoPageTable);
            }
            mapped = mapped.union(PageblockSet::range(run));
        }
        Ok(())
    }

    pub(crate) fn unmap_direct(&self, nr: SectionNr, blocks: PageblockSet) {
        for run in blocks.runs() {
            self.platform.unmap_direct(nr.pageblocks(&run));
        }
    }
}
