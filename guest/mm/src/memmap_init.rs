//! Initialising struct pages: the walk of a section from present to initialised.
//!
//! Mirrors Linux `memmap_init_range` in `mm/mm_init.c`. A section is initialised whole, and by
//! one store a page, because a page is its state word (see `page`); where something else than
//! free memory lies, the head of the block says so.

use crate::addr::{Order, PfnRange};
use crate::page::{Kind, PageState, ZoneType};
use crate::pageblock::MigrateType;
use crate::sparse::SectionPages;
use crate::subsection::SubSections;

/// When struct pages are initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitPolicy {
    /// All of a section, before any of its pages is used.
    Eager,
}

/// Initialises the pages of a section that joins `zone`: every page belongs to no block yet, all
/// pageblocks are movable. The heads are the caller's to set.
pub(crate) fn init_section(pages: SectionPages<'_>, zone: ZoneType) {
    let tail = PageState::new(Kind::Tail, Order::PAGE, zone);
    // One store a page and little else: this loop is what onlining a memory block costs.
    let (chunks, rest) = pages.all().as_chunks::<16>();
    debug_assert!(rest.is_empty(), "a section is a multiple of 16 pages");
    for chunk in chunks {
        for page in chunk {
            page.set_state(tail);
        }
    }
    pages.section().set_zone(zone);
    pages.section().pageblocks.reset();
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
pub(crate) fn init_hot_added(pages: SectionPages<'_>, memmap: SubSections) {
    let zone = pages.section().zone();
    let mark = |blocks: SubSections, kind| {
        for block in blocks.iter() {
            let first = pages.nr().pageblocks(&(block..block + 1)).start;
            pages.page(first).set_state(PageState::new(kind, Order::PAGEBLOCK, zone));
        }
    };
    mark(memmap, Kind::Memmap);
    mark(SubSections::ALL.without(pages.section().plugged()), Kind::Offline);
    for block in memmap.iter() {
        pages.section().pageblocks.set_type(block, MigrateType::Unmovable);
    }
}
