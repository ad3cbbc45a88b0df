//! Initialising struct pages: the step of a section from Present to Initialised.
//!
//! Mirrors Linux `memmap_init_range` in `mm/mm_init.c`. The state of a page is one word (see `page`), so
//! initialising a page is one store. Where memory is not free, the head of its buddy block says why. A memmap
//! that is known to be zero can be left as it is: an all-zero page is a tail until a buddy block begins at it.
//! Any other memmap is written once, under every policy: clearing it instead would take as many stores.
//!
//! Differs from Linux on purpose: a memmap that is known to be zero is not written.
//!
//! Invariant: pageblocks of a section that joins a zone are movable, except those that hold memmap.

use crate::Mm;
use crate::addr::{Order, PfnRange, SECTION_PAGEBLOCKS};
use crate::node::ZoneId;
use crate::options::InitPolicy;
use crate::page::{Kind, Page, PageState};
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::SectionPages;
use crate::sync::Ordering::Relaxed;

/// Cuts `range`, which is in the section, into buddy blocks of `kind`.
pub(crate) fn set_heads(pages: SectionPages<'_>, range: PfnRange, kind: Kind) {
    for (pfn, order) in range.chunks() {
        pages.page(pfn).set_state(PageState::new(kind, order));
    }
}

/// Marks the pageblocks of a hot-added section that the allocator does not get: `memmap`, which holds the
/// memory block's own memmap, and the pageblocks that are not plugged.
pub(crate) fn init_hot_added(pages: SectionPages<'_>, memmap: PageblockSet) {
    let mark = |blocks: PageblockSet, kind| {
        for block in blocks.iter() {
            let first = pages.nr().pageblocks(&(block..block + 1)).start();
            pages.page(first).set_state(PageState::new(kind, Order::PAGEBLOCK));
        }
    };
    mark(memmap, Kind::Memmap);
    mark(PageblockSet::ALL.without(pages.section().plugged()), Kind::Offline);
    for block in memmap.iter() {
        pages.section().pageblocks.set_type(block, MigrateType::Unmovable);
    }
}

impl<P: Platform> Mm<P> {
    /// Initialises the pages of a section that joins `zone`. Afterwards no page belongs to a buddy block, and
    /// all pageblocks are movable. The caller sets the heads.
    pub(crate) fn init_section(&self, pages: SectionPages<'_>, zone: ZoneId) {
        pages.section().set_zone(zone);
        pages.section().pageblocks.reset();
        let lazy = self.options.get().init == InitPolicy::Lazy;
        if pages.section().start_memmap(lazy) {
            return;
        }
        self.counters.memmaps_written.fetch_add(1, Relaxed);
        let tail = PageState::new(Kind::Tail, Order::PAGE);
        (0..SECTION_PAGEBLOCKS).for_each(|pageblock| Page::init_pageblock(pages.parts(pageblock), tail));
    }
}
