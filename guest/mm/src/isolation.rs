//! Isolation: nothing may be allocated from these pageblocks any more.
//!
//! Mirrors Linux `mm/page_isolation.c` (`start_isolate_page_range`, `undo_isolate_page_range`,
//! `test_pages_isolated`, `has_unmovable_pages`) for pageblocks of one section. A pageblock is
//! isolated under its zone's lock: its free pages move to the isolated lists, and whatever is
//! freed later goes there too. All walks go from block to block, two pageblocks at a time where
//! one block can cover both, so free memory costs next to nothing.
//!
//! Differs from Linux on purpose: a holder can say that it will never let go of a page
//! ([`Mm::set_holder`]); such a page fails isolation at once in every zone, instead of after all
//! other pages were migrated for nothing. And the error counts all unmovable pages of the range.

use core::ops::Range;

use crate::Mm;
use crate::addr::{Order, Pfn, PfnRange};
use crate::buddy::Place;
use crate::page::{Holder, Kind, PageState, ZoneType};
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::platform::{FaultStep, Platform};
use crate::sparse::SectionPages;
use crate::zone::Zone;

/// Why memory could not be taken out of its zone. Nothing has changed then, except that pages may
/// have moved elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfflineError {
    /// The memory block is not online.
    NotOnline,
    /// The memory block was there at boot.
    BootMemory,
    /// Some of the sub-sections are not plugged.
    NotPlugged,
    /// The sub-section holds the memmap of its memory block; it leaves last, with the whole.
    HoldsMemmap,
    /// A pageblock is isolated already: [`Platform::fault`] said so. Others who isolate hold the memory
    /// hotplug lock.
    Busy,
    /// These pages cannot move, or did not in all rounds.
    Unmovable(Stuck),
    /// There is no memory left to migrate these pages to.
    NoRoom(Stuck),
}

/// Pages that stand in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// How many.
    pub pages: u32,
    /// How many of them are on per-CPU lists.
    pub listed: u32,
    /// The first of them and who holds them; of blocks of pages, the first page.
    pub first: [Option<(Pfn, Holder)>; 4],
}

impl Stuck {
    pub(crate) const fn none() -> Self {
        Self { pages: 0, listed: 0, first: [None; 4] }
    }

    /// Adds those of a later section.
    pub(crate) fn append(&mut self, later: Self) {
        self.pages += later.pages;
        self.listed += later.listed;
        let free = self.first.iter_mut().filter(|entry| entry.is_none());
        free.zip(later.first).for_each(|(entry, page)| *entry = page);
    }

    /// Adds what of the block with head `pfn` lies in `window`.
    fn add(&mut self, pages: SectionPages<'_>, window: &Range<u32>, pfn: Pfn, state: PageState) {
        let block = PfnRange::new(pfn, state.order().pages());
        self.pages += block.intersect(pages.nr().pageblocks(window)).pages();
        self.listed += u32::from(state.kind() == Kind::Pcp);
        let holder = holder_of(pages, pfn, state);
        if let Some(free) = self.first.iter_mut().find(|entry| entry.is_none()) {
            *free = Some((pfn, holder));
        }
    }
}

/// Who holds the block with head `pfn`, which is not free.
fn holder_of(pages: SectionPages<'_>, pfn: Pfn, state: PageState) -> Holder {
    match state.kind() {
        Kind::Allocated => pages.page(pfn).holder(),
        Kind::Pcp => Holder::Unclaimed,
        Kind::Memmap => Holder::Memmap,
        _ => Holder::Reserved,
    }
}

/// Whether the block with head `pfn` will not move, as far as can be told without trying (Linux
/// `has_unmovable_pages`). In Movable everything that is allocated moves or goes away sooner or
/// later, unless its holder said otherwise.
fn is_unmovable(pages: SectionPages<'_>, pfn: Pfn, state: PageState) -> bool {
    match state.kind() {
        Kind::Free | Kind::Pcp | Kind::Offline => false,
        Kind::Allocated => match pages.page(pfn).holder() {
            Holder::Owned { .. } => false,
            Holder::Tagged(_) => true,
            _ => state.zone().zone_type() != ZoneType::Movable,
        },
        _ => true,
    }
}

/// Adds what of a window will not move, under the zone lock. A block that reaches beyond the window is one
/// of them: freed meanwhile, it would lie on one list with pageblocks of two types (Linux isolates the edges
/// of a range first, and fails for what straddles them).
fn add_unmovable(pages: SectionPages<'_>, window: &Range<u32>, stuck: &mut Stuck) {
    for (pfn, state) in pages.blocks(window) {
        let reaches_beyond =
            state.kind() == Kind::Allocated && state.order() > Order::PAGEBLOCK && window.len() == 1;
        if reaches_beyond || is_unmovable(pages, pfn, state) {
            stuck.add(pages, window, pfn, state);
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Isolates `blocks`, all of them or none.
    pub(crate) fn start_isolate(
        &self,
        pages: SectionPages<'_>,
        blocks: PageblockSet,
    ) -> Result<(), OfflineError> {
        let mut isolated = PageblockSet::NONE;
        let mut stuck = Stuck::none();
        for window in blocks.windows() {
            let busy = |block| {
                self.platform.fault(FaultStep::Isolate) || pages.section().pageblocks.is_isolated(block)
            };
            if window.clone().any(busy) {
                self.undo_isolate(pages, isolated);
                return Err(OfflineError::Busy);
            }
            // After the first unmovable page this only counts the others.
            if self.isolate_window(pages, &window, &mut stuck) {
                isolated = isolated.union(PageblockSet::range(window));
            }
        }
        if stuck.pages > 0 {
            self.undo_isolate(pages, isolated);
            return Err(OfflineError::Unmovable(stuck));
        }
        Ok(())
    }

    /// Isolates the pageblocks of a window, unless `stuck` has pages or gets some here.
    fn isolate_window(&self, pages: SectionPages<'_>, window: &Range<u32>, stuck: &mut Stuck) -> bool {
        let zone = self.zone_of(pages);
        let mut buddy = zone.lock();
        add_unmovable(pages, window, stuck);
        if stuck.pages > 0 {
            return false;
        }
        if window.len() == 1 {
            buddy.split_to_pageblocks(&self.sparse, pages, window.start);
        }
        buddy.move_free(&self.sparse, pages, window, MigrateType::Isolate);
        self.set_isolated(pages, window, true);
        true
    }

    /// Adds what of `blocks` will not move.
    pub(crate) fn count_unmovable(&self, pages: SectionPages<'_>, blocks: PageblockSet, stuck: &mut Stuck) {
        for window in blocks.windows() {
            let _buddy = self.zone_of(pages).lock();
            add_unmovable(pages, &window, stuck);
        }
    }

    /// Takes isolation back: the pageblocks have their former types, and what is free in them can
    /// be allocated.
    pub(crate) fn undo_isolate(&self, pages: SectionPages<'_>, blocks: PageblockSet) {
        for window in blocks.windows() {
            let mut buddy = self.zone_of(pages).lock();
            self.set_isolated(pages, &window, false);
            for (pfn, state) in pages.blocks(&window) {
                if state.kind() == Kind::Free {
                    // Freed anew rather than moved: a whole pageblock merges with its buddy.
                    buddy.remove(&self.sparse, pages, pfn, state.order(), MigrateType::Isolate);
                    buddy.free_block(&self.sparse, pages, pfn, state.order(), Place::Tail);
                }
            }
        }
    }

    /// What of the isolated `blocks` is not free yet (Linux `test_pages_isolated`).
    pub(crate) fn test_pages_isolated(&self, pages: SectionPages<'_>, blocks: PageblockSet) -> Stuck {
        let mut stuck = Stuck::none();
        for window in blocks.windows() {
            let _buddy = self.zone_of(pages).lock();
            for (pfn, state) in pages.blocks(&window) {
                if state.kind() != Kind::Free {
                    stuck.add(pages, &window, pfn, state);
                }
            }
        }
        stuck
    }

    /// Takes the pages of the isolated `blocks`, all of them free, off the free lists and ends the
    /// isolation (Linux `__offline_isolated_pages`). Each pageblock is one block of `kind` then, that
    /// nobody has said to hold.
    pub(crate) fn take_isolated(&self, pages: SectionPages<'_>, blocks: PageblockSet, kind: Kind) {
        let zone = pages.section().zone();
        let tail = PageState::new(Kind::Tail, Order::PAGE, zone);
        let taken = PageState::new(kind, Order::PAGEBLOCK, zone);
        for window in blocks.windows() {
            let mut buddy = self.zone_of(pages).lock();
            for (pfn, state) in pages.blocks(&window) {
                assert_eq!(state.kind(), Kind::Free, "{pfn:?} of an isolated range is {state:?}");
                buddy.remove(&self.sparse, pages, pfn, state.order(), MigrateType::Isolate);
                pages.page(pfn).set_state(tail);
            }
            self.set_isolated(pages, &window, false);
            for block in window {
                let head = pages.page(pages.nr().pageblocks(&(block..block + 1)).start());
                head.set_holder(Holder::Unclaimed.word());
                head.set_state(taken);
            }
        }
    }

    /// Sets or clears the isolation of the pageblocks of a window, under the zone lock.
    fn set_isolated(&self, pages: SectionPages<'_>, window: &Range<u32>, isolated: bool) {
        for block in window.clone() {
            pages.section().pageblocks.set_isolated(block, isolated);
        }
        let count = window.len() as u64;
        match isolated {
            true => self.zone_of(pages).add_isolated_pageblocks(count),
            false => self.zone_of(pages).sub_isolated_pageblocks(count),
        }
    }

    fn zone_of(&self, pages: SectionPages<'_>) -> &Zone {
        self.zone(pages.section().zone())
    }
}
