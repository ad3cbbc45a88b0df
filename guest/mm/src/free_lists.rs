//! The free lists of a zone, by order and migrate type.
//!
//! Mirrors Linux `struct free_area` and the steps on one list of `mm/page_alloc.c` (`__add_to_free_list`,
//! `__del_page_from_free_list`). Differs from Linux on purpose: links are frame numbers in the pages
//! themselves, so that they take half the room of pointers.
//!
//! Invariants, under the zone lock: a page is `Free` exactly when it is on one list of its order;
//! `nonempty` says which lists have a buddy block; a section's count of free pages counts the buddy blocks of all
//! types on these lists; `reported` counts the buddy blocks whose pages say that they are reported.

use crate::addr::{Order, Pfn, PfnRange};
use crate::free_block::FreeBlock;
use crate::node::ZoneId;
use crate::page::{Kind, Link, PageState};
use crate::pageblock::MigrateType;
use crate::sparse::{SectionPages, Sparse};

/// The orders of buddy blocks that are reported: a pageblock and above.
const REPORTED_ORDERS: usize = Order::COUNT - Order::PAGEBLOCK.index();

/// At which end of its list a freed buddy block goes: allocations take the head first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Head,
    /// For memory that was just added: older memory should be used up first.
    Tail,
}

#[derive(Clone, Copy)]
struct FreeList {
    first: Link,
    last: Link,
    len: u32,
}

/// The free blocks of one zone.
pub(crate) struct FreeLists {
    lists: [[FreeList; Order::COUNT]; MigrateType::COUNT],
    /// Bit `order` of a type's word: that list is not empty.
    nonempty: [u32; MigrateType::COUNT],
    /// Pages on the lists of each type.
    pages: [u64; MigrateType::COUNT],
    /// Reported buddy blocks on the lists of each type, from the order of a pageblock on.
    reported: [[u32; REPORTED_ORDERS]; MigrateType::COUNT],
    zone: ZoneId,
}

impl FreeLists {
    pub(crate) const fn new(zone: ZoneId) -> Self {
        let empty = FreeList { first: Link::NONE, last: Link::NONE, len: 0 };
        Self {
            lists: [[empty; Order::COUNT]; MigrateType::COUNT],
            nonempty: [0; MigrateType::COUNT],
            pages: [0; MigrateType::COUNT],
            reported: [[0; REPORTED_ORDERS]; MigrateType::COUNT],
            zone,
        }
    }

    /// The zone whose buddy blocks these are.
    #[inline]
    pub(crate) fn zone(&self) -> ZoneId {
        self.zone
    }

    /// Pages that can be allocated.
    #[inline]
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

    /// Number of buddy blocks by order and migrate type.
    pub(crate) fn free_blocks(&self) -> [[u32; MigrateType::COUNT]; Order::COUNT] {
        core::array::from_fn(|order| core::array::from_fn(|mt| self.lists[mt][order].len))
    }

    /// Smallest order of at least `order` that has a buddy block of type `mt`.
    #[inline]
    pub(crate) fn smallest(&self, order: Order, mt: MigrateType) -> Option<Order> {
        let candidates = self.nonempty[mt.index()] >> order.get();
        (candidates != 0).then(|| Order::new(order.get() + candidates.trailing_zeros() as u8))
    }

    /// Largest order of at least `order` that has a buddy block of type `mt`.
    pub(crate) fn largest(&self, order: Order, mt: MigrateType) -> Option<Order> {
        let candidates = self.nonempty[mt.index()] >> order.get();
        (candidates != 0).then(|| Order::new(order.get() + candidates.ilog2() as u8))
    }

    /// First buddy block on a list.
    #[inline]
    pub(crate) fn first(&self, order: Order, mt: MigrateType) -> Option<Pfn> {
        self.lists[mt.index()][order.index()].first.pfn()
    }

    /// Last buddy block on a list.
    pub(crate) fn last(&self, order: Order, mt: MigrateType) -> Option<Pfn> {
        self.lists[mt.index()][order.index()].last.pfn()
    }

    /// Puts `block`, which is on no list, on its list.
    #[inline]
    pub(crate) fn insert(&mut self, sparse: &Sparse, block: FreeBlock<'_>, place: Place) {
        let (page, order, mt) = (block.head(), block.order(), block.migrate_type());
        let link = Link::to(block.pfn());
        let list = &mut self.lists[mt.index()][order.index()];
        match place {
            Place::Head => {
                page.set_prev(Link::NONE);
                page.set_next(list.first);
                match list.first.pfn() {
                    Some(first) => sparse.page(first).set_prev(link),
                    None => list.last = link,
                }
                list.first = link;
            }
            Place::Tail => {
                page.set_next(Link::NONE);
                page.set_prev(list.last);
                match list.last.pfn() {
                    Some(last) => sparse.page(last).set_next(link),
                    None => list.first = link,
                }
                list.last = link;
            }
        }
        list.len += 1;
        self.nonempty[mt.index()] |= 1 << order.get();
        self.pages[mt.index()] += u64::from(order.pages());
        block.section_pages().section().add_free(order.pages().into());
        page.set_state(PageState::new(Kind::Free, order, self.zone));
    }

    /// Takes `block`, which is on its list, off it. Every page that leaves the free lists passes through this
    /// function, so it checks that the buddy block was not overwritten while it was free (Linux `check_new_page`,
    /// and the checks of `list_del`; Linux leaves such a page out and takes the next one).
    #[inline]
    pub(crate) fn remove<'s>(&mut self, sparse: &Sparse, block: FreeBlock<'s>) -> FreeBlock<'s> {
        let (page, order, mt) = (block.head(), block.order(), block.migrate_type());
        let list = &mut self.lists[mt.index()][order.index()];
        let (prev, next) = (page.prev(), page.next());
        // The links of both neighbours are read while they are replaced, to compare them below.
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
        let (state, link) = (page.state(), Link::to(block.pfn()));
        if state != PageState::new(Kind::Free, order, self.zone) || from_prev != link || from_next != link {
            let expected = PageState::new(Kind::Free, order, self.zone);
            unusual_block(block.pfn(), (state, from_prev, from_next), (expected, link, link));
            self.reported[mt.index()][order.index() - Order::PAGEBLOCK.index()] -= 1;
        }
        list.len -= 1;
        if list.first == Link::NONE {
            self.nonempty[mt.index()] &= !(1 << order.get());
        }
        self.pages[mt.index()] -= u64::from(order.pages());
        block.section_pages().section().add_free(u64::from(order.pages()).wrapping_neg());
        block
    }

    /// Notes that the host has taken the memory of the buddy block of `order` and type `mt` at `pfn` back. It is on its
    /// list, has at least the order of a pageblock, and was not reported since it came there.
    pub(crate) fn set_reported(&mut self, sparse: &Sparse, pfn: Pfn, order: Order, mt: MigrateType) {
        sparse.page(pfn).set_state(PageState::new(Kind::Free, order, self.zone).reported());
        self.reported[mt.index()][order.index() - Order::PAGEBLOCK.index()] += 1;
    }

    /// Number of buddy blocks on a list that are not reported. Lists of orders below a pageblock have no reported ones.
    pub(crate) fn unreported(&self, order: Order, mt: MigrateType) -> u32 {
        let reported = order.index().checked_sub(Order::PAGEBLOCK.index());
        let reported = reported.map_or(0, |order| self.reported[mt.index()][order]);
        self.lists[mt.index()][order.index()].len - reported
    }

    /// Turns a list so that the buddy block at `pfn`, which is on it, comes first (Linux `list_rotate_to_front`).
    pub(crate) fn rotate_to(&mut self, sparse: &Sparse, order: Order, mt: MigrateType, pfn: Pfn) {
        let list = &mut self.lists[mt.index()][order.index()];
        let page = sparse.page(pfn);
        let (Some(before), Some(first), Some(last)) = (page.prev().pfn(), list.first.pfn(), list.last.pfn())
        else {
            return;
        };
        sparse.page(last).set_next(Link::to(first));
        sparse.page(first).set_prev(Link::to(last));
        sparse.page(before).set_next(Link::NONE);
        page.set_prev(Link::NONE);
        (list.first, list.last) = (Link::to(pfn), Link::to(before));
    }

    /// Puts `range`, which is in the section, at the end of a list as buddy blocks of the largest order. Its
    /// pages are in no buddy block yet and its pageblocks are of type `mt`. Such buddy blocks have nothing to
    /// merge with, so one pass over their heads is enough. It takes a fifth of the time of freeing them one by
    /// one.
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
}

/// The facts about a free block that are checked: its state, and how its neighbours on the list link to
/// it.
type Known = (PageState, Link, Link);

/// Returns if the block is one that was reported. Every other difference is a block that was overwritten.
#[cold]
#[inline(never)]
fn unusual_block(pfn: Pfn, found: Known, expected: Known) {
    if found != (expected.0.reported(), expected.1, expected.2) {
        panic!("{pfn:?} on a free list: state and links to it are {found:?}, and should be {expected:?}");
    }
}
