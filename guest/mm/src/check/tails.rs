//! Tails of buddy blocks, which only hosted builds look at.
//!
//! Mirrors nothing of Linux. Costs time in proportion to the pages of pageblocks that were written since the last
//! check on this thread, not to all pages (see `sync::written`).
//!
//! Invariants checked: each page of a buddy block but the first one is a tail, or was never
//! written where the memmap was zero.

use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange};
use crate::page::{Kind, Page, PageState};
use crate::sparse::SectionPages;
use crate::sync::written::Seen;

/// A walk over the tails of a section.
pub(super) struct Tails<'s> {
    pages: SectionPages<'s>,
    /// The pageblock of the walk, as it was when the walk came to it.
    seen: Seen,
    /// It is as a check has found it right before. Then its first page says all: it is a head, and the same buddy
    /// blocks begin in it, or it is a tail, and none does.
    known: bool,
    /// Nothing in it will be right by itself soon.
    settled: bool,
}

impl<'s> Tails<'s> {
    pub(super) fn new(pages: SectionPages<'s>) -> Self {
        let seen = Seen::now(&*pages.page(pages.nr().start()), 0);
        Self { pages, seen, known: false, settled: true }
    }

    /// Checks the tails behind `head`. The calls are for all buddy blocks of the section, ascending.
    pub(super) fn check(&mut self, head: Pfn, order: Order) {
        let end = head.add(order.pages());
        let mut from = head;
        while from < end {
            if from.is_aligned(Order::PAGEBLOCK) {
                self.begin(from);
            }
            let next = from.align_down(Order::PAGEBLOCK).add(PAGEBLOCK_PAGES);
            let to = end.min(next);
            let looked_at = if self.known { from.add(1) } else { to };
            self.check_tails(PfnRange::new(from, looked_at.get() - from.get()), head, order);
            if to == next && self.settled {
                self.seen.note();
            }
            from = to;
        }
    }

    fn begin(&mut self, first: Pfn) {
        let meaning = u32::from(self.pages.section().is_sparse());
        self.seen = Seen::now(&*self.pages.page(first), meaning);
        self.known = self.seen.is_known();
        self.settled = true;
    }

    /// Checks the pages of `range`, which is in one pageblock.
    fn check_tails(&mut self, range: PfnRange, head: Pfn, order: Order) {
        let tails = if range.start() == head { range.from(head.add(1)) } else { range };
        if tails.is_empty() {
            return;
        }
        let first = tails.start().in_pageblock() as usize;
        let parts = self.pages.parts(tails.start().pageblock());
        let untouched = self.pages.section().is_sparse();
        // Nearly all are tails.
        if !Page::are_tails(parts, first..first + tails.pages() as usize, untouched) {
            tails.frames().for_each(|pfn| self.check_tail(pfn, head, order));
        }
    }

    fn check_tail(&mut self, pfn: Pfn, head: Pfn, order: Order) {
        let state = self.pages.page(pfn).state();
        if state == PageState::new(Kind::Tail, Order::PAGE) {
            return;
        }
        // The holder of a buddy block may be splitting it just now: new heads first, the old one last.
        let split =
            state.kind() == Kind::Allocated && self.pages.page(head).state().kind() == Kind::Allocated;
        let untouched = state.kind() == Kind::Uninit && self.pages.section().is_sparse();
        assert!(split || untouched, "{pfn:?}, behind {head:?} of {order:?}, is {state:?}");
        self.settled &= !split;
    }
}
