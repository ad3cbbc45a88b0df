//! Migration: pages move, their owners stay.
//!
//! Takes the place of Linux `mm/migrate.c`. Differs from Linux on purpose: the owner of a page implements
//! three calls ([`MovableOwner`], Linux `struct movable_operations`) and the platform copies. A page's
//! holder word names the owner and the owner's own name for the page. It is read without a lock and may
//! be stale, so [`MovableOwner::isolate`] checks it under the owner's own lock. From then on the owner
//! keeps the page as it is until one of the other two calls.
//!
//! Pages move in batches (as in Linux `migrate_pages_batch`): all pages of a batch are isolated, then
//! given targets, then copied, then handed over. So the machine can copy on several CPUs at once, and
//! pages that moved are freed in runs, as large as they lie side by side. `target` chooses where they
//! move to.
//!
//! Invariant: every page that its owner isolated is handed over or put back before the batch ends.

use arrayvec::ArrayVec;

use crate::Mm;
use crate::addr::{Order, Pfn, PfnRange};
use crate::geometry::MAX_OWNERS;
use crate::page::{Holder, Kind, OwnerId};
use crate::pageblock_set::PageblockSet;
use crate::platform::{FaultStep, Platform};
use crate::sparse::SectionPages;
use crate::sync::Ordering::Relaxed;
use crate::target::Targets;

/// A holder of pages that can use other pages instead.
///
/// It is called without allocator locks, on the CPU that takes memory away, while other CPUs go on.
/// An implementation must not wait for memory hotplug.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
/// use tidevm_mm::{
///     Gfp, MemoryContent, MovableOwner, NodeId, Order, OwnerId, PageblockSet, Pfn, SectionNr, ZoneType,
/// };
/// use tidevm_mm_sim::SimMachine;
///
/// /// Holds one page.
/// struct One(AtomicU32);
/// impl MovableOwner for One {
///     fn isolate(&self, pfn: Pfn, _: u64) -> bool { self.0.load(SeqCst) == pfn.get() }
///     fn hand_over(&self, _: Pfn, to: Pfn, _: u64) -> bool {
///         self.0.store(to.get(), SeqCst);
///         true
///     }
///     fn put_back(&self, _: Pfn, _: u64) {}
/// }
///
/// let mm = SimMachine::default().boot();
/// let block = SectionNr::new(32);
/// mm.hotplug().add_memory(NodeId::FIRST, block, PageblockSet::ALL, MemoryContent::Unknown)?;
/// mm.hotplug().online(block, ZoneType::Movable)?;
/// let page = mm.alloc_pages(Order::PAGE, Gfp::Movable)?;
/// mm.platform().write(page, 42);
/// static OWNER: One = One(AtomicU32::new(0));
/// OWNER.0.store(page.get(), SeqCst);
/// mm.register_owner(OwnerId(0), &OWNER);
/// mm.set_owner(page, OwnerId(0), 0);
/// // The memory goes, and the page with its content is elsewhere.
/// mm.hotplug().offline(block)?;
/// let page = Pfn::new(OWNER.0.load(SeqCst));
/// assert!(page.section() != block && mm.platform().read(page) == 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait MovableOwner: Sync {
    /// Asks the owner to leave the page `pfn`, known by `index`, alone: not to write, free or move it until
    /// [`hand_over`](Self::hand_over) succeeds or [`put_back`](Self::put_back) is called. False when the
    /// owner does not hold `pfn` under `index` (any more), or needs it now.
    fn isolate(&self, pfn: Pfn, index: u64) -> bool;

    /// Says that the content of `from`, isolated before, is in `to` now. True when the owner uses `to`
    /// from now on, not isolated, and has given `from` up. False when it keeps `from`, isolated as
    /// before.
    fn hand_over(&self, from: Pfn, to: Pfn, index: u64) -> bool;

    /// Ends the isolation of `pfn`, which was not moved.
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

/// Most pages that move together.
const BATCH: usize = 32;

/// A page that is about to move; its owner has isolated it.
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
    /// Registers `owner` under `id`. It stays registered.
    ///
    /// # Panics
    /// When `id` is not below [`MAX_OWNERS`], or taken. On a machine that does not migrate ([`Platform::MIGRATES`]) the
    /// call is not compiled.
    pub fn register_owner(&self, id: OwnerId, owner: &'static dyn MovableOwner) {
        const {
            assert!(
                P::MIGRATES,
                "pages have owners so that they can move, and this platform does not migrate"
            )
        };
        let _off = self.irq_off();
        let slot = &mut self.owners.lock().0[usize::from(id.0)];
        assert!(slot.is_none(), "two owners with {id:?}");
        *slot = Some(owner);
    }

    /// The registered owners.
    pub(crate) fn owners(&self) -> Owners {
        let _off = self.irq_off();
        *self.owners.lock()
    }

    /// Tries once to migrate every owned page of the isolated `pageblocks` to one of `targets`. Stops
    /// early, and returns true, when `targets` has no more pages.
    pub(crate) fn migrate_pageblocks(
        &self,
        pages: SectionPages<'_>,
        pageblocks: PageblockSet,
        targets: &mut Targets<'_, P>,
    ) -> bool {
        let owners = self.owners();
        let mut batch = ArrayVec::new();
        for run in pageblocks.runs() {
            if self.migrate_range(pages, pages.nr().pageblocks(&run), &owners, &mut batch, targets) {
                return true;
            }
        }
        self.migrate_batch(pages, &mut batch, targets)
    }

    /// The same for the pages of `range`, except that the last few may be left in `batch`. Runs without a
    /// lock, so buddy blocks may split and merge meanwhile, and the states that it reads are hints.
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
                && let Holder::Owned { owner: id, index } = page.holder(state)
            {
                match self.isolate_page(pfn, id, index, owners) {
                    Some(page_move) => batch.push(page_move),
                    None => _ = self.counters.migrate_failed.fetch_add(1, Relaxed),
                }
                if batch.is_full() && self.migrate_batch(pages, batch, targets) {
                    return true;
                }
            }
            let order = pages.block(pfn).order();
            pfn = pfn.align_down(order).add(order.pages());
        }
        false
    }

    /// Asks the owner of a page to isolate it. `None` when it does not.
    fn isolate_page(&self, from: Pfn, id: OwnerId, index: u64, owners: &Owners) -> Option<Move> {
        let owner = owners.get(id).filter(|_| !self.platform.fault(FaultStep::Migrate))?;
        owner.isolate(from, index).then_some(Move { from, id, index, owner })
    }

    /// Moves the pages of `batch`, and empties it. Returns true when there was no room for all of them; the
    /// others stay where they are.
    fn migrate_batch(
        &self,
        pages: SectionPages<'_>,
        batch: &mut ArrayVec<Move, BATCH>,
        targets: &mut Targets<'_, P>,
    ) -> bool {
        let copies: ArrayVec<_, BATCH> =
            batch.iter().map_while(|page_move| Some((targets.next()?, page_move.from))).collect();
        let no_room = copies.len() < batch.len();
        batch[copies.len()..].iter().for_each(Move::put_back);
        self.platform.copy_pages(&copies);

        let mut freed = PfnRange::new(pages.nr().start(), 0);
        let mut moved = 0;
        for (page_move, &(to, from)) in batch.iter().zip(&copies) {
            // Before the owner gets the page, because it may free the page at once.
            self.set_owner(to, page_move.id, page_move.index);
            if !page_move.owner.hand_over(from, to, page_move.index) {
                page_move.put_back();
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
