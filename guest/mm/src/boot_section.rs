//! A section of boot memory, from its mapping to its free pages.
//!
//! Mirrors Linux `init_memory_mapping`, `memblock_free_pages` and `init_unavailable_range` for one section. Differs from
//! Linux on purpose: the section is the unit. `boot` calls this for the sections that it initialises itself, and
//! `deferred` for the sections that are left for later.
//!
//! Invariant: the allocator gets the RAM of the section that is not reserved, and no other page of it. Holes
//! and reserved RAM are marked before the section is Online.

use crate::Mm;
use crate::addr::{Pfn, PfnRange, SectionNr};
use crate::memblock::Memblock;
use crate::memmap_init::set_heads;
use crate::node::ZoneId;
use crate::options::MemoryContent;
use crate::page::Kind;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::{SectionOwner, SectionPages, SectionState};

impl<P: Platform> Mm<P> {
    /// Maps the pageblocks with RAM of section `nr`, which is prepared, and its `memmap`. Holes are not mapped: a device
    /// may be there.
    pub(crate) fn map_boot_section(&self, memblock: &Memblock, nr: SectionNr, memmap: Pfn) {
        let ram = memblock.ram_in(nr.frames()).map(PageblockSet::covering);
        for run in ram.fold(PageblockSet::NONE, PageblockSet::union).runs() {
            self.platform.map_prepared_direct(nr.pageblocks(&run));
        }
        self.platform.map_prepared_memmap(nr, memmap);
    }

    /// Makes a section of boot memory Present. It and its `memmap` are mapped already.
    pub(crate) fn make_present(&self, nr: SectionNr, zone: ZoneId, memmap: Pfn, owner: &impl SectionOwner) {
        let section = self.sparse.entry(nr);
        section.set_memmap(Some(memmap));
        section.set_zone(zone);
        section.set_boot();
        section.set_zeroed(self.options.get().content == MemoryContent::Zero);
        self.sparse.set_state(nr, SectionState::Present, owner);
    }

    /// Initialises a section that is Present, puts it online and frees the parts of it that are not in use.
    /// Returns the number of pages freed.
    pub(crate) fn free_boot_section(
        &self,
        memblock: &Memblock,
        nr: SectionNr,
        owner: &impl SectionOwner,
    ) -> u64 {
        let pages = self.sparse.pages_to_initialise(nr, owner);
        self.init_section(pages, pages.section().zone());
        self.sparse.set_state(nr, SectionState::Initialised, owner);
        mark_taken(memblock, pages);
        self.sparse.set_state(nr, SectionState::Online, owner);
        let mut freed = 0;
        for free in memblock.free_in(nr.frames()) {
            self.lock_zone(pages.section().zone(), &self.irq_off()).free_range(pages, free);
            freed += u64::from(free.pages());
        }
        freed
    }
}

/// Marks the parts of a section that are not free: holes and reserved RAM. No walk looks at the section yet.
fn mark_taken(memblock: &Memblock, pages: SectionPages<'_>) {
    assert_eq!(pages.section().state(), SectionState::Initialised, "holes of {:?} are marked", pages.nr());
    let frames = pages.nr().frames();
    for hole in gaps(frames, memblock.ram_in(frames)) {
        set_heads(pages, hole, Kind::Hole);
    }
    for ram in memblock.ram_in(frames) {
        for reserved in gaps(ram, memblock.free_in(ram)) {
            set_heads(pages, reserved, Kind::Reserved);
        }
    }
}

/// The parts of `range` that are in no range of `covered`, which are ascending and disjoint.
fn gaps(range: PfnRange, covered: impl Iterator<Item = PfnRange>) -> impl Iterator<Item = PfnRange> {
    let mut rest = range;
    let last = range.from(range.end());
    covered
        .map(move |covered| covered.intersect(range))
        .filter(|covered| !covered.is_empty())
        .chain([last])
        .map(move |covered| core::mem::replace(&mut rest, range.from(covered.end())).before(covered.start()))
        .filter(|gap| !gap.is_empty())
}
