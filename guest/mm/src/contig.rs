//! Contiguous allocation: pageblocks that lie side by side, more than the buddy allocator keeps together.
//!
//! Mirrors Linux `alloc_contig_range` and `alloc_contig_pages` of `mm/page_alloc.c`: pages in use in the
//! range move elsewhere first, as for going offline (see `evacuate`). Differs from Linux on purpose: the
//! unit is the pageblock, and no range reaches from one section into the next.
//!
//! Per-CPU lists are only drained for a range, not disabled (as in Linux, where the stronger guarantee is
//! for offlining; a single pageblock is taken as for offlining). So a CPU that frees a page of the range
//! meanwhile may keep it on its list for a while. Then the allocation fails, and can be tried again.
//!
//! Invariant: an allocation never takes a page that is in use.

use core::iter::once;

use crate::Mm;
use crate::added_block::memmap_pageblocks;
use crate::addr::{Order, Pfn, PfnRange, SECTION_PAGEBLOCKS, SectionNr};
use crate::hotplug::Hotplug;
use crate::isolation::OfflineError;
use crate::node::ZoneType;
use crate::options::PcpPolicy;
use crate::page::{Holder, Kind};
use crate::page_alloc::AllocError;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::{SectionPages, SectionState};

impl<P: Platform> Hotplug<'_, P> {
    /// Allocates the pageblocks `pageblocks` of online section `nr` as single pages, after the pages in use
    /// there moved elsewhere (Linux `alloc_contig_range`). [`Mm::free_contig_range`] gives them back. They
    /// have no holder until [`Mm::set_holder`].
    ///
    /// # Errors
    /// See [`OfflineError`]; [`OfflineError::BootMemory`] does not occur.
    pub fn alloc_contig_range(&self, nr: SectionNr, pageblocks: PageblockSet) -> Result<(), OfflineError> {
        let pages = self.contig_target(nr, pageblocks)?;
        let (zone, parts) = (pages.section().zone(), once((pages, pageblocks)));
        self.mm.take_pageblocks_as(zone, parts, PcpPolicy::DrainAgain, Kind::Allocated, self.held())?;
        for pageblock in pageblocks.iter() {
            self.mm.split_page(nr.pageblocks(&(pageblock..pageblock + 1)).start(), Order::PAGEBLOCK);
        }
        Ok(())
    }

    /// The pages of section `nr`, if the allocator manages all of `pageblocks`.
    fn contig_target(
        &self,
        nr: SectionNr,
        pageblocks: PageblockSet,
    ) -> Result<SectionPages<'_>, OfflineError> {
        self.settle(nr.into());
        let pages = self.mm.sparse.pages(nr).filter(|pages| pages.section().state() == SectionState::Online);
        let pages = pages.ok_or(OfflineError::NotOnline)?;
        let section = pages.section();
        if memmap_pageblocks(nr, section).intersects(pageblocks) {
            return Err(OfflineError::HoldsMemmap);
        }
        if !section.is_boot() && !section.plugged().contains_all(pageblocks) {
            return Err(OfflineError::NotPlugged);
        }
        Ok(pages)
    }

    /// Takes the whole pageblock of `pfn`, after the pages in use there moved elsewhere, as one allocated
    /// buddy block of [`Order::PAGEBLOCK`]. [`Mm::free_pages`] gives it back. Per-CPU lists are dealt with by
    /// the policy that was chosen at boot, as for going offline.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn alloc_contig_pageblock(&self, pfn: Pfn) -> Result<(), OfflineError> {
        let (nr, pageblock) = (pfn.section(), pfn.pageblock()..pfn.pageblock() + 1);
        let pageblocks = PageblockSet::range(pageblock.clone());
        let pages = self.contig_target(nr, pageblocks)?;
        let (zone, parts, policy) =
            (pages.section().zone(), once((pages, pageblocks)), self.mm.options.get().pcp);
        self.mm.take_pageblocks_as(zone, parts, policy, Kind::Allocated, self.held())?;
        pages.page(nr.pageblocks(&pageblock).start()).hold(Order::PAGEBLOCK, Holder::Kernel);
        Ok(())
    }
}

impl<P: Platform> Mm<P> {
    /// Allocates `count` pageblocks that lie side by side in Movable memory, aligned to their size if that
    /// is a power of two (Linux `alloc_contig_pages`). Takes the first range that can be evacuated.
    ///
    /// # Errors
    /// [`AllocError`] when there is none: every range has pages that do not move, or more pages in use than
    /// there is room for elsewhere.
    pub fn alloc_contig_pages(&self, count: u32) -> Result<PfnRange, AllocError> {
        if count == 0 || count > SECTION_PAGEBLOCKS {
            return Err(AllocError);
        }
        let movable = |nr: &SectionNr| {
            let section = self.sparse.entry(*nr);
            section.state() == SectionState::Online && section.zone().zone_type() == ZoneType::Movable
        };
        let mut online = self.sparse.numbers().filter(movable);
        let found = online.find_map(|nr| self.alloc_contig_in(nr, count));
        // Only then memory that nobody has wanted so far.
        found.or_else(|| self.alloc_contig_deferred(count)).ok_or(AllocError)
    }

    /// As [`alloc_contig_pages`](Self::alloc_contig_pages), in deferred memory, which it initialises.
    fn alloc_contig_deferred(&self, count: u32) -> Option<PfnRange> {
        let ranges = self.deferred.freeze(&self.irq_off()).ranges().clone();
        let mut movable = ranges.iter().filter(|range| range.zone.zone_type() == ZoneType::Movable);
        movable.find_map(|range| {
            // What holds too much of a memmap is not initialised in vain.
            let fits = |nr: &SectionNr| firsts(count).any(|first| first >= range.memmap_pageblocks(*nr));
            range.sections.sections().filter(fits).find_map(|nr| self.alloc_contig_in(nr, count))
        })
    }

    /// The first range of `count` pageblocks of section `nr` that can be evacuated.
    fn alloc_contig_in(&self, nr: SectionNr, count: u32) -> Option<PfnRange> {
        firsts(count).find_map(|first| {
            let pageblocks = first..first + count;
            let taken = self.hotplug().alloc_contig_range(nr, PageblockSet::range(pageblocks.clone()));
            taken.is_ok().then(|| nr.pageblocks(&pageblocks))
        })
    }
}

/// Where in a section `count` pageblocks can begin.
fn firsts(count: u32) -> impl Iterator<Item = u32> {
    let step = if count.is_power_of_two() { count } else { 1 };
    (0..=SECTION_PAGEBLOCKS - count).step_by(step as usize)
}
