//! Allocating memory that lies side by side, more of it than the buddy allocator keeps together.
//!
//! Mirrors Linux `alloc_contig_range` and `alloc_contig_pages` of `mm/page_alloc.c`: what is in the
//! range moves elsewhere first, as for going offline (see `contig`). Differs from Linux on purpose: the
//! unit is the pageblock, and no range reaches from one section into the next.
//!
//! Per-CPU lists are only drained for a range, not out of play (as in Linux, where the stronger guarantee is
//! for offlining; a single pageblock is taken as offlining would): who frees a page of the range meanwhile
//! may keep it on a list for a while. The allocation fails then, and can be tried again; it never takes a
//! page that somebody has.

use core::iter::once;

use crate::Mm;
use crate::addr::{Order, Pfn, PfnRange, SECTION_PAGEBLOCKS, SectionNr};
use crate::hotplug::Hotplug;
use crate::isolation::OfflineError;
use crate::memory_block::memmap_pageblocks;
use crate::options::PcpPolicy;
use crate::page::{Holder, Kind, ZoneType};
use crate::page_alloc::AllocError;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::{Section, SectionPages, SectionState};

impl<P: Platform> Hotplug<'_, P> {
    /// Allocates the pageblocks `blocks` of online section `nr`, one single page beside the other, whatever
    /// is in them now (Linux `alloc_contig_range`); [`Mm::free_contig_range`] gives them back. They are
    /// nobody's until [`Mm::set_holder`].
    ///
    /// # Errors
    /// See [`OfflineError`]; [`OfflineError::BootMemory`] does not occur.
    pub fn alloc_contig_range(&self, nr: SectionNr, blocks: PageblockSet) -> Result<(), OfflineError> {
        let pages = self.contig_target(nr, blocks)?;
        let (zone, parts) = (pages.section().zone(), once((pages, blocks)));
        self.mm.take(zone, parts, PcpPolicy::DrainAgain, Kind::Allocated, self.held())?;
        for block in blocks.iter() {
            self.mm.split_page(nr.pageblocks(&(block..block + 1)).start(), Order::PAGEBLOCK);
        }
        Ok(())
    }

    /// The pages of section `nr`, if all of `blocks` are ones that the allocator manages.
    fn contig_target(&self, nr: SectionNr, blocks: PageblockSet) -> Result<SectionPages<'_>, OfflineError> {
        let pages = self.mm.sparse.pages(nr).filter(|pages| pages.section().state() == SectionState::Online);
        let pages = pages.ok_or(OfflineError::NotOnline)?;
        let section = pages.section();
        if memmap_pageblocks(nr, section).intersects(blocks) {
            return Err(OfflineError::HoldsMemmap);
        }
        if !section.is_boot() && !section.plugged().contains_all(blocks) {
            return Err(OfflineError::NotPlugged);
        }
        Ok(pages)
    }

    /// Takes the pageblock of `pfn` whole, whatever moves out of it, as one allocated block of
    /// [`Order::PAGEBLOCK`] that is given back by [`Mm::free_pages`]. For per-CPU lists the policy is the
    /// one chosen at boot, as for going offline.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn alloc_contig_pageblock(&self, pfn: Pfn) -> Result<(), OfflineError> {
        let (nr, block) = (pfn.section(), pfn.pageblock()..pfn.pageblock() + 1);
        let blocks = PageblockSet::range(block.clone());
        let pages = self.contig_target(nr, blocks)?;
        let (zone, parts) = (pages.section().zone(), once((pages, blocks)));
        self.mm.take(zone, parts, self.mm.options.get().pcp, Kind::Allocated, self.held())?;
        pages.page(nr.pageblocks(&block).start()).set_holder(Holder::Kernel.word());
        Ok(())
    }
}

impl<P: Platform> Mm<P> {
    /// Allocates `count` pageblocks that lie side by side, in Movable memory, aligned to their size if
    /// that is a power of two (Linux `alloc_contig_pages`). The first range is taken that can be had.
    ///
    /// # Errors
    /// [`AllocError`] when there is none: all ranges have pages that do not move, or more than there is
    /// room for elsewhere. No range reaches from one section into the next.
    pub fn alloc_contig_pages(&self, count: u32) -> Result<PfnRange, AllocError> {
        let last = SECTION_PAGEBLOCKS.checked_sub(count).filter(|_| count > 0).ok_or(AllocError)?;
        let step = if count.is_power_of_two() { count } else { 1 };
        for nr in self.sparse.numbers() {
            let movable = |section: &&Section| {
                section.state() == SectionState::Online && section.zone().zone_type() == ZoneType::Movable
            };
            if self.sparse.section(nr).filter(movable).is_none() {
                continue;
            }
            for first in (0..=last).step_by(step as usize) {
                let blocks = first..first + count;
                if self.hotplug().alloc_contig_range(nr, PageblockSet::range(blocks.clone())).is_ok() {
                    return Ok(nr.pageblocks(&blocks));
                }
            }
        }
        Err(AllocError)
    }
}
