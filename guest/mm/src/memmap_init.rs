//! Initialising struct pages: the walk of a section from present to initialised.
//!
//! Mirrors Linux `memmap_init_range` in `mm/mm_init.c`. A page is its state word (see `page`), so
//! initialising it is one store; where something else than free memory lies, the head of the block
//! says so. A memmap that is known to be zero can be left as it is: its pages are tails until a block
//! begins at them. One that is not is written once, whatever the policy: clearing it would take as
//! many stores.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::addr::{Order, PfnRange};
use crate::node::ZoneId;
use crate::page::{Kind, PageState};
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::SectionPages;

/// When struct pages are initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitPolicy {
    /// All of a section, before any of its pages is used.
    Eager,
    /// All of a section that is there at boot, but of the highest zone only the first section before
    /// pages are allocated; see `deferred`.
    Deferred,
    /// Each page when a block begins at it, where the memmap is known to be zero; else all of a section.
    /// Of boot memory only a section a node before pages are allocated; see `deferred`.
    Lazy,
}

/// What is in memory that is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryContent {
    /// Anything.
    Unknown,
    /// Zeros: whoever provides the memory says so, and nobody has used it since.
    Zero,
}

/// Makes `range`, in the section, blocks of `kind`.
pub(crate) fn set_heads(pages: SectionPages<'_>, range: PfnRange, kind: Kind) {
    let zone = pages.section().zone();
    for (pfn, order) in range.chunks() {
        pages.page(pfn).set_state(PageState::new(kind, order, zone));
    }
}

/// Marks what of a hot-added section is not for the allocator: the sub-sections with its own
/// memmap, and those that are not plugged.
pub(crate) fn init_hot_added(pages: SectionPages<'_>, memmap: PageblockSet) {
    let zone = pages.section().zone();
    let mark = |blocks: PageblockSet, kind| {
        for block in blocks.iter() {
            let first = pages.nr().pageblocks(&(block..block + 1)).start;
            pages.page(first).set_state(PageState::new(kind, Order::PAGEBLOCK, zone));
        }
    };
    mark(memmap, Kind::Memmap);
    mark(PageblockSet::ALL.without(pages.section().plugged()), Kind::Offline);
    for block in memmap.iter() {
        pages.section().pageblocks.set_type(block, MigrateType::Unmovable);
    }
}

impl<P: Platform> Mm<P> {
    /// Initialises the pages of a section that joins `zone`: every page belongs to no block yet, all
    /// pageblocks are movable. The heads are the caller's to set.
    pub(crate) fn init_section(&self, pages: SectionPages<'_>, zone: ZoneId) {
        pages.section().set_zone(zone);
        pages.section().pageblocks.reset();
        if pages.section().start_memmap(self.init_lazily.load(Relaxed)) {
            return;
        }
        self.counters.memmaps_written.fetch_add(1, Relaxed);
        let tail = PageState::new(Kind::Tail, Order::PAGE, zone);
        // One store a page and little else: this loop is what onlining a memory block costs then.
        let (chunks, rest) = pages.all().as_chunks::<16>();
        debug_assert!(rest.is_empty(), "a section is a multiple of 16 pages");
        for chunk in chunks {
            for page in chunk {
                page.set_state(tail);
            }
        }
    }
}
