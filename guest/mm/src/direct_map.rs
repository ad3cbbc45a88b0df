//! Plugged pageblocks in the direct map: mapped all or not at all.
//!
//! Mirrors Linux `arch_add_memory` and `arch_remove_memory` as far as they map memory. Differs from Linux
//! on purpose: the unit is the pageblock, because a memory block may be plugged in part.
//!
//! Invariant: the pageblocks of a section that are mapped are the ones in
//! [`Section::plugged`](crate::sparse::Section::plugged), whenever the memory hotplug lock is free.

use crate::addr::SectionNr;
use crate::hotplug::Hotplug;
use crate::pageblock_set::PageblockSet;
use crate::platform::{FaultStep, NoPageTable, Platform};

impl<P: Platform> Hotplug<'_, P> {
    /// Maps the pageblocks `plugged` of `sections`, one set per section: all of them or none.
    pub(crate) fn map_sections(
        &self,
        sections: impl Iterator<Item = SectionNr> + Clone,
        plugged: &[PageblockSet],
    ) -> Result<(), NoPageTable> {
        for (done, (nr, &here)) in sections.clone().zip(plugged).enumerate() {
            if let Err(error) = self.map_direct(nr, here) {
                self.unmap_sections(sections, &plugged[..done]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Unmaps the pageblocks `plugged` of `sections`, one set per section.
    pub(crate) fn unmap_sections(&self, sections: impl Iterator<Item = SectionNr>, plugged: &[PageblockSet]) {
        sections.zip(plugged).for_each(|(nr, &plugged)| self.unmap_direct(nr, plugged));
    }

    /// Maps `pageblocks` of section `nr`, all of them or none.
    pub(crate) fn map_direct(&self, nr: SectionNr, pageblocks: PageblockSet) -> Result<(), NoPageTable> {
        let platform = &self.mm.platform;
        let mut mapped = PageblockSet::NONE;
        for run in pageblocks.runs() {
            let range = nr.pageblocks(&run);
            if platform.fault(FaultStep::MapDirect) || platform.map_direct(range).is_err() {
                self.unmap_direct(nr, mapped);
                return Err(NoPageTable);
            }
            mapped = mapped.union(PageblockSet::range(run));
        }
        Ok(())
    }

    /// Unmaps `pageblocks` of section `nr`.
    pub(crate) fn unmap_direct(&self, nr: SectionNr, pageblocks: PageblockSet) {
        for run in pageblocks.runs() {
            self.mm.platform.unmap_direct(nr.pageblocks(&run));
        }
    }
}
