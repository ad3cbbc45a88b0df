//! Pageblocks of a memory block that is online, plugged and unplugged one by one.
//!
//! Mirrors the sub-block mode of Linux `drivers/virtio/virtio_mem.c` (`fake_online`, `fake_offline`). Differs
//! from Linux on purpose: an unplugged pageblock is not in the direct map.
//!
//! Invariant: of a memory block that is online, exactly the plugged pageblocks without the memmap are
//! managed; each unplugged one is a buddy block in state `Offline`.

use crate::added_block::memmap_pageblocks;
use crate::addr::{SectionNr, SectionRange};
use crate::hotplug::Hotplug;
use crate::isolation::OfflineError;
use crate::memory_block::OnlineError;
use crate::pageblock_set::PageblockSet;
use crate::platform::{FaultStep, NoPageTable, Platform};
use crate::sparse::{SectionPages, SectionState};

impl<P: Platform> Hotplug<'_, P> {
    /// Puts freshly plugged pageblocks of an online memory block into its zone, all of them or none.
    /// `pageblocks` has one set per section, from section `nr` on.
    ///
    /// # Errors
    /// See [`OnlineError`].
    pub fn online_pageblocks(
        &self,
        nr: SectionNr,
        pageblocks: impl AsRef<[PageblockSet]>,
    ) -> Result<(), OnlineError> {
        let blocks = pageblocks.as_ref();
        let sections = self.sections_of_one_block(nr, blocks.len()).ok_or(OnlineError::NotOnline)?;
        for (nr, &blocks) in sections.clone().zip(blocks) {
            let section = self.mm.sparse.entry(nr);
            if section.state() != SectionState::Online {
                return Err(OnlineError::NotOnline);
            }
            if section.is_boot() || section.plugged().intersects(blocks) {
                return Err(OnlineError::Plugged);
            }
        }
        self.map_sections(sections.clone(), blocks).map_err(|NoPageTable| OnlineError::NoPageTable)?;
        if self.mm.platform.fault(FaultStep::Online) {
            self.unmap_sections(sections, blocks);
            return Err(OnlineError::Vetoed);
        }
        for (nr, &blocks) in sections.zip(blocks) {
            self.free_pageblocks(self.online_pages(nr), blocks);
        }
        self.update_limits();
        Ok(())
    }

    /// Gives pageblocks that were not plugged so far to the allocator.
    fn free_pageblocks(&self, pages: SectionPages<'_>, blocks: PageblockSet) {
        let section = pages.section();
        section.set_plugged(section.plugged().union(blocks), self.held());
        let zone = self.mm.zone(section.zone());
        zone.add_managed(blocks.pages().into(), self.held());
        for block in blocks.iter() {
            // One by one, because each is a buddy block of its own in state `Offline` so far.
            self.mm.lock_zone(section.zone(), &self.mm.irq_off()).free_offline_pageblock(pages, block);
        }
    }

    /// Takes pageblocks of an online memory block out of its zone and unmaps them, all of them or none. Their
    /// pages move elsewhere first. `pageblocks` has one set per section, from section `nr` on.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn offline_pageblocks(
        &self,
        nr: SectionNr,
        pageblocks: impl AsRef<[PageblockSet]>,
    ) -> Result<(), OfflineError> {
        let blocks = pageblocks.as_ref();
        let sections = self.sections_of_one_block(nr, blocks.len()).ok_or(OfflineError::NotOnline)?;
        for (nr, &blocks) in sections.clone().zip(blocks) {
            let section = self.section_to_offline(nr)?;
            if !section.plugged().contains_all(blocks) {
                return Err(OfflineError::NotPlugged);
            }
            if memmap_pageblocks(nr, section).intersects(blocks) {
                return Err(OfflineError::HoldsMemmap);
            }
        }
        let zone = self.mm.sparse.entry(nr).zone();
        let parts = sections.zip(blocks).map(|(nr, &blocks)| (self.online_pages(nr), blocks));
        self.mm.take_pageblocks(zone, parts.clone(), self.held())?;
        for (pages, blocks) in parts {
            let section = pages.section();
            self.mm.zone(zone).sub_managed(blocks.pages().into(), self.held());
            section.set_plugged(section.plugged().without(blocks), self.held());
            self.unmap_direct(pages.nr(), blocks);
        }
        self.update_limits();
        Ok(())
    }

    /// The `count` sections from `nr` on, none of them deferred, if they are in the table and no second memory block
    /// begins among them.
    fn sections_of_one_block(
        &self,
        nr: SectionNr,
        count: usize,
    ) -> Option<impl Iterator<Item = SectionNr> + Clone + use<P>> {
        let range = SectionRange::new(nr, u32::try_from(count).ok()?)?;
        self.settle(range);
        let sections = range.sections();
        let mut entries = sections.clone().map(|nr| self.mm.sparse.section(nr));
        entries.next()??;
        entries
            .all(|section| section.is_some_and(|section| section.block_sections() == 0))
            .then_some(sections)
    }
}
