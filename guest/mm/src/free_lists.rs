//! The free lists of a zone, by order and migrate type.
//!
//! Mirrors Linux `struct free_area` and the steps on one list of `mm/page_alloc.c` (`__add_to_free_list`,
//! `__del_page_from_free_list`). Differs from Linux on purpose: what is on a list is a pageblock, and it is on the list
//! of its largest free buddy block ([`FreeArea`](crate::free_area::FreeArea)). So a request is served from the
//! pageblock whose largest free buddy block is the smallest that will do, and pageblocks that are nearly whole are
//! broken last. Links are frame numbers, so that they take half the room of pointers.
//!
//! Invariants, under the zone lock: a pageblock is on one list exactly when a free buddy block begins in it; all its
//! free buddy blocks are of the list's type; `nonempty` says which lists have a pageblock; `blocks` and a section's
//! count of free pages count the free buddy blocks of all types; `reported` counts the buddy blocks whose pages say that
//! they are reported.

use crate::addr::{Order, Pfn, PfnRange};
use crate::free_area::FreeArea;
use crate::free_block::FreeBlock;
use crate::node::ZoneId;
use crate::page::{Kind, Link, PageState};
use crate::pageblock::MigrateType;
use crate::sparse::{SectionPages, Sparse};

/// The orders of buddy blocks that are reported: a pageblock and above.
const REPORTED_ORDERS: usize = Order::COUNT - Order::PAGEBLOCK.index();

/// At which end of its list a pageblock goes: allocations take the head first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Head,
    /// For memory that was just added: older memory should be used up first.
    Tail,
}

/// Pageblocks whose largest free buddy block has the order of the list.
#[derive(Clone, Copy)]
struct FreeList {
    first: Link,
    last: Link,
    len: u32,
}

/// The free blocks of one zone.
pub(crate) struct FreeLists {
    lists: [[FreeList; Order::COUNT]; MigrateType::COUNT],
    /// Free buddy blocks of each type and order.
    blocks: [[u32; Order::COUNT]; MigrateType::COUNT],
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
            blocks: [[0; Order::COUNT]; MigrateType::COUNT],
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
        core::array::from_fn(|order| core::array::from_fn(|mt| self.blocks[mt][order]))
    }

    /// Smallest order of at least `order` on whose list of type `mt` a pageblock is.
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

    /// The first page of the first pageblock on a list. From the order of a pageblock on it is the head of a free buddy
    /// block of that order.
    #[inline]
    pub(crate) fn first(&self, order: Order, mt: MigrateType) -> Option<Pfn> {
        self.lists[mt.index()][order.index()].first.pfn()
    }

    /// The first page of the last pageblock on a list.
    pub(crate) fn last(&self, order: Order, mt: MigrateType) -> Option<Pfn> {
        self.lists[mt.index()][order.index()].last.pfn()
    }

    /// Number of pageblocks on a list.
    pub(crate) fn len(&self, order: Order, mt: MigrateType) -> u32 {
        self.lists[mt.index()][order.index()].len
    }

    /// Makes `block`, whose pages are not free, a free buddy block.
    #[inline]
    pub(crate) fn insert(&mut self, sparse: &Sparse, block: FreeBlock<'_>, place: Place) {
        let (order, mt, area) = (block.order(), block.migrate_type(), block.area());
        let before = area.largest();
        self.count(&block, 1);
        area.add(block.pfn().in_pageblock(), order);
        block.head().set_state(PageState::new(Kind::Free, order));
        if before < Some(order) {
            let pageblock = block.pfn().align_down(Order::PAGEBLOCK);
            if let Some(before) = before {
                self.unlink(sparse, area, pageblock, before, mt);
            }
            self.link(sparse, area, pageblock, order, mt, place);
        }
    }

    /// Takes the free buddy block `block` off the lists. Every page that leaves them passes through this
    /// function, so it checks that the buddy block was not overwritten while it was free (Linux `check_new_page`,
    /// and the checks of `list_del`; Linux leaves such a page out and takes the next one).
    #[inline]
    pub(crate) fn remove<'s>(&mut self, sparse: &Sparse, block: FreeBlock<'s>) -> FreeBlock<'s> {
        let (order, mt, area) = (block.order(), block.migrate_type(), block.area());
        let state = block.head().state();
        if state != PageState::new(Kind::Free, order) {
            unusual_block(block.pfn(), state, PageState::new(Kind::Free, order));
            self.reported[mt.index()][order.index() - Order::PAGEBLOCK.index()] -= 1;
        }
        let before = area.largest();
        area.remove(block.pfn().in_pageblock(), order);
        let after = area.largest();
        if after != before {
            let pageblock = block.pfn().align_down(Order::PAGEBLOCK);
            self.unlink(sparse, area, pageblock, order, mt);
            if let Some(after) = after {
                self.link(sparse, area, pageblock, after, mt, Place::Head);
            }
        }
        self.count(&block, -1);
        block
    }

    /// Counts `block` as one more free buddy block, or as one less.
    #[inline]
    fn count(&mut self, block: &FreeBlock<'_>, one: i32) {
        let (order, mt) = (block.order(), block.migrate_type());
        let pages = i64::from(order.pages()) * i64::from(one);
        let blocks = &mut self.blocks[mt.index()][order.index()];
        *blocks = blocks.wrapping_add_signed(one);
        let of_type = &mut self.pages[mt.index()];
        *of_type = of_type.wrapping_add_signed(pages);
        block.section_pages().section().add_free(pages as u64);
    }

    /// Puts `pageblock` on the list of `order`.
    fn link(
        &mut self,
        sparse: &Sparse,
        area: FreeArea<'_>,
        pageblock: Pfn,
        order: Order,
        mt: MigrateType,
        place: Place,
    ) {
        let link = Link::to(pageblock);
        let list = &mut self.lists[mt.index()][order.index()];
        match place {
            Place::Head => {
                area.set_before(Link::NONE);
                area.set_after(list.first);
                match list.first.pfn() {
                    Some(first) => sparse.area(first).set_before(link),
                    None => list.last = link,
                }
                list.first = link;
            }
            Place::Tail => {
                area.set_after(Link::NONE);
                area.set_before(list.last);
                match list.last.pfn() {
                    Some(last) => sparse.area(last).set_after(link),
                    None => list.first = link,
                }
                list.last = link;
            }
        }
        list.len += 1;
        self.nonempty[mt.index()] |= 1 << order.get();
    }

    /// Takes `pageblock` off the list of `order`.
    fn unlink(&mut self, sparse: &Sparse, area: FreeArea<'_>, pageblock: Pfn, order: Order, mt: MigrateType) {
        let list = &mut self.lists[mt.index()][order.index()];
        let (before, after) = (area.before(), area.after());
        // The links of both neighbours are read while they are replaced, to compare them below.
        let (from_before, from_after);
        match before.pfn().map(|pfn| sparse.area(pfn)) {
            Some(of) => {
                from_before = of.after();
                of.set_after(after);
            }
            None => from_before = core::mem::replace(&mut list.first, after),
        }
        match after.pfn().map(|pfn| sparse.area(pfn)) {
            Some(of) => {
                from_after = of.before();
                of.set_before(before);
            }
            None => from_after = core::mem::replace(&mut list.last, before),
        }
        let link = Link::to(pageblock);
        assert!(
            from_before == link && from_after == link,
            "{pageblock:?} on the free list of {order:?}: links to it are {from_before:?} and {from_after:?}"
        );
        list.len -= 1;
        if list.first == Link::NONE {
            self.nonempty[mt.index()] &= !(1 << order.get());
        }
    }

    /// Moves all free buddy blocks of a pageblock from the lists of type `from` to those of type `to` (a part of Linux
    /// `__move_freepages_block`). `pageblock` is its first page.
    pub(crate) fn retype(&mut self, sparse: &Sparse, pageblock: Pfn, from: MigrateType, to: MigrateType) {
        let area = sparse.area(pageblock);
        let Some(largest) = area.largest() else { return };
        let state = sparse.page(pageblock).state();
        if state.is_reported() {
            // The host does not learn of what is isolated: it counts as not reported.
            sparse.page(pageblock).set_state(state.unreported());
            self.reported[from.index()][largest.index() - Order::PAGEBLOCK.index()] -= 1;
        }
        self.unlink(sparse, area, pageblock, largest, from);
        self.link(sparse, area, pageblock, largest, to, Place::Tail);
        for order in (0..=largest.get()).map(Order::new) {
            let blocks = area.blocks(order);
            self.blocks[from.index()][order.index()] -= blocks;
            self.blocks[to.index()][order.index()] += blocks;
            let pages = u64::from(blocks) * u64::from(order.pages());
            self.pages[from.index()] -= pages;
            self.pages[to.index()] += pages;
        }
    }

    /// Notes that the host has taken the memory of the buddy block of `order` and type `mt` at `pfn` back. It is on its
    /// list, has at least the order of a pageblock, and was not reported since it came there.
    pub(crate) fn set_reported(&mut self, sparse: &Sparse, pfn: Pfn, order: Order, mt: MigrateType) {
        sparse.page(pfn).set_state(PageState::new(Kind::Free, order).reported());
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
        let area = sparse.area(pfn);
        let (Some(before), Some(first), Some(last)) = (area.before().pfn(), list.first.pfn(), list.last.pfn())
        else {
            return;
        };
        sparse.area(last).set_after(Link::to(first));
        sparse.area(first).set_before(Link::to(last));
        sparse.area(before).set_after(Link::NONE);
        area.set_before(Link::NONE);
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
        let state = PageState::new(Kind::Free, Order::MAX);
        let list = &mut self.lists[mt.index()][Order::MAX.index()];
        match list.last.pfn() {
            Some(last) => sparse.area(last).set_after(Link::to(range.start())),
            None => list.first = Link::to(range.start()),
        }
        let (mut before, mut last) = (list.last, None);
        let step = Order::MAX.pages() as usize;
        for pfn in range.frames().step_by(step) {
            let area = pages.area(pfn.pageblock());
            area.add(0, Order::MAX);
            area.set_before(before);
            area.set_after(Link::to(pfn.add(Order::MAX.pages())));
            pages.page(pfn).set_state(state);
            before = Link::to(pfn);
            last = Some(area);
        }
        list.last = before;
        if let Some(last) = last {
            last.set_after(Link::NONE);
        }
        let blocks = range.pages() >> Order::MAX.get();
        list.len += blocks;
        self.blocks[mt.index()][Order::MAX.index()] += blocks;
        self.nonempty[mt.index()] |= 1 << Order::MAX.get();
        self.pages[mt.index()] += u64::from(range.pages());
        pages.section().add_free(range.pages().into());
    }
}

/// Returns if the block is one that was reported. Every other difference is a block that was overwritten.
#[cold]
#[inline(never)]
fn unusual_block(pfn: Pfn, found: PageState, expected: PageState) {
    if expected.order() < Order::PAGEBLOCK || found != expected.reported() {
        panic!("{pfn:?} on a free list: state is {found:?}, and should be {expected:?}");
    }
}
