//! Migration: pages move, their owners stay.
//!
//! Takes the place of Linux `mm/migrate.c` with an interface of four calls to the owner of a page
//! (Linux `struct movable_operations` has three of them). A page's holder word names the owner
//! and what the owner knows the page by; it is read without a lock and may be stale, so
//! [`MovableOwner::isolate`] checks it under the owner's own lock. From then on the owner keeps
//! the page as it is until one of the other two calls.
//!
//! Pages move in batches (as in Linux `migrate_pages_batch`): all of a batch are isolated, then
//! given targets, then copied, then handed over. So the machine can copy on several CPUs at once,
//! and pages that moved are freed in runs, as large as they lie side by side. Where they move to
//! is `target`'s choice.

use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use crate::Mm;
use crate::addr::{Order, Pfn, PfnRange};
use crate::page::{Holder, Kind, OwnerId};
use crate::pageblock_set::PageblockSet;
use crate::platform::{FaultStep, Platform};
use crate::sparse::SectionPages;
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

    pub(crate) fn get(&self, id: OwnerId) -> Option<&'static dyn MovableOwner> {
        self.0[usize::from(id.0) % MAX_OWNERS]
    }
}

/// Pages that move together.
const BATCH: usize = 32;

/// A page on its way, isolated.
struct Move {
    from: Pfn,
    id: OwnerId,
    index: u64,
    owner: &'static dyn MovableOwner,
}

impl Move {
    fn put_back(&self) {
        self.owner.put_back(self.from, self.index);
    }
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
        blocks: PageblockSet,
        targets: &mut Targets<'_, P>,
    ) -> bool {
        let owners = *self.owners.lock();
        let mut batch = ArrayVec::new();
        for run in blocks.runs() {
            if self.migrate_range(pages, pages.nr().pageblocks(&run), &owners, &mut batch, targets) {
                return true;
            }
        }
        self.migrate_batch(pages, &mut batch, targets)
    }

    /// The same for the pages of `range`, except that the last few may be left in `batch`. Runs
    /// without a lock: blocks may split and merge under it, so what it finds are hints.
    fn migrate_range(
        &self,
        pages: SectionPages<'_>,
        range: PfnRange,
        owners: &Owners,
        batch: &mut ArrayVec<Move, BATCH>,
        targets: &mut Targets<'_, P>,
    ) -> bool {
        let mut pfn = range.start();
        while pfn < range.end() {
            let page = pages.page(pfn);
            let state = page.state();
            if state.is(Kind::Allocated, Order::PAGE)
                && let Holder::Owned { owner: id, index } = page.holder()
            {
                match self.isolate_page(pfn, id, index, owners) {
                    Some(way) => batch.push(way),
                    None => _ = self.counters.migrate_failed.fetch_add(1, Relaxed),
                }
                if batch.is_full() && self.migrate_batch(pages, batch, targets) {
                    return true;
                }
            }
            pfn = pfn.add(state.order().pages());
        }
        false
    }

    /// Asks the owner of a page to leave it alone. `None` when it does not.
    fn isolate_page(&self, from: Pfn, id: OwnerId, index: u64, owners: &Owners) -> Option<Move> {
        let owner = owners.get(id).filter(|_| !self.platform.fault(FaultStep::Migrate))?;
        owner.isolate(from, index).then_some(Move { from, id, index, owner })
    }

    /// Moves the pages of `batch`, and empties it. Returns true when there was no room for all of
    /// them; the rest stay.
    fn migrate_batch(
        &self,
        pages: SectionPages<'_>,
        batch: &mut ArrayVec<Move, BATCH>,
        targets: &mut Targets<'_, P>,
    ) -> bool {
        let copies: ArrayVec<_, BATCH> =
            batch.iter().map_while(|way| Some((targets.next()?, way.from))).collect();
        let no_room = copies.len() < batch.len();
        batch[copies.len()..].iter().for_each(Move::put_back);
        self.platform.copy_pages(&copies);

        let mut freed = PfnRange::new(pages.nr().start(), 0);
        let mut moved = 0;
        for (way, &(to, from)) in batch.iter().zip(&copies) {
            // Before the owner sees the page, which it may free as soon as it has it.
            self.set_owner(to, way.id, way.index);
            if !way.owner.hand_over(from, to, way.index) {
                way.put_back();
                self.free_pages(to, Order::PAGE);
                continue;
            }
            moved += 1;
            if from != freed.end() {
                self.free_contig_range(freed);
                freed = PfnRange::new(from, 0);
            }
            freed = PfnRange::new(freed.start(), freed.pages() + 1);
        }
        self.free_contig_range(freed);
        self.counters.pages_migrated.fetch_add(moved, Relaxed);
        self.counters.migrate_failed.fetch_add(batch.len() as u64 - moved, Relaxed);
        batch.clear();
        no_room
    }
}
