//! Initialising struct pages: the step of a section from Present to Initialised.
//!
//! Mirrors Linux `memmap_init_range` in `mm/mm_init.c`. A page is its state word (see `page`), so
//! initialising it is one store; where something else than free memory lies, the head of the buddy block
//! says so. A memmap that is known to be zero can be left as it is: its pages are tails until a buddy block
//! begins at them. A memmap that is not zero is written once, whatever the policy: clearing it would take
//! as many stores.
//!
//! Invariant: pageblocks of a section that joins a zone are movable, except for the ones with memmap.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::addr::{Order, PfnRange};
use crate::node::ZoneId;
use crate::options::InitPolicy;
use crate::page::{Kind, PageState};
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::SectionPages;

/// Makes buddy blocks of `kind` of `range`, which is in the section.
pub(crate) fn set_heads(pages: SectionPages<'_>, range: PfnRange, kind: Kind) {
    let zone = pages.section().zone();
    for (pfn, order) in range.chunks() {
        pages.page(pfn).set_state(PageState::new(kind, order, zone));
    }
}

/// Marks the pageblocks of a hot-added section that are not for the allocator: `memmap`, which holds the
/// memory block's own memmap, and the ones that are not plugged.
pub(crate) fn init_hot_added(pages: SectionPages<'_>, memmap: PageblockSet) {
    let zone = pages.section().zone();
    let mark = |blocks: PageblockSet, kind| {
        for block in blocks.iter() {
            let first = pages.nr().pageblocks(&(block..block + 1)).start();
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
    /// Initialises the pages of a section that joins `zone`: no page belongs to a buddy block yet, all
    /// pageblocks are movable. The caller sets the heads.
    pub(crate) fn init_section(&self, pages: SectionPages<'_>, zone: ZoneId) {
        pages.section().set_zone(zone);
        pages.section().pageblocks.reset();
        let lazy = self.options.get().init == InitPolicy::Lazy;
        if pages.section().start_memmap(lazy) {
            return;
        }
        self.counters.memmaps_written.fetch_add(1, Relaxed);
        let tail = PageState::new(Kind::Tail, Order::PAGE, zone);
        // One store per page and little else: this loop is most of the cost of onlining a memory block.
        let (chunks, rest) = pages.all().as_chunks::<16>();
        debug_assert!(rest.is_empty(), "a section is a multiple of 16 pages");
        for chunk in chunks {
            for page in chunk {
                page.set_state(tail);
            }
        }
    }
}
