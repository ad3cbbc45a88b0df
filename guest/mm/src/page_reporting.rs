//! Free-page reporting: large free buddy blocks are lent to the host, which takes their memory back.
//!
//! Mirrors Linux `mm/page_reporting.c`. A report takes buddy blocks of a pageblock and above off the free lists, in
//! batches under the zone lock, and puts them back when the host has answered. A block that comes back is marked, so
//! that it is not reported again before it was used. Marked blocks go to the end of their lists, where allocations come
//! last.
//!
//! Differs from Linux on purpose:
//!
//! - The mark is a bit of the state of the free head. Every change of the state forgets it, so that allocating and
//!   merging have no code for it. Taking a marked block off its list is the cold path of a check that is there anyway.
//!   Isolation forgets the mark too, so a block that was isolated for nothing is reported once more.
//! - Freeing tells nobody. The caller looks when it is awake in any case.
//! - A request that finds no memory fails at once, as there is no reclaim. So at most a quarter of what a zone has above
//!   its low watermark is lent at a time, where Linux wants room for a whole batch.
//!
//! Memory that is not initialised yet was never touched. It is on no list, and is not reported.
//!
//! Invariants: a page that is lent is `Allocated` by [`Holder::Lent`]. So it is neither allocated nor taken offline before it
//! is back. A pageblock does not change its type meanwhile, because none of its pages is free.

use arrayvec::ArrayVec;

use crate::Mm;
use crate::addr::{Order, Pfn, PfnRange};
use crate::free_block::FreeBlock;
use crate::free_lists::Place;
use crate::page::{Holder, Kind, PageState};
use crate::pageblock::MigrateType;
use crate::platform::Platform;
use crate::zone::{Watermark, ZoneGuard};

/// Most buddy blocks of one report (Linux `PAGE_REPORTING_CAPACITY`).
pub const CAPACITY: usize = 32;

/// Most buddy blocks that are looked at under one hold of the zone lock.
const LOOKS: u32 = 256;

/// The part of a zone's free memory above its low watermark that is lent at a time is one over this.
const SHARE: u64 = 4;

/// The orders that are reported, the largest first.
const ORDERS: [Order; 2] = [Order::MAX, Order::PAGEBLOCK];

const TYPES: [MigrateType; 2] = [MigrateType::Unmovable, MigrateType::Movable];

/// Buddy blocks that are lent to the host. Nothing but the host accesses them.
///
/// ```
/// use tidevm_mm::Lent;
/// use tidevm_mm_sim::SimMachine;
///
/// let mm = SimMachine::default().boot();
/// let (mut lent, free) = (Lent::default(), mm.available_pages());
/// mm.lend_unreported(&mut lent);
/// let pages: u32 = lent.ranges().map(|range| range.pages()).sum();
/// assert_eq!(mm.available_pages() + u64::from(pages), free);
/// // The host takes the memory behind `lent.ranges()`, and answers.
/// mm.put_back(&mut lent, true);
/// assert_eq!(mm.available_pages(), free);
/// ```
#[derive(Debug, Default)]
#[must_use = "these pages are lost until they are put back"]
pub struct Lent(ArrayVec<(Pfn, Order), CAPACITY>);

impl Lent {
    /// Whether nothing is lent.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The frames that are lent.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = PfnRange> {
        self.0.iter().map(|&(pfn, order)| PfnRange::new(pfn, order.pages()))
    }
}

impl ZoneGuard<'_> {
    /// Lends buddy blocks of `order` and type `mt` that are not reported, at most `room` pages. Returns how many pages it
    /// lent, and whether there are more, which a further call finds.
    fn lend(&mut self, order: Order, mt: MigrateType, room: u64, lent: &mut Lent) -> (u64, bool) {
        let mut left = self.unreported(order, mt);
        let (mut pages, mut looks) = (0, 0);
        let mut at = self.first(order, mt);
        while let Some(pfn) = at.filter(|_| left > 0) {
            let block = self.section_pages(pfn);
            let head = block.page(pfn);
            if looks == LOOKS {
                // The next call goes on here.
                self.rotate_to(order, mt, pfn);
                return (pages, true);
            }
            at = head.words().after().pageblock();
            looks += 1;
            if head.state().is_reported() {
                continue;
            }
            if lent.0.is_full() || pages + u64::from(order.pages()) > room {
                return (pages, lent.0.is_full());
            }
            let block = self.remove(FreeBlock::new(block, pfn, order, mt));
            self.allocate(block, Holder::Lent);
            lent.0.push((pfn, order));
            pages += u64::from(order.pages());
            left -= 1;
        }
        (pages, false)
    }
}

impl<P: Platform> Mm<P> {
    /// Lends free buddy blocks that are not reported, as many as fit into `lent`. Returns whether there may be more.
    /// The caller passes them to the host, and calls [`Mm::put_back`] when nobody accesses them any more.
    pub fn lend_unreported(&self, lent: &mut Lent) -> bool {
        let mut more = false;
        for zone in self.zones() {
            let low = zone.watermark(Watermark::Low);
            let off = self.irq_off();
            let mut guard = self.lock_zone(zone.id(), &off);
            let mut room = guard.free().saturating_sub(low) / SHARE;
            for (order, mt) in ORDERS.into_iter().flat_map(|order| TYPES.map(|mt| (order, mt))) {
                let (pages, unfinished) = guard.lend(order, mt, room, lent);
                room -= pages;
                more |= unfinished;
            }
        }
        more
    }

    /// Puts buddy blocks back that were lent. They are marked if the host has `taken` their memory, and were not merged.
    ///
    /// # Panics
    /// When one of them is not lent.
    pub fn put_back(&self, lent: &mut Lent, taken: bool) {
        for (pfn, order) in lent.0.drain(..) {
            let pages = self.sparse.pages(pfn.section()).expect("a page that is lent has a section");
            let (page, zone) = (pages.page(pfn), pages.section().zone());
            let state = page.state();
            let is_lent = state.is(Kind::Allocated, order) && page.holder(state) == Holder::Lent;
            assert!(is_lent, "{pfn:?} of {order:?} is not lent: {state:?}");
            let off = self.irq_off();
            let mut guard = self.lock_zone(zone, &off);
            guard.free_and_merge(pages, pfn, order, Place::Tail);
            let mt = pages.section().pageblocks.migrate_type(pfn.pageblock());
            if taken && mt != MigrateType::Isolate && page.state() == PageState::new(Kind::Free, order) {
                guard.set_reported(pfn, order, mt);
            }
        }
    }
}
