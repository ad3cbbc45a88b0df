//! Putting memory blocks into a zone.
//!
//! Mirrors Linux `memory_block_online` with `online_pages` and `mhp_init_memmap_on_memory`, in the same
//! order. The way back is in `offline`:
//!
//! | step of online | undone by |
//! |---|---|
//! | pages of the memmap on memory are initialised and join the zone's span | they leave it (last) |
//! | the rest is initialised; here [`FaultStep::Online`] may stop it | |
//! | the rest counts as `present`, its plugged part as `managed`, and can be allocated | migrated, isolated, taken (second) |
//! | the memmap counts as `present` | it does not (first; again if the rest stays) |
//!
//! Invariants, in pages of the memory block's zone: `present` counts the whole memory block while it is
//! online; `managed` counts the pages that the allocator manages: plugged pageblocks without the memmap.
//!
//! Differs from Linux on purpose: memory that comes online is not isolated first, because it becomes visible
//! to the allocator after everything that can fail.

use core::fmt;

use crate::added_block::MemoryBlock;
use crate::addr::{PfnRange, SECTION_PAGES, SectionNr};
use crate::altmap::VmemAltmap;
use crate::hotplug::Hotplug;

use crate::node::{ZoneId, ZoneType};
use crate::platform::{FaultStep, Platform};
use crate::sparse::SectionState;

/// Why memory was not put into a zone. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnlineError {
    /// No memory block that was added begins there.
    NotPresent,
    /// The memory block is online already.
    Online,
    /// The memory block is not online, so its pageblocks cannot be.
    NotOnline,
    /// The zone cannot hold memory at this address.
    WrongZone,
    /// Some of the pageblocks are plugged already, or belong to boot memory.
    Plugged,
    /// No page for a page table.
    NoPageTable,
    /// [`Platform::fault`] stopped it.
    Vetoed,
    /// It is device memory, which is never in a zone of the allocator.
    Device,
}

impl fmt::Display for OnlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPresent => "no memory block that was added begins there",
            Self::Online => "the memory block is online already",
            Self::NotOnline => "the memory block is not online",
            Self::WrongZone => "the zone cannot hold memory at this address",
            Self::Plugged => "some of the pageblocks are plugged already or belong to boot memory",
            Self::NoPageTable => "no page for a page table",
            Self::Vetoed => "the platform stopped it",
            Self::Device => "it is device memory",
        })
    }
}

impl core::error::Error for OnlineError {}

impl<P: Platform> Hotplug<'_, P> {
    /// Puts the memory block that begins with section `nr` into `zone` of its node: its plugged pageblocks
    /// can be allocated afterwards.
    ///
    /// # Errors
    /// See [`OnlineError`].
    pub fn online(&self, nr: SectionNr, zone: ZoneType) -> Result<(), OnlineError> {
        let block = self.block_to_online(nr, zone)?;
        let zone = self.mm.sparse.entry(nr).node().zone(zone);
        self.online_block(block, zone, || self.mm.platform.fault(FaultStep::Online))
    }

    fn block_to_online(&self, nr: SectionNr, zone: ZoneType) -> Result<MemoryBlock, OnlineError> {
        let section = self.mm.sparse.section(nr).ok_or(OnlineError::NotPresent)?;
        self.settle(nr.into());
        // Boot memory comes online by itself.
        if self.mm.is_boot_memory(nr) {
            return Err(OnlineError::Online);
        }
        if section.is_device() {
            return Err(OnlineError::Device);
        }
        let block = MemoryBlock::at(&self.mm.sparse, nr).ok_or(OnlineError::NotPresent)?;
        if section.state() != SectionState::Present {
            return Err(OnlineError::Online);
        }
        if zone.may_have(nr) { Ok(block) } else { Err(OnlineError::WrongZone) }
    }

    /// Puts `block`, which is offline, into `zone`. Only `veto`, which is called half-way, can prevent that.
    pub(super) fn online_block(
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
        self.mm.zone(zone).add_present(memmap.pages().into(), self.held());
        Ok(())
    }

    /// Where the memmap of `block` lies on it; empty when it lies elsewhere.
    pub(super) fn memmap_on_memory(&self, block: MemoryBlock) -> PfnRange {
        let altmap = VmemAltmap::of(block.first(), self.mm.sparse.entry(block.first()));
        PfnRange::new(block.first().start(), altmap.map_or(0, VmemAltmap::offset))
    }

    /// If the memmap of `block` lies on it, initialises those pages and makes them a part of `zone` (Linux
    /// `mhp_init_memmap_on_memory`). Returns them.
    fn init_memmap_on_memory(&self, block: MemoryBlock, zone: ZoneId) -> PfnRange {
        let memmap = self.memmap_on_memory(block);
        if memmap.is_empty() {
            return memmap;
        }
        let first = block.first();
        self.mm.init_added_section(first, zone, self.held());
        self.mm.zone(zone).grow_span(memmap, self.held());
        if memmap.pages() == SECTION_PAGES {
            // Nothing else is in that section.
            self.mm.sparse.set_state(first, SectionState::Online, self.held());
        }
        memmap
    }

    /// Ends the time of `block` in `zone`: undoes [`init_memmap_on_memory`](Self::init_memmap_on_memory), and
    /// makes all its sections Present, wherever the memmap lies.
    pub(super) fn deinit_memmap_on_memory(&self, block: MemoryBlock, zone: ZoneId) {
        self.set_states(block, SectionState::Present);
        self.shrink_span(zone, block.frames());
    }

    /// Puts all but the memmap of `block` into `zone` (Linux `online_pages`). If it fails, each section is as
    /// it was, or Initialised.
    fn online_rest(
        &self,
        block: MemoryBlock,
        zone: ZoneId,
        memmap: PfnRange,
        veto: impl FnOnce() -> bool,
    ) -> Result<(), OnlineError> {
        for nr in block.sections().filter(|&nr| self.mm.sparse.entry(nr).state() == SectionState::Present) {
            self.mm.init_added_section(nr, zone, self.held());
        }
        if veto() {
            return Err(OnlineError::Vetoed);
        }
        let of = self.mm.zone(zone);
        self.mm.nodes.include(zone.node());
        of.grow_span(block.frames(), self.held());
        of.add_present(u64::from(block.frames().pages() - memmap.pages()), self.held());
        self.set_states(block, SectionState::Online);
        of.add_managed(self.mm.usable_pages(block), self.held());
        self.mm.free_block(block, zone);
        self.update_limits();
        Ok(())
    }

    fn set_states(&self, block: MemoryBlock, state: SectionState) {
        for nr in block.sections().filter(|&nr| self.mm.sparse.entry(nr).state() != state) {
            self.mm.sparse.set_state(nr, state, self.held());
        }
    }
}
