//! The door for simulated machines: what a platform for tests asks of the memory management, and a kernel never does.
//!
//! Mirrors nothing of Linux. The machine is the crate `tidevm-mm-sim`. It fills memmaps with garbage, looks at struct pages
//! of which the memory management knows nothing yet, and lets other threads run where a model checker chooses the next one.
//! The feature `hosted` opens this door. It also links `std`, and has every lock check the order of locks.
//!
//! Invariant: nothing here changes the state of the memory management.

use core::cell::Cell;
use core::ops::Range;
use std::vec::Vec;

use crate::Mm;
use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, SECTION_PAGEBLOCKS, SectionNr};
use crate::page::{Kind, PARTS, Page, PageRef, part_of};
use crate::pageblock::MigrateType;
use crate::platform::Platform;
use crate::sparse::SectionState;
use crate::sync;

pub use crate::sync::written::{Seen, made as states_written};

/// Whether this build runs below a model checker, which makes machines by the thousand.
pub const MODELLED: bool = cfg!(any(feature = "shuttle", feature = "loom"));

crate::sync::thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// Calls `body` with the number of the CPU that this thread is, 0 at first. The address of the cell tells threads apart.
/// Below a model checker a thread is one of the checker's.
pub fn with_cpu<R>(body: impl FnOnce(&Cell<usize>) -> R) -> R {
    CPU.with(body)
}

/// Lets another thread run: one turn of waiting for it.
pub fn yield_now() {
    sync::yield_now();
}

/// The state of the page with number `index`, whose memmap is `pages`: one byte, 0 when it was never written. `pages`
/// begins with the page 0 of a section.
#[must_use]
pub fn page_state(pages: &[Page], index: usize) -> u8 {
    PageRef::new(&pages[index], &pages[part_of(index)], index).state().bits()
}

/// Which struct pages of the pageblock with number `pageblock` have the states of its pages.
#[must_use]
pub fn pages_with_states(pageblock: usize) -> Range<usize> {
    let pages = PAGEBLOCK_PAGES as usize;
    let first = part_of(pageblock * pages) % pages;
    first..first + PARTS
}

/// `word`, changed so that no byte of it is the state of a page.
#[must_use]
pub const fn without_states(word: u64) -> u64 {
    // Kind 10 is none.
    word & !0x0f0f_0f0f_0f0f_0f0f | 0x0a0a_0a0a_0a0a_0a0a
}

/// Views of the pages and pageblocks, for tests.
impl<P: Platform> Mm<P> {
    /// Whether a walk over frames may look at the page of `pfn` (Linux `pfn_to_online_page`).
    pub fn is_online_page(&self, pfn: Pfn) -> bool {
        self.sparse.online_page(pfn).is_some()
    }

    /// Looks at the page of `pfn` if its section has pages for every CPU, and returns whether it is online.
    ///
    /// # Panics
    /// When the page has no valid state.
    pub fn look_at(&self, pfn: Pfn) -> bool {
        let Some(pages) = self.sparse.pages(pfn.section()) else { return false };
        // A kind that does not exist panics.
        let _ = pages.page(pfn).state().kind();
        pages.section().state() == SectionState::Online
    }

    /// The buddy blocks that a walk over `pageblocks` of the online section `nr` finds, and whether each begins with a
    /// head.
    pub fn walk(&self, nr: SectionNr, pageblocks: &Range<u32>) -> Vec<(Pfn, bool)> {
        let pages = self.sparse.online_pages(nr).expect("an online section");
        let off = self.irq_off();
        let _zone = self.lock_zone(pages.section().zone(), &off);
        pages.blocks(pageblocks).map(|(pfn, state)| (pfn, !state.is_tail())).collect()
    }

    /// Pageblocks of section `nr` by migrate type (Linux `/proc/pagetypeinfo`).
    pub fn pageblock_types(&self, nr: SectionNr) -> [u32; MigrateType::COUNT] {
        let mut count = [0; MigrateType::COUNT];
        for block in 0..SECTION_PAGEBLOCKS {
            count[self.sparse.entry(nr).pageblocks.migrate_type(block).index()] += 1;
        }
        count
    }
}

/// Questions of a machine.
impl<P: Platform> Mm<P> {
    /// Whether any memory is online, so that pages can be allocated.
    pub fn has_memory(&self) -> bool {
        self.sparse.blocks_online() > 0
    }

    /// Checks that the pageblock that begins at `first` is an unplugged one of an online memory block.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_unplugged(&self, first: Pfn) {
        let pages = self.sparse.online_pages(first.section());
        let pages = pages.expect("memory changes while its section is Absent or Online");
        let plugged = pages.section().plugged().contains(first.pageblock());
        let state = pages.page(first).state();
        let is_offline = state.is(Kind::Offline, Order::PAGEBLOCK);
        assert!(!plugged && is_offline, "{first:?} changes while it is {state:?}, plugged: {plugged}");
    }
}

/// The switches of a model below shuttle, which runs whole machines.
#[cfg(feature = "shuttle")]
pub mod model {
    use crate::{sync, variant};

    pub use crate::variant::Variant;

    /// Chooses a variant of the code for all models on this thread of the host, or the code as it is.
    pub fn choose(variant: Option<Variant>) {
        variant::choose(variant);
    }

    /// Ends a schedule that panicked, before the next machine boots: no access to memory is a scheduling point.
    pub fn reset() {
        sync::shuttle::reset();
    }

    /// Runs `body`, in which each access to memory is a scheduling point.
    pub fn scheduled<R>(body: impl FnOnce() -> R) -> R {
        sync::shuttle::scheduled(body)
    }

    /// Runs `body`, the end of a model whose other threads have ended. No access to memory is a scheduling point there,
    /// so it costs no time that another order of steps would need.
    pub fn alone<R>(body: impl FnOnce() -> R) -> R {
        sync::shuttle::alone(body)
    }
}
