//! The free lists of a zone, by order and migrate type.
//!
//! Mirrors Linux `struct free_area` and the steps on one list of `mm/page_alloc.c` (`__add_to_free_list`,
//! `__del_page_from_free_list`). Differs from Linux on purpose: what is on a list is a pageblock, and it is on the list
//! of its largest free buddy block. So a request is served from the pageblock whose largest free buddy block is the
//! smallest that will do, and pageblocks that are nearly whole are broken last. Buddy blocks below the order of a
//! pageblock are bits ([`FreeArea`]). Links are frame numbers, so that they take half the room of pointers.
//!
//! Invariants, under the zone lock: a pageblock is on one list exactly when it has free pages and is not the upper half
//! of a free buddy block; all its free pages are of the list's type; `nonempty` says which lists have a pageblock;
//! `pages` and a section's count of free pages count the free pages of all types; `reported` counts the buddy blocks
//! whose pages say that they are reported.

use crate::addr::{Order, Pfn, PfnRange};
use crate::free_area::PageblockLink;
use crate::free_block::FreeBlock;
use crate::node::ZoneId;
use crate::page::{AreaWords, Kind, PageState};
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
    first: PageblockLink,
    last: PageblockLink,
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
        let empty = FreeList { first: PageblockLink::NONE, last: PageblockLink::NONE, len: 0 };
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
        self.lists[mt.index()][order.index()].first.pageblock()
    }

    /// The first page of the last pageblock on a list.
    pub(crate) fn last(&self, order: Order, mt: MigrateType) -> Option<Pfn> {
        self.lists[mt.index()][order.index()].last.pageblock()
    }

    /// Number of pageblocks on a list.
    pub(crate) fn len(&self, order: Order, mt: MigrateType) -> u32 {
        self.lists[mt.index()][order.index()].len
    }

    /// Puts `block`, a pageblock or more whose pages are not free, on its list.
    #[inline]
    pub(crate) fn insert(&mut self, sparse: &Sparse, block: FreeBlock<'_>, place: Place) {
        let order = block.order();
        assert!(order >= Order::PAGEBLOCK, "{order:?} is free by its bits");
        self.count(&block, order.pages().into());
        self.link(sparse, block.head().words(), block.pfn(), order, block.migrate_type(), place);
        block.head().set_state(PageState::new(Kind::Free, order));
    }

    /// Makes `block`, smaller than a pageblock, free. The state of its head is a tail's. True when all pages of the
    /// pageblock were free then: none of them is now, and the caller frees the pageblock.
    #[inline(always)]
    pub(crate) fn give(&mut self, sparse: &Sparse, block: &FreeBlock<'_>, place: Place) -> bool {
        let larger = block.area().give(block.pfn().in_pageblock(), block.order());
        self.count(block, block.order().pages().into());
        larger.is_some() && self.relist(sparse, block, larger, place)
    }

    /// Makes single pages free: those of `bits` in the aligned range of 64 pages whose first page is `block`. Otherwise
    /// as [`give`](Self::give).
    pub(crate) fn give_some(&mut self, sparse: &Sparse, block: &FreeBlock<'_>, bits: u64) -> bool {
        let area = block.area();
        area.give_some(block.pfn().in_pageblock(), bits);
        self.count(block, bits.count_ones().into());
        self.relist(sparse, block, area.largest(), Place::Head)
    }

    /// Takes `block`, smaller than a pageblock, which is free by its bits.
    #[inline(never)]
    pub(crate) fn take(&mut self, sparse: &Sparse, block: &FreeBlock<'_>) {
        let (area, state) = (block.area(), block.head().state());
        if !state.is_tail() {
            unusual_block(block.pfn(), state, PageState::new(Kind::Tail, Order::PAGE));
        }
        area.take(block.pfn().in_pageblock(), block.order());
        self.count(block, -i64::from(block.order().pages()));
        self.relist(sparse, block, area.largest(), Place::Head);
    }

    /// Takes the lowest free pages of the pageblock of `block`, all of one aligned range of the block's order, at most 64
    /// pages: the first page of the 64 that the range lies in, and a bit for each.
    #[inline]
    pub(crate) fn take_lowest(&mut self, sparse: &Sparse, block: &FreeBlock<'_>) -> Option<(Pfn, u64)> {
        let area = block.area();
        let (index, bits) = area.take_lowest(block.order())?;
        self.count(block, -i64::from(bits.count_ones()));
        self.relist(sparse, block, area.largest(), Place::Head);
        Some((block.pfn().align_down(Order::PAGEBLOCK).add(index), bits))
    }

    /// Puts the pageblock of `block` on the list of its `largest` free buddy block. When that is the pageblock, takes
    /// all of its pages instead, and returns true.
    #[inline(never)]
    fn relist(
        &mut self,
        sparse: &Sparse,
        block: &FreeBlock<'_>,
        largest: Option<Order>,
        place: Place,
    ) -> bool {
        let (area, mt) = (block.area(), block.migrate_type());
        let (pageblock, words) = (block.pfn().align_down(Order::PAGEBLOCK), area.words());
        let before = words.list();
        let is_whole = largest == Some(Order::PAGEBLOCK);
        let list = largest.filter(|_| !is_whole);
        if list != before {
            if let Some(before) = before {
                self.unlink(sparse, words, pageblock, before, mt);
            }
            if let Some(list) = list {
                self.link(sparse, words, pageblock, list, mt, place);
            }
        }
        if is_whole {
            area.clear();
            self.count(block, -i64::from(Order::PAGEBLOCK.pages()));
        }
        is_whole
    }

    /// Takes the free buddy block `block`, a pageblock or more, off its list. Every such block that leaves the lists
    /// passes through this function, so it checks that it was not overwritten while it was free (Linux `check_new_page`,
    /// and the checks of `list_del`; Linux leaves such a page out and takes the next one).
    #[inline]
    pub(crate) fn remove<'s>(&mut self, sparse: &Sparse, block: FreeBlock<'s>) -> FreeBlock<'s> {
        let (order, mt) = (block.order(), block.migrate_type());
        let state = block.head().state();
        if state != PageState::new(Kind::Free, order) {
            unusual_block(block.pfn(), state, PageState::new(Kind::Free, order));
            self.reported[mt.index()][order.index() - Order::PAGEBLOCK.index()] -= 1;
        }
        self.unlink(sparse, block.head().words(), block.pfn(), order, mt);
        self.count(&block, -i64::from(order.pages()));
        block
    }

    /// Counts `pages` more free pages of the type and the section of `block`; fewer when it is negative.
    #[inline]
    fn count(&mut self, block: &FreeBlock<'_>, pages: i64) {
        let of_type = &mut self.pages[block.migrate_type().index() % MigrateType::COUNT];
        *of_type = of_type.wrapping_add_signed(pages);
        block.section_pages().section().add_free(pages as u64);
    }

    /// Puts `pageblock` on the list of `order`.
    #[inline]
    fn link(
        &mut self,
        sparse: &Sparse,
        words: &AreaWords,
        pageblock: Pfn,
        order: Order,
        mt: MigrateType,
        place: Place,
    ) {
        let link = PageblockLink::to(pageblock);
        let list = &mut self.lists[mt.index()][order.index()];
        match place {
            Place::Head => {
                words.set_before(PageblockLink::NONE);
                words.set_after(list.first);
                match list.first.pageblock() {
                    Some(first) => sparse.page(first).words().set_before(link),
                    None => list.last = link,
                }
                list.first = link;
            }
            Place::Tail => {
                words.set_after(PageblockLink::NONE);
                words.set_before(list.last);
                match list.last.pageblock() {
                    Some(last) => sparse.page(last).words().set_after(link),
                    None => list.first = link,
                }
                list.last = link;
            }
        }
        list.len += 1;
        self.nonempty[mt.index()] |= 1 << order.get();
        words.set_list(Some(order));
    }

    /// Takes `pageblock` off the list of `order`.
    #[inline]
    fn unlink(&mut self, sparse: &Sparse, words: &AreaWords, pageblock: Pfn, order: Order, mt: MigrateType) {
        let list = &mut self.lists[mt.index()][order.index()];
        let (before, after) = (words.before(), words.after());
        // The links of both neighbours are read while they are replaced, to compare them below.
        let (from_before, from_after);
        match before.pageblock().map(|pfn| sparse.page(pfn).words()) {
            Some(of) => {
                from_before = of.after();
                of.set_after(after);
            }
            None => from_before = core::mem::replace(&mut list.first, after),
        }
        match after.pageblock().map(|pfn| sparse.page(pfn).words()) {
            Some(of) => {
                from_after = of.before();
                of.set_before(before);
            }
            None => from_after = core::mem::replace(&mut list.last, before),
        }
        let link = PageblockLink::to(pageblock);
        assert!(
            from_before == link && from_after == link,
            "{pageblock:?} on the free list of {order:?}: links to it are {from_before:?} and {from_after:?}"
        );
        list.len -= 1;
        if list.first == PageblockLink::NONE {
            self.nonempty[mt.index()] &= !(1 << order.get());
        }
        words.set_list(None);
    }

    /// Moves the free pages of the pageblock from `pageblock` on from the lists of type `from` to those of type `to` (a part
    /// of Linux `__move_freepages_block`).
    pub(crate) fn retype(&mut self, sparse: &Sparse, pageblock: Pfn, from: MigrateType, to: MigrateType) {
        let page = sparse.page(pageblock);
        let Some(list) = page.words().list() else { return };
        self.unlink(sparse, page.words(), pageblock, list, from);
        self.link(sparse, page.words(), pageblock, list, to, Place::Tail);
        if page.state().is_reported() {
            // The host does not learn of what is isolated: it counts as not reported.
            page.set_state(page.state().unreported());
            self.reported[from.index()][list.index() - Order::PAGEBLOCK.index()] -= 1;
        }
        let pages = if list < Order::PAGEBLOCK { sparse.area(pageblock).pages() } else { list.pages() };
        self.pages[from.index()] -= u64::from(pages);
        self.pages[to.index()] += u64::from(pages);
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
        let words = sparse.page(pfn).words();
        let (Some(before), Some(first), Some(last)) =
            (words.before().pageblock(), list.first.pageblock(), list.last.pageblock())
        else {
            return;
        };
        sparse.page(last).words().set_after(PageblockLink::to(first));
        sparse.page(first).words().set_before(PageblockLink::to(last));
        sparse.page(before).words().set_after(PageblockLink::NONE);
        words.set_before(PageblockLink::NONE);
        (list.first, list.last) = (PageblockLink::to(pfn), PageblockLink::to(before));
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
        match list.last.pageblock() {
            Some(last) => sparse.page(last).words().set_after(PageblockLink::to(range.start())),
            None => list.first = PageblockLink::to(range.start()),
        }
        let (mut before, mut last) = (list.last, None);
        for offset in (0..range.pages()).step_by(Order::MAX.pages() as usize) {
            let pfn = range.start().add(offset);
            let page = pages.page(pfn);
            page.words().set_list(Some(Order::MAX));
            page.words().set_before(before);
            page.words().set_after(PageblockLink::to(pfn.add(Order::MAX.pages())));
            page.set_state(state);
            before = PageblockLink::to(pfn);
            last = Some(page.words());
        }
        list.last = before;
        if let Some(last) = last {
            last.set_after(PageblockLink::NONE);
        }
        let blocks = range.pages() >> Order::MAX.get();
        list.len += blocks;
        self.nonempty[mt.index()] |= 1 << Order::MAX.get();
        self.pages[mt.index()] += u64::from(range.pages());
        pages.section().add_free(range.pages().into());
    }
}

/// Returns if the block is one that was reported. Every other difference is a block that was overwritten.
#[cold]
#[inline(never)]
fn unusual_block(pfn: Pfn, found: PageState, expected: PageState) {
    if expected.is_tail() || found != expected.reported() {
        panic!("{pfn:?} on a free list: state is {found:?}, and should be {expected:?}");
    }
}
