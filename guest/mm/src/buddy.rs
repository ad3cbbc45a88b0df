//! The buddy allocator: free lists by order and migrate type, splitting and merging.
//!
//! Mirrors the core of Linux `mm/page_alloc.c` (`__free_one_page`, `expand`, `page_del_and_expand`).
//! Links are frame numbers in the pages themselves. Every step touches heads only: merging or
//! splitting a block of any size is one store a level.
//!
//! Invariants (all under the zone's lock): a page is `Free` exactly when it is on one list of
//! its order; that list is of its pageblock's type; two free buddies never exist side by side,
//! unless one of them is an isolated pageblock; `nonempty` says which lists have a page.

use core::ops::Range;

use crate::addr::{Order, Pfn, PfnRange};
use crate::node::ZoneId;
use crate::page::{Kind, Link, PageState};
use crate::pageblock::MigrateType;
use crate::sparse::{SectionPages, Sparse};

/// At which end of its list a freed block goes: the head is allocated from first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Head,
    /// For memory that just came: what is in use already should be used up first.
    Tail,
}

#[derive(Clone, Copy)]
struct FreeList {
    first: Link,
    last: Link,
    len: u32,
}

/// The free blocks of one zone.
pub(crate) struct Buddy {
    lists: [[FreeList; Order::COUNT]; MigrateType::COUNT],
    /// Bit `order` of a type's word: that list is not empty.
    nonempty: [u32; MigrateType::COUNT],
    /// Pages on the lists of each type.
    pages: [u64; MigrateType::COUNT],
    zone: ZoneId,
}

impl Buddy {
    pub(crate) const fn new(zone: ZoneId) -> Self {
        let empty = FreeList { first: Link::NONE, last: Link::NONE, len: 0 };
        Self {
            lists: [[empty; Order::COUNT]; MigrateType::COUNT],
            nonempty: [0; MigrateType::COUNT],
            pages: [0; MigrateType::COUNT],
            zone,
        }
    }

    /// Pages that can be allocated.
    pub(crate) fn free(&self) -> u64 {
        self.pages[MigrateType::Unmovable.index()] + self.pages[MigrateType::Movable.index()]
    }

    /// Pages on isolated lists.
    pub(crate) fn isolated(&self) -> u64 {
        self.pages[MigrateType::Isolate.index()]
    }

    /// Pages on the lists of type `mt`.
    pub(crate) fn pages(&self, mt: MigrateType) -> u64 {
        self.pages[mt.index()]
    }

    pub(crate) fn free_blocks(&self) -> [[u32; MigrateType::COUNT]; Order::COUNT] {
        core::array::from_fn(|order| core::array::from_fn(|mt| self.lists[mt][order].len))
    }

    /// Smallest order of at least `order` that has a block of type `mt`.
    #[inline]
    pub(crate) fn smallest(&self, order: Order, mt: MigrateType) -> Option<Order> {
        let candidates = self.nonempty[mt.index()] >> order.get();
        (candidates != 0).then(|| Order::new(order.get() + candidates.trailing_zeros() as u8))
    }

    /// Largest order of at least `order` that has a block of type `mt`.
    pub(crate) fn largest(&self, order: Order, mt: MigrateType) -> Option<Order> {
        let candidates = self.nonempty[mt.index()] >> order.get();
        (candidates != 0).then(|| Order::new(order.get() + candidates.ilog2() as u8))
    }

    /// First block on a list.
    #[inline]
    pub(crate) fn first(&self, order: Order, mt: MigrateType) -> Option<Pfn> {
        self.lists[mt.index()][order.index()].first.pfn()
    }

    /// Last block on a list.
    pub(crate) fn last(&self, order: Order, mt: MigrateType) -> Option<Pfn> {
        self.lists[mt.index()][order.index()].last.pfn()
    }

    /// Puts the block of `order` at `pfn`, which is on no list, on the list of type `mt`.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        sparse: &Sparse,
        pages: SectionPages<'_>,
        pfn: Pfn,
        order: Order,
        mt: MigrateType,
        place: Place,
    ) {
        let page = pages.page(pfn);
        let list = &mut self.lists[mt.index()][order.index()];
        match place {
            Place::Head => {
                page.set_prev(Link::NONE);
                page.set_next(list.first);
                match list.first.pfn() {
                    Some(first) => sparse.page(first).set_prev(Link::to(pfn)),
                    None => list.last = Link::to(pfn),
                }
                list.first = Link::to(pfn);
            }
            Place::Tail => {
                page.set_next(Link::NONE);
                page.set_prev(list.last);
                match list.last.pfn() {
                    Some(last) => sparse.page(last).set_next(Link::to(pfn)),
                    None => list.first = Link::to(pfn),
                }
                list.last = Link::to(pfn);
            }
        }
        list.len += 1;
        self.nonempty[mt.index()] |= 1 << order.get();
        self.pages[mt.index()] += u64::from(order.pages());
        pages.section().add_free(order.pages().into());
        page.set_state(PageState::new(Kind::Free, order, self.zone));
    }

    /// Puts `range`, in the section, at the end of a list as blocks of the largest order. Its pages are in no
    /// block yet and its pageblocks are of type `mt`. Such blocks have nothing to merge with, so a pass
    /// over their heads is all: a fifth of freeing them one by one.
    pub(crate) fn append_largest(
        &mut self,
        sparse: &Sparse,
        pages: SectionPages<'_>,
        range: PfnRange,
        mt: MigrateType,
    ) {
        let state = PageState::new(Kind::Free, Order::MAX, self.zone);
        let list = &mut self.lists[mt.index()][Order::MAX.index()];
        match list.last.pfn() {
            Some(last) => sparse.page(last).set_next(Link::to(range.start())),
            None => list.first = Link::to(range.start()),
        }
        let (mut prev, mut pfn) = (list.last, range.start());
        let first = range.start().in_section();
        let heads = &pages.all()[first..first + range.pages() as usize];
        for page in heads.iter().step_by(Order::MAX.pages() as usize) {
            page.set_prev(prev);
            page.set_state(state);
            prev = Link::to(pfn);
            pfn = pfn.add(Order::MAX.pages());
            page.set_next(Link::to(pfn));
        }
        list.last = prev;
        if let Some(last) = prev.pfn() {
            pages.page(last).set_next(Link::NONE);
        }
        list.len += range.pages() >> Order::MAX.get();
        self.nonempty[mt.index()] |= 1 << Order::MAX.get();
        self.pages[mt.index()] += u64::from(range.pages());
        pages.section().add_free(range.pages().into());
    }

    /// Takes the free block of `order` at `pfn` off the list of type `mt`. Its state is the
    /// caller's to set. Whatever takes pages out of the buddy comes by here, so this is where a block
    /// is looked at that was overwritten while it was free (Linux `check_new_page`, and the checks of
    /// `list_del`; there the page is left out and the next one taken).
    #[inline]
    pub(crate) fn remove(
        &mut self,
        sparse: &Sparse,
        pages: SectionPages<'_>,
        pfn: Pfn,
        order: Order,
        mt: MigrateType,
    ) {
        let page = pages.page(pfn);
        let list = &mut self.lists[mt.index()][order.index()];
        let (prev, next) = (page.prev(), page.next());
        // What the neighbours say, on the way to saying something else there.
        let (from_prev, from_next);
        match prev.pfn().map(|prev| sparse.page(prev)) {
            Some(before) => {
                from_prev = before.next();
                before.set_next(next);
            }
            None => from_prev = core::mem::replace(&mut list.first, next),
        }
        match next.pfn().map(|next| sparse.page(next)) {
            Some(after) => {
                from_next = after.prev();
                after.set_prev(prev);
            }
            None => from_next = core::mem::replace(&mut list.last, prev),
        }
        let (state, link) = (page.state(), Link::to(pfn));
        if state != PageState::new(Kind::Free, order, self.zone) || from_prev != link || from_next != link {
            let expected = PageState::new(Kind::Free, order, self.zone);
            bad_block(pfn, (state, from_prev, from_next), (expected, link, link));
        }
        list.len -= 1;
        if list.first == Link::NONE {
            self.nonempty[mt.index()] &= !(1 << order.get());
        }
        self.pages[mt.index()] -= u64::from(order.pages());
        pages.section().add_free(u64::from(order.pages()).wrapping_neg());
    }

    /// Frees the block of `order` at `pfn`, merging it with its buddies as far as they are free
    /// (Linux `__free_one_page`). The page's state is anything but `Free`.
    pub(crate) fn free_block(
        &mut self,
        sparse: &Sparse,
        pages: SectionPages<'_>,
        pfn: Pfn,
        order: Order,
        place: Place,
    ) {
        let flags = &pages.section().pageblocks;
        let mt = flags.migrate_type(pfn.pageblock());
        let (mut pfn, mut order) = (pfn, order);
        while order < Order::MAX {
            let buddy = pfn.buddy(order);
            if !pages.page(buddy).state().is(Kind::Free, order) {
                break;
            }
            let mut buddy_mt = mt;
            if order >= Order::PAGEBLOCK {
                buddy_mt = flags.migrate_type(buddy.pageblock());
                if (mt == MigrateType::Isolate) != (buddy_mt == MigrateType::Isolate) {
                    break;
                }
            }
            self.remove(sparse, pages, buddy, order, buddy_mt);
            if buddy_mt != mt {
                flags.set_type(buddy.pageblock(), mt);
            }
            // The upper half's head becomes a tail of the merged block.
            let upper = pfn.max(buddy);
            pages.page(upper).set_state(PageState::new(Kind::Tail, Order::PAGE, self.zone));
            pfn = pfn.min(buddy);
            order = order.up();
        }
        self.insert(sparse, pages, pfn, order, mt, place);
    }

    /// Takes the free block of order `from` at `pfn` off the list of type `mt`, keeps its first
    /// `to` and frees the rest with type `mt` (Linux `page_del_and_expand`). The state of the
    /// part kept is the caller's to set.
    #[inline]
    pub(crate) fn take(
        &mut self,
        sparse: &Sparse,
        pages: SectionPages<'_>,
        pfn: Pfn,
        from: Order,
        to: Order,
        mt: MigrateType,
    ) {
        self.remove(sparse, pages, pfn, from, mt);
        let mut order = from;
        while order > to {
            order = order.down();
            let half = pfn.add(order.pages());
            self.insert(sparse, pages, half, order, mt, Place::Head);
        }
    }

    /// Splits the free block of the largest order that covers pageblock `block`, if there is one,
    /// so that no free block reaches beyond the pageblock.
    pub(crate) fn split_to_pageblocks(&mut self, sparse: &Sparse, pages: SectionPages<'_>, block: u32) {
        let (head, state) = pages.covering(block);
        if state.is(Kind::Free, Order::MAX) {
            let mt = pages.section().pageblocks.migrate_type(head.pageblock());
            self.take(sparse, pages, head, Order::MAX, Order::PAGEBLOCK, mt);
            self.insert(sparse, pages, head, Order::PAGEBLOCK, mt, Place::Head);
        }
    }

    /// Moves the free blocks of the pageblocks `range`, none of which reaches beyond them, to the
    /// lists of type `to` (Linux `__move_freepages_block`). The pageblocks' types are the caller's
    /// to set.
    pub(crate) fn move_free(
        &mut self,
        sparse: &Sparse,
        pages: SectionPages<'_>,
        range: &Range<u32>,
        to: MigrateType,
    ) {
        for (pfn, state) in pages.blocks(range) {
            if state.kind() == Kind::Free {
                let from = pages.section().pageblocks.migrate_type(pfn.pageblock());
                self.remove(sparse, pages, pfn, state.order(), from);
                self.insert(sparse, pages, pfn, state.order(), to, Place::Tail);
            }
        }
    }
}

/// What is known of a free block: its state, and how its neighbours on the list link to it.
type Known = (PageState, Link, Link);

#[cold]
#[inline(never)]
fn bad_block(pfn: Pfn, found: Known, expected: Known) -> ! {
    panic!("{pfn:?} on a free list: state and links to it are {found:?}, and should be {expected:?}")
}

#[cfg(test)]
mod tests;
