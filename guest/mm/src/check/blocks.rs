//! Memory blocks: their sections, and where their memmaps lie.
//!
//! Mirrors nothing of Linux, which does not check memory blocks as a whole.
//!
//! Invariants checked: each section that was added is in one memory block and has its state; a memmap lies in
//! the reserve at the start of its memory block, or in allocated older memory whose holder is a memmap; the
//! counters of memmap pages and of online sections are the sums over all memory blocks.

use crate::Mm;
use crate::added_block::MemoryBlock;
use crate::addr::{MEMMAP_PAGES, Order, SectionNr};
use crate::altmap::VmemAltmap;
use crate::deferred::Claims;
use crate::page::{Holder, Kind};
use crate::platform::Platform;
use crate::sparse::SectionState;
use crate::sync::Ordering::Relaxed;

/// Sums over the memmaps of memory blocks and of device memory.
#[derive(Default)]
pub(super) struct Memmaps {
    /// Pages in older memory.
    pub(super) boot: u64,
    /// Pages on the memory itself.
    pub(super) altmap: u64,
    /// Sections whose memmap is mapped by base pages.
    pub(super) by_base_pages: u64,
}

impl<P: Platform> Mm<P> {
    /// Checks that the sections make up memory blocks, and compares the counters with the memmap pages of
    /// these and those of device memory, which are in `memmaps` already.
    pub(super) fn check_sections(&self, deferred: &Claims, mut memmaps: Memmaps) {
        let (mut added, mut in_blocks, mut online) = (0, 0, 0);
        let plugged = deferred.ranges().iter().filter(|range| !range.is_boot());
        memmaps.altmap += plugged.map(|range| u64::from(range.sections.len() * MEMMAP_PAGES)).sum::<u64>();
        for nr in self.sparse.numbers() {
            let section = self.sparse.entry(nr);
            let block = MemoryBlock::at(&self.sparse, nr);
            match block {
                Some(block) => {
                    in_blocks += block.len();
                    self.check_block(block, &mut memmaps);
                }
                None => assert_eq!(VmemAltmap::of(nr, section), None, "{nr:?} begins no memory block"),
            }
            if section.is_device() {
                continue;
            }
            match section.state() {
                SectionState::Absent => {
                    assert!(section.plugged().is_empty(), "absent {nr:?} has {:?}", section.plugged());
                    continue;
                }
                SectionState::Initialised => panic!("{nr:?} stopped on its way to be online"),
                SectionState::Present => {}
                SectionState::Online => online += u32::from(section.is_boot() || block.is_some()),
            }
            added += u32::from(!section.is_boot());
        }
        assert_eq!(in_blocks, added, "sections of memory blocks, sections that were added");
        assert_eq!(online, self.sparse.blocks_online(), "memory blocks online");
        let Memmaps { boot, altmap, by_base_pages } = memmaps;
        let counters = &self.counters;
        assert_eq!(altmap, counters.memmap_altmap_pages.load(Relaxed), "memmap pages on memory");
        assert_eq!(boot, counters.memmap_boot_pages.load(Relaxed), "memmap pages in older memory");
        assert_eq!(by_base_pages, counters.memmaps_by_base_pages.load(Relaxed), "memmaps in single pages");
    }

    fn check_block(&self, block: MemoryBlock, memmaps: &mut Memmaps) {
        let first = self.sparse.entry(block.first());
        for nr in block.sections() {
            let section = self.sparse.entry(nr);
            let states = (section.state(), first.state());
            assert_eq!(states.0, states.1, "state of {nr:?}, of its memory block {:?}", block.first());
            let alone = nr == block.first() || section.block_sections() == 0;
            assert!(
                alone && !section.is_boot() && !section.is_device(),
                "{nr:?} is not {:?}'s",
                block.first()
            );
        }
        match VmemAltmap::of(block.first(), first) {
            Some(altmap) => {
                self.check_altmap(block, altmap);
                memmaps.altmap += u64::from(block.memmap_pages());
            }
            None => {
                memmaps.by_base_pages += self.check_older_memmaps(block.sections());
                memmaps.boot += u64::from(block.memmap_pages());
            }
        }
    }

    /// Checks a memory block that holds its memmap: all of it is in the reserve at the start, in order.
    fn check_altmap(&self, block: MemoryBlock, altmap: VmemAltmap) {
        let (found, needed) = ([altmap.allocated(), altmap.offset()], block.memmap_pages());
        assert_eq!(found, [needed; 2], "{:?}: memmap pages in use, set aside", block.first());
        let mut memmap = block.first().start();
        for nr in block.sections() {
            assert_eq!(
                self.sparse.entry(nr).memmap(),
                Some(memmap),
                "memmap of {nr:?} on {:?}",
                block.first()
            );
            memmap = memmap.add(MEMMAP_PAGES);
        }
    }

    /// Checks `sections` whose memmap lies in older memory: each memmap is an allocated buddy block that says
    /// so, or base pages. Returns the number of the latter.
    pub(super) fn check_older_memmaps(&self, sections: impl Iterator<Item = SectionNr>) -> u64 {
        let mut by_base_pages = 0;
        for nr in sections {
            let Some(memmap) = self.sparse.entry(nr).memmap() else {
                by_base_pages += 1;
                continue;
            };
            let head = self.sparse.online_page(memmap).expect("older memory that is in use is online");
            let state = head.state();
            let found = (state.is(Kind::Allocated, Order::PAGEBLOCK), head.holder(state));
            assert_eq!(found, (true, Holder::Memmap), "{memmap:?} with the memmap of {nr:?}");
        }
        by_base_pages
    }
}
