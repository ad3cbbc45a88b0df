//! Migration: pages move, their owners stay.
//!
//! Takes the place of Linux `mm/migrate.c` with an interface of four calls to the owner of a page
//! (Linux `struct movable_operations` has three of them). A page's holder word names the owner
//! and what the owner knows the page by; it is read without a lock and may be stale, so
//! [`MovableOwner::isolate`] checks it under the owner's own lock. From then on the owner keeps
//! the page as it is until one of the other two calls.
//!
//! Pages that moved are freed in runs, as large as they lie side by side. Where they move to is
//! `target`'s choice.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::addr::{Order, Pfn, PfnRange};
use crate::buddy::Place;
use crate::page::{Holder, Kind, OwnerId, PageState};
use crate::platform::{FaultStep, Platform};
use crate::sparse::SectionPages;
use crate::subsection::SubSections;
use crate::target::Targets;

/// Number of owners that can be registered.
pub const MAX_OWNERS: usize = 8;

/// Somebody who holds pages and can do with others instead.
///
/// Called without allocator locks, from the CPU that takes memory away, while other CPUs go on.
/// An implementation must not wait for memory hotplug.
pub trait MovableOwner: Sync {
    /// Asks for the page `pfn`, known by `index`, to be left alone: neither written, nor freed,
    /// nor moved, until [`hand_over`](Self::hand_over) succeeds or [`put_back`](Self::put_back)
    /// is called. False when the owner does not hold `pfn` under `index` (any more), or cannot
    /// spare it now.
    fn isolate(&self, pfn: Pfn, index: u64) -> bool;

    /// The content of `from`, isolated before, is in `to` now. True when the owner uses `to` from
    /// now on, not isolated; `from` is no longer its own then. False when it keeps `from`,
    /// isolated as before.
    fn hand_over(&self, from: Pfn, to: Pfn, index: u64) -> bool;

    /// Ends the isolation of `pfn`; it was not moved.
    fn put_back(&self, pfn: Pfn, index: u64);
}

/// The registered owners, by [`OwnerId`].
#[derive(Clone, Copy)]
pub(crate) struct Owners([Option<&'static dyn MovableOwner>; MAX_OWNERS]);

impl Owners {
    pub(crate) const fn new() -> Self {
        Self([None; MAX_OWNERS])
    }
}

/// What one attempt to migrate a page came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Moved,
    /// The owner did not let go of it.
    Kept,
    /// There is no page to move it to.
    NoRoom,
}

impl<P: Platform> Mm<P> {
    /// Makes `owner` known under `id`, for good.
    ///
    /// # Panics
    /// When `id` is not below [`MAX_OWNERS`], or taken.
    pub fn register_owner(&self, id: OwnerId, owner: &'static dyn MovableOwner) {
        let slot = &mut self.owners.lock().0[usize::from(id.0)];
        assert!(slot.is_none(), "two owners with {id:?}");
        *slot = Some(owner);
    }

    /// Tries once to migrate every owned page of the isolated `blocks` to one of `targets`. Stops
    /// early, and returns true, when there are no more.
    pub(crate) fn migrate_pageblocks(
        &self,
        pages: SectionPages<'_>,
        blocks: SubSections,
        targets: &mut Targets<'_, P>,
    ) -> bool {
        let owners = *self.owners.lock();
        blocks
            .windows()
            .any(|window| self.migrate_range(pages, pages.nr().pageblocks(&window), &owners, targets))
    }

    /// The same for the pages of `range`. Runs without a lock: blocks may split and merge under
    /// it, so what it finds are hints.
    fn migrate_range(
        &self,
        pages: SectionPages<'_>,
        range: PfnRange,
        owners: &Owners,
        targets: &mut Targets<'_, P>,
    ) -> bool {
        let mut moved = PfnRange::new(range.start, 0);
        let mut pfn = range.start;
        let mut outcome = Outcome::Moved;
        while pfn < range.end && outcome != Outcome::NoRoom {
            let page = pages.page(pfn);
            let state = page.state();
            let after = pfn.add(state.order().pages());
            if state.is(Kind::Allocated, Order::PAGE)
                && let Holder::Owned { owner, index } = page.holder()
            {
                outcome = self.migrate_page(pfn, owner, index, owners, targets);
                if outcome == Outcome::Moved {
                    if moved.end != pfn {
                        self.free_moved(pages, moved);
                        moved.start = pfn;
                    }
                    moved.end = after;
                }
            }
            pfn = after;
        }
        self.free_moved(pages, moved);
        outcome == Outcome::NoRoom
    }

    fn migrate_page(
        &self,
        from: Pfn,
        owner: OwnerId,
        index: u64,
        owners: &Owners,
        targets: &mut Targets<'_, P>,
    ) -> Outcome {
        let outcome = match owners.0[usize::from(owner.0) % MAX_OWNERS] {
            Some(of) if !self.platform.fault(FaultStep::Migrate) && of.isolate(from, index) => {
                let outcome = self.migrate_isolated(from, owner, index, of, targets);
                if outcome != Outcome::Moved {
                    of.put_back(from, index);
                }
                outcome
            }
            _ => Outcome::Kept,
        };
        let counter = match outcome {
            Outcome::Moved => &self.counters.pages_migrated,
            Outcome::Kept | Outcome::NoRoom => &self.counters.migrate_failed,
        };
        counter.fetch_add(1, Relaxed);
        outcome
    }

    fn migrate_isolated(
        &self,
        from: Pfn,
        owner: OwnerId,
        index: u64,
        of: &dyn MovableOwner,
        targets: &mut Targets<'_, P>,
    ) -> Outcome {
        let Some(to) = targets.next() else { return Outcome::NoRoom };
        self.platform.copy_page(to, from);
        // Before the owner sees the page, which it may free as soon as it has it.
        self.set_owner(to, owner, index);
        if of.hand_over(from, to, index) {
            Outcome::Moved
        } else {
            self.free_pages(to, Order::PAGE);
            Outcome::Kept
        }
    }

    /// Frees the single pages of `run`, which are next to each other, in as large blocks as they
    /// make.
    fn free_moved(&self, pages: SectionPages<'_>, run: PfnRange) {
        if run.is_empty() {
            return;
        }
        let zone = pages.section().zone();
        let tail = PageState::new(Kind::Tail, Order::PAGE, zone);
        let mut buddy = self.zones[zone.index()].lock();
        for (pfn, order) in run.chunks() {
            for offset in 1..order.pages() {
                pages.page(pfn.add(offset)).set_state(tail);
            }
            buddy.free_block(&self.sparse, pages, pfn, order, Place::Head);
        }
    }
}
