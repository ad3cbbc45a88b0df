//! Isolation: no page of these pageblocks can be allocated any more.
//!
//! Mirrors Linux `mm/page_isolation.c` (`start_isolate_page_range`, `undo_isolate_page_range`,
//! `test_pages_isolated`, `has_unmovable_pages`) for pageblocks of one section. A pageblock is isolated
//! under its zone's lock: its free pages move to the isolated lists, and pages that are freed later go
//! there too. All walks go from buddy block to buddy block, so free memory costs next to nothing. They
//! take one window at a time: two pageblocks where one buddy block can cover both, else one.
//!
//! Differs from Linux on purpose: a holder can say that it will never let go of a page
//! ([`Mm::set_holder`]). Such a page fails isolation at once in every zone, instead of after all other
//! pages were migrated for nothing. And the error counts all unmovable pages of the range.
//!
//! Invariants: an isolated pageblock's free pages are on the isolated lists, and no buddy block has
//! pages of an isolated pageblock and of one that is not, except while the zone is locked.

use core::fmt;
use core::ops::Range;

use crate::Mm;
use crate::addr::{Order, Pfn, PfnRange};
use crate::free_block::FreeBlock;
use crate::free_lists::Place;
use crate::irq::IrqOff;
use crate::node::ZoneType;
use crate::page::{Holder, Kind, PageState};
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::platform::{FaultStep, Platform};
use crate::sparse::SectionPages;
use crate::zone::ZoneGuard;

/// Why memory could not be taken out of its zone. Nothing has changed then, except that pages may
/// have moved elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OfflineError {
    /// The memory block is not online.
    NotOnline,
    /// The memory block was there at boot.
    BootMemory,
    /// Some of the pageblocks are not plugged.
    NotPlugged,
    /// The pageblock holds the memmap of its memory block, and leaves last, with the whole memory block.
    HoldsMemmap,
    /// A pageblock is isolated already. Only [`Platform::fault`] causes this: other CPUs that isolate
    /// hold the memory hotplug lock.
    Busy,
    /// These pages cannot move, or did not in all rounds.
    Unmovable(Stuck),
    /// These pages are in use, and the machine does not migrate ([`Platform::MIGRATES`]).
    InUse(Stuck),
    /// There is no memory left to migrate these pages to.
    NoRoom(Stuck),
}

impl fmt::Display for OfflineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOnline => f.write_str("the memory block is not online"),
            Self::BootMemory => f.write_str("the memory block was there at boot"),
            Self::NotPlugged => f.write_str("some of the pageblocks are not plugged"),
            Self::HoldsMemmap => f.write_str("the pageblock holds the memmap of its memory block"),
            Self::Busy => f.write_str("a pageblock is isolated already"),
            Self::Unmovable(stuck) => write!(f, "pages cannot move: {stuck}"),
            Self::InUse(stuck) => {
                write!(f, "pages are in use, and this machine does not migrate pages: {stuck}")
            }
            Self::NoRoom(stuck) => write!(f, "no memory left to migrate pages to: {stuck}"),
        }
    }
}

impl core::error::Error for OfflineError {}

/// Pages that stand in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stuck {
    /// How many.
    pub pages: u32,
    /// How many of them are on per-CPU lists.
    pub listed: u32,
    /// The first of them and their holders; of a buddy block, its first page.
    pub first: [Option<(Pfn, Holder)>; 4],
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages, {} of them on per-CPU lists", self.pages, self.listed)?;
        for (pfn, holder) in self.first.iter().flatten() {
            write!(f, ", {:#x} held by {holder:?}", pfn.get())?;
        }
        Ok(())
    }
}

impl core::error::Error for Stuck {}

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

    /// Adds the pages of the buddy block with head `pfn` that lie in `window`.
    fn add(&mut self, pages: SectionPages<'_>, window: &Range<u32>, pfn: Pfn, state: PageState) {
        let buddy_block = PfnRange::new(pfn, state.order().pages());
        let pages_here = buddy_block.intersect(pages.nr().pageblocks(window)).pages();
        self.pages += pages_here;
        self.listed += u32::from(state.kind() == Kind::Pcp) * pages_here;
        let holder = holder_of(pages, pfn, state);
        if let Some(free) = self.first.iter_mut().find(|entry| entry.is_none()) {
            *free = Some((pfn, holder));
        }
    }
}

/// The holder of the buddy block with head `pfn`, which is not free.
fn holder_of(pages: SectionPages<'_>, pfn: Pfn, state: PageState) -> Holder {
    match state.kind() {
        Kind::Allocated => pages.page(pfn).holder(state),
        Kind::Pcp => Holder::Unclaimed,
        Kind::Memmap => Holder::Memmap,
        _ => Holder::Reserved,
    }
}

/// Whether the buddy block with head `pfn` will not move, as far as can be told without trying (Linux
/// `has_unmovable_pages`). In Movable every allocated page moves or is freed sooner or later, unless its
/// holder said otherwise.
fn is_unmovable(pages: SectionPages<'_>, pfn: Pfn, state: PageState) -> bool {
    match state.kind() {
        Kind::Free | Kind::Pcp | Kind::Offline => false,
        Kind::Allocated => match pages.page(pfn).holder(state) {
            Holder::Owned { .. } => false,
            // The host returns it soon; until then nobody else may have it.
            Holder::Tagged(_) | Holder::Lent => true,
            _ => pages.section().zone().zone_type() != ZoneType::Movable,
        },
        _ => true,
    }
}

/// The steps of isolation on one window of pageblocks.
impl ZoneGuard<'_> {
    /// Isolates the pageblocks of `window`, unless `stuck` has pages or gets some here.
    fn isolate(&mut self, pages: SectionPages<'_>, window: &Range<u32>, stuck: &mut Stuck) -> bool {
        self.add_unmovable(pages, window, stuck);
        if stuck.pages > 0 {
            return false;
        }
        if window.len() == 1 {
            self.split_to_pageblocks(pages, window.start);
        }
        self.move_free(pages, window, MigrateType::Isolate);
        self.set_isolated(pages, window, true);
        true
    }

    /// Adds the pages of `window` that will not move. An allocated buddy block across the edge of the window
    /// counts as one. If it were freed now, it would be on one list with pageblocks of two types. (Linux
    /// isolates the edges of a range first, and fails for buddy blocks that straddle them.)
    fn add_unmovable(&self, pages: SectionPages<'_>, window: &Range<u32>, stuck: &mut Stuck) {
        for (pfn, state) in pages.blocks(window) {
            let reaches_beyond =
                state.kind() == Kind::Allocated && state.order() > Order::PAGEBLOCK && window.len() == 1;
            if reaches_beyond || is_unmovable(pages, pfn, state) {
                stuck.add(pages, window, pfn, state);
            }
        }
    }

    /// Adds the pages of `window` that are not free.
    fn add_not_free(&self, pages: SectionPages<'_>, window: &Range<u32>, stuck: &mut Stuck) {
        for (pfn, state) in pages.blocks(window) {
            if state.kind() != Kind::Free {
                stuck.add(pages, window, pfn, state);
            }
        }
    }

    /// Ends the isolation of `window`: its pageblocks have their former types, and its free pages can be
    /// allocated.
    fn undo_isolate(&mut self, pages: SectionPages<'_>, window: &Range<u32>) {
        self.set_isolated(pages, window, false);
        for pageblock in window.clone() {
            let first = pages.nr().pageblocks(&(pageblock..pageblock + 1)).start();
            self.retype(first, MigrateType::Isolate, pages.section().pageblocks.migrate_type(pageblock));
            if pages.page(first).state().is(Kind::Free, Order::PAGEBLOCK) {
                // Freed anew: it merges with its buddy.
                let block = self.remove(FreeBlock::of_pageblock(pages, first, Order::PAGEBLOCK));
                self.free_and_merge(pages, block.pfn(), block.order(), Place::Tail);
            }
        }
    }

    /// Takes the pages of the isolated `window`, all of them free, off the free lists and ends the
    /// isolation. Each pageblock is one buddy block of `kind` then, without a holder.
    fn take_isolated(&mut self, pages: SectionPages<'_>, window: &Range<u32>, kind: Kind) {
        let tail = PageState::new(Kind::Tail, Order::PAGE);
        let taken = PageState::new(kind, Order::PAGEBLOCK);
        for (pfn, state) in pages.blocks(window) {
            // A pageblock whose pages are all free is free as a whole.
            let is_free = state.kind() == Kind::Free && state.order() >= Order::PAGEBLOCK;
            assert!(is_free, "{pfn:?} of an isolated range is {state:?}");
            let block = self.remove(FreeBlock::new(pages, pfn, state.order(), MigrateType::Isolate));
            block.head().set_state(tail);
        }
        self.set_isolated(pages, window, false);
        for pageblock in window.clone() {
            let head = pages.page(pages.nr().pageblocks(&(pageblock..pageblock + 1)).start());
            head.set_state(taken);
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Isolates `pageblocks`, all of them or none.
    pub(crate) fn start_isolate(
        &self,
        pages: SectionPages<'_>,
        pageblocks: PageblockSet,
    ) -> Result<(), OfflineError> {
        let mut isolated = PageblockSet::NONE;
        let mut stuck = Stuck::none();
        for window in pageblocks.windows() {
            let busy = |pageblock| {
                self.platform.fault(FaultStep::Isolate) || pages.section().pageblocks.is_isolated(pageblock)
            };
            if window.clone().any(busy) {
                self.undo_isolate(pages, isolated);
                return Err(OfflineError::Busy);
            }
            // After the first unmovable page this only counts the others.
            if self.lock_zone_of(pages, &self.irq_off()).isolate(pages, &window, &mut stuck) {
                isolated = isolated.union(PageblockSet::range(window));
            }
        }
        if stuck.pages > 0 {
            self.undo_isolate(pages, isolated);
            return Err(OfflineError::Unmovable(stuck));
        }
        Ok(())
    }

    /// Adds the pages of `pageblocks` that will not move.
    pub(crate) fn count_unmovable(
        &self,
        pages: SectionPages<'_>,
        pageblocks: PageblockSet,
        stuck: &mut Stuck,
    ) {
        for window in pageblocks.windows() {
            self.lock_zone_of(pages, &self.irq_off()).add_unmovable(pages, &window, stuck);
        }
    }

    /// Ends the isolation of `pageblocks`.
    pub(crate) fn undo_isolate(&self, pages: SectionPages<'_>, pageblocks: PageblockSet) {
        for window in pageblocks.windows() {
            self.lock_zone_of(pages, &self.irq_off()).undo_isolate(pages, &window);
        }
    }

    /// The pages of the isolated `pageblocks` that are not free yet (Linux `test_pages_isolated`).
    pub(crate) fn test_pages_isolated(&self, pages: SectionPages<'_>, pageblocks: PageblockSet) -> Stuck {
        let mut stuck = Stuck::none();
        for window in pageblocks.windows() {
            self.lock_zone_of(pages, &self.irq_off()).add_not_free(pages, &window, &mut stuck);
        }
        stuck
    }

    /// Takes the pages of the isolated `pageblocks`, all of them free, off the free lists and ends the
    /// isolation (Linux `__offline_isolated_pages`). Each pageblock is one buddy block of `kind` then,
    /// without a holder.
    pub(crate) fn take_isolated(&self, pages: SectionPages<'_>, pageblocks: PageblockSet, kind: Kind) {
        for window in pageblocks.windows() {
            self.lock_zone_of(pages, &self.irq_off()).take_isolated(pages, &window, kind);
        }
    }

    fn lock_zone_of<'z>(&'z self, pages: SectionPages<'_>, off: &'z IrqOff<'_, P>) -> ZoneGuard<'z> {
        self.lock_zone(pages.section().zone(), off)
    }
}

#[cfg(test)]
mod tests;
