//! Takes the pages for the memmap of new memory and maps them there; unmaps them and gives them back.
//!
//! Mirrors Linux `mm/sparse-vmemmap.c` (`vmemmap_populate_hugepages`, `vmemmap_populate_basepages`,
//! `vmemmap_free`). Memory blocks and device memory use the same source:
//!
//! | source | large page | when there is none |
//! |---|---|---|
//! | altmap (see `altmap`) | the next pageblock set aside in the memory itself | cannot happen: the altmap was checked to be large enough |
//! | older memory | allocated with [`Gfp::Memmap`] on the node of the new memory, or near it | 512 single pages ("base pages") |
//!
//! Invariants: [`Section::memmap`](crate::sparse::Section::memmap) of a section whose memmap is mapped is
//! the large page behind it, or none when it is mapped by base pages. The counters `memmap_altmap_pages`,
//! `memmap_boot_pages` and `memmaps_by_base_pages` count exactly the memmaps that are mapped.

use crate::addr::{MEMMAP_PAGES, Order, Pfn, SectionNr};
use crate::altmap::VmemAltmap;
use crate::hotplug::Hotplug;
use crate::node::NodeId;
use crate::page_alloc::Gfp;
use crate::platform::{FaultStep, MemmapFrames, Platform};
use crate::sync::Ordering::Relaxed;

/// Why a section got no memmap. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemmapError {
    /// No memory for it.
    NoMemory,
    /// No page for a page table.
    NoPageTable,
}

/// Where the memmaps of the sections of one memory block, or of one range of device memory, come from.
pub(crate) struct MemmapSource {
    node: NodeId,
    altmap: Option<VmemAltmap>,
}

impl MemmapSource {
    /// From `altmap`, which has room for all sections, or else from older memory near `node`.
    pub(crate) fn new(node: NodeId, altmap: Option<VmemAltmap>) -> Self {
        Self { node, altmap }
    }

    /// The altmap as it is now.
    pub(crate) fn altmap(&self) -> Option<VmemAltmap> {
        self.altmap
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// Makes and maps the memmap of each of `sections`: all of them or none.
    pub(crate) fn map_memmaps(
        &self,
        sections: impl Iterator<Item = SectionNr> + Clone,
        source: &mut MemmapSource,
    ) -> Result<(), MemmapError> {
        for (done, nr) in sections.clone().enumerate() {
            if let Err(error) = self.map_memmap(nr, source) {
                self.unmap_memmaps(sections.take(done), source);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Unmaps the memmaps of `sections`, which are absent, and gives their pages back to `source`.
    pub(crate) fn unmap_memmaps(&self, sections: impl Iterator<Item = SectionNr>, source: &mut MemmapSource) {
        // Another CPU may still hold a reference to a page, or may have read there by speculation.
        self.mm.platform.synchronize();
        for nr in sections {
            match self.mm.sparse.entry(nr).memmap() {
                Some(memmap) => {
                    self.mm.platform.unmap_memmap(nr);
                    self.free_memmap(memmap, source);
                }
                None => {
                    let frames = self.mm.platform.unmap_memmap_base(nr);
                    self.free_base_pages(&frames);
                    self.mm.counters.memmap_boot_pages.fetch_sub(MEMMAP_PAGES.into(), Relaxed);
                    self.mm.counters.memmaps_by_base_pages.fetch_sub(1, Relaxed);
                }
            }
        }
    }

    fn map_memmap(&self, nr: SectionNr, source: &mut MemmapSource) -> Result<(), MemmapError> {
        let platform = &self.mm.platform;
        if platform.fault(FaultStep::AllocMemmap) {
            return Err(MemmapError::NoMemory);
        }
        let Some(memmap) = self.alloc_memmap(source) else {
            return self.map_memmap_base(nr, source.node);
        };
        if platform.fault(FaultStep::MapMemmap) || platform.map_memmap(nr, memmap).is_err() {
            self.free_memmap(memmap, source);
            return Err(MemmapError::NoPageTable);
        }
        self.mm.sparse.entry(nr).set_memmap(Some(memmap));
        Ok(())
    }

    /// Makes the memmap of section `nr` of single pages, because memory is too fragmented for a large one
    /// (Linux `vmemmap_populate_basepages`).
    fn map_memmap_base(&self, nr: SectionNr, node: NodeId) -> Result<(), MemmapError> {
        let platform = &self.mm.platform;
        let mut frames: MemmapFrames = [Pfn::new(0); MEMMAP_PAGES as usize];
        for index in 0..frames.len() {
            match self.mm.alloc_pages_node(node, Order::PAGE, Gfp::Memmap) {
                Ok(pfn) => frames[index] = pfn,
                Err(_) => {
                    self.free_base_pages(&frames[..index]);
                    return Err(MemmapError::NoMemory);
                }
            }
        }
        if platform.fault(FaultStep::MapMemmap) || platform.map_memmap_base(nr, &frames).is_err() {
            self.free_base_pages(&frames);
            return Err(MemmapError::NoPageTable);
        }
        self.mm.sparse.entry(nr).set_memmap(None);
        self.mm.counters.memmap_boot_pages.fetch_add(MEMMAP_PAGES.into(), Relaxed);
        self.mm.counters.memmaps_by_base_pages.fetch_add(1, Relaxed);
        Ok(())
    }

    fn free_base_pages(&self, frames: &[Pfn]) {
        frames.iter().for_each(|&pfn| self.mm.free_pages(pfn, Order::PAGE));
    }

    /// Takes a large page for the memmap of one section; none when older memory has none.
    fn alloc_memmap(&self, source: &mut MemmapSource) -> Option<Pfn> {
        let counters = &self.mm.counters;
        let (pfn, counter) = match &mut source.altmap {
            Some(altmap) => {
                let pfn = altmap.alloc(Order::PAGEBLOCK).expect("the altmap has a pageblock per section");
                (pfn, &counters.memmap_altmap_pages)
            }
            None => {
                let pfn = self.mm.alloc_pages_node(source.node, Order::PAGEBLOCK, Gfp::Memmap).ok()?;
                (pfn, &counters.memmap_boot_pages)
            }
        };
        counter.fetch_add(MEMMAP_PAGES.into(), Relaxed);
        Some(pfn)
    }

    /// Gives the large page `memmap`, which is not mapped as a memmap, back to where it came from.
    fn free_memmap(&self, memmap: Pfn, source: &mut MemmapSource) {
        let counter = match &mut source.altmap {
            Some(altmap) => {
                altmap.free(Order::PAGEBLOCK);
                &self.mm.counters.memmap_altmap_pages
            }
            None => {
                self.mm.free_pages(memmap, Order::PAGEBLOCK);
                &self.mm.counters.memmap_boot_pages
            }
        };
        let before = counter.fetch_sub(MEMMAP_PAGES.into(), Relaxed);
        assert!(before >= MEMMAP_PAGES.into(), "gives back {MEMMAP_PAGES} of {before} memmap pages");
    }
}
