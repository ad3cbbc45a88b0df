//! The free pages of one pageblock that is not free as a whole.
//!
//! Takes the place of Linux `struct free_area` below the order of a pageblock. Differs from Linux on purpose: a page is
//! free by a bit, and its buddy blocks are what the bits make. So freeing a page sets a bit, and there is nothing to
//! merge and nothing to split: neither touches the struct pages of neighbours on a list, which lie anywhere in memory.
//!
//! The words lie in the struct pages that have the states of the pageblock ([`part_of`](crate::page::part_of)):
//!
//! | word | in | meaning |
//! |---|---|---|
//! | `free` | every part | which of the 32 pages of the part are free |
//! | `list` | part 0 | one more than the order of the zone's list that the pageblock is on; 0 when it is on none |
//! | `after`, `before` | part 0 | its neighbours on that list |
//!
//! A free pageblock, alone or as a half of a larger buddy block, has no bits: it is free by the state of its head. So
//! memory that comes in large pieces costs one cache line for each.
//!
//! Invariants: the words change under the zone lock, so each function here is one step for other CPUs. The state of a page that is free by its bit is a
//! tail's.

use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn};
use crate::page::{AreaWords, Kind, PART_PAGES, PARTS, Page, PageState};
use crate::sync::{AtomicU32, Ordering::Relaxed, one_step};

/// log2 of the pages of a part.
const PART_ORDER: Order = Order::new(PART_PAGES.ilog2() as u8);

/// Where buddy blocks of an order up to [`PART_ORDER`] can begin in a part.
const ALIGNED: [u32; PART_ORDER.index() + 1] =
    [0xffff_ffff, 0x5555_5555, 0x1111_1111, 0x0101_0101, 0x0001_0001, 0x0000_0001];

/// See the header of this file.
#[derive(Clone, Copy)]
pub(crate) struct FreeArea<'s> {
    parts: &'s [Page; PARTS],
}

/// The buddy blocks of the order after `order` that those of `order` make: a bit for the first page of each.
#[inline]
fn pairs(runs: u32, order: u8) -> u32 {
    runs & runs >> (1 << order) & ALIGNED[usize::from(order) + 1]
}

/// The buddy blocks of `order` that lie in the set bits of `word`.
#[inline]
fn runs(word: u32, order: u8) -> u32 {
    (0..order).fold(word, pairs)
}

/// The largest order with a buddy block in the set bits of `word`, which is not 0.
#[inline]
fn largest_in(word: u32) -> u8 {
    let (mut runs, mut order) = (word, 0);
    while order < PART_ORDER.get() {
        runs = pairs(runs, order);
        if runs == 0 {
            break;
        }
        order += 1;
    }
    order
}

impl<'s> FreeArea<'s> {
    #[inline]
    pub(crate) fn new(parts: &'s [Page; PARTS]) -> Self {
        Self { parts }
    }

    /// The words that are there once for the pageblock.
    #[inline]
    pub(crate) fn words(&self) -> &'s AreaWords {
        &self.parts[0].area
    }

    #[inline]
    fn word(&self, part: usize) -> &'s AtomicU32 {
        &self.parts[part % PARTS].area.free
    }

    #[inline]
    fn bits(&self, part: usize) -> u32 {
        self.word(part).load(Relaxed)
    }

    #[inline]
    fn set_bits(&self, part: usize, bits: u32) {
        self.word(part).store(bits, Relaxed);
    }

    /// Which parts are free as a whole, a bit for each.
    fn whole_parts(&self) -> u32 {
        (0..PARTS).fold(0, |whole, part| whole | u32::from(self.bits(part) == u32::MAX) << part)
    }

    /// Changes the bits of the buddy block of `order` at page `index` from `before` to `!before`.
    #[inline]
    fn flip(&self, index: u32, order: Order, before: bool) {
        let (first, parts, mask) = if order < PART_ORDER {
            let mask = ((1_u32 << order.pages()) - 1) << (index % PART_PAGES as u32);
            (index as usize / PART_PAGES, 1, mask)
        } else {
            (index as usize / PART_PAGES, order.pages() as usize / PART_PAGES, u32::MAX)
        };
        for part in first..first + parts {
            let bits = self.bits(part);
            let expected = if before { mask } else { 0 };
            if bits & mask != expected {
                other_bits(index, order, bits & mask, expected);
            }
            self.set_bits(part, bits ^ mask);
        }
    }

    /// Makes the buddy block of `order`, below that of a pageblock, at page `index` free. Returns the order of the free
    /// buddy block that it is a part of now, if that is larger than what the pageblock is on a list for.
    #[inline(always)]
    pub(crate) fn give(&self, index: u32, order: Order) -> Option<Order> {
        one_step(|| {
            self.flip(index, order, false);
            // One more than the order of the list: the smallest order that counts.
            let counts = self.words().list.load(Relaxed) as u8;
            self.is_free(index, counts).then(|| self.around(index, order))
        })
    }

    /// Whether the buddy block of `order`, which has page `index`, is free by its bits.
    #[inline]
    fn is_free(&self, index: u32, order: u8) -> bool {
        let bits = self.bits(index as usize / PART_PAGES);
        if order <= PART_ORDER.get() {
            let pages = 1_u32 << order;
            let mask = (u32::MAX >> (u32::BITS - pages)) << (index & !(pages - 1) & (u32::BITS - 1));
            return bits & mask == mask;
        }
        let parts = 1_usize << (order - PART_ORDER.get());
        let first = (index as usize / PART_PAGES) & !(parts - 1);
        bits == u32::MAX && (first..first + parts).all(|part| self.bits(part) == u32::MAX)
    }

    /// Takes the buddy block of `order`, which is free by its bits, at page `index`.
    #[inline]
    pub(crate) fn take(&self, index: u32, order: Order) {
        one_step(|| self.flip(index, order, true));
    }

    /// Takes the lowest free pages, all of one aligned range of 2^`order`, at most 64: the first page of the 64 that the
    /// range lies in, and a bit for each page.
    #[inline]
    pub(crate) fn take_lowest(&self, order: Order) -> Option<(u32, u64)> {
        one_step(|| {
            let part = (0..PARTS).find(|&part| self.bits(part) != 0)? & !1;
            let all = u64::from(self.bits(part)) | u64::from(self.bits(part + 1)) << u32::BITS;
            let range = u64::MAX >> (u64::BITS - order.pages());
            let bits = all & range << (all.trailing_zeros() & !(order.pages() - 1));
            self.set_bits(part, (all & !bits) as u32);
            self.set_bits(part + 1, ((all & !bits) >> u32::BITS) as u32);
            Some(((part * PART_PAGES) as u32, bits))
        })
    }

    /// Makes pages free: those of `bits` in the aligned range of 64 pages from page `index` on.
    pub(crate) fn give_some(&self, index: u32, bits: u64) {
        one_step(|| {
            let part = index as usize / PART_PAGES;
            for (part, set) in [(part, bits as u32), (part + 1, (bits >> u32::BITS) as u32)] {
                let before = self.bits(part);
                if before & set != 0 {
                    other_bits(index, Order::PAGE, before & set, 0);
                }
                self.set_bits(part, before | set);
            }
        });
    }

    /// Takes all pages that are free by their bits.
    pub(crate) fn clear(&self) {
        one_step(|| (0..PARTS).for_each(|part| self.set_bits(part, 0)));
    }

    /// The order of the largest free buddy block around the one of `order` at page `index`, which is free by its bits.
    fn around(&self, index: u32, order: Order) -> Order {
        let larger =
            (order.get() + 1..=Order::PAGEBLOCK.get()).take_while(|&order| self.is_free(index, order));
        larger.last().map_or(order, Order::new)
    }

    /// The state that a tail of the pageblock means: the head of a free buddy block, if page `index` is the first one
    /// of it, or a tail.
    pub(crate) fn state_of_tail(&self, index: u32) -> PageState {
        one_step(|| {
            if self.bits(index as usize / PART_PAGES) >> (index % PART_PAGES as u32) & 1 == 0 {
                return PageState::new(Kind::Tail, Order::PAGE);
            }
            PageState::new(Kind::Free, self.around(index, Order::PAGE))
        })
    }

    /// The largest order of the buddy blocks that are free by their bits.
    pub(crate) fn largest(&self) -> Option<Order> {
        one_step(|| {
            let mut whole = 0;
            let mut largest = None;
            for part in 0..PARTS {
                match self.bits(part) {
                    0 => {}
                    u32::MAX => whole |= 1 << part,
                    bits => largest = largest.max(Some(largest_in(bits))),
                }
            }
            let order = if whole == 0 { largest? } else { PART_ORDER.get() + largest_in(whole) };
            Some(Order::new(order))
        })
    }

    /// The lowest buddy block of `order`, below that of a pageblock, that is free by its bits.
    pub(crate) fn find(&self, order: Order) -> Option<u32> {
        one_step(|| {
            if order >= PART_ORDER {
                let runs = runs(self.whole_parts(), order.get() - PART_ORDER.get());
                return (runs != 0).then(|| runs.trailing_zeros() * PART_PAGES as u32);
            }
            (0..PARTS).find_map(|part| {
                let runs = runs(self.bits(part), order.get());
                (runs != 0).then(|| (part * PART_PAGES) as u32 + runs.trailing_zeros())
            })
        })
    }

    /// Number of pages that are free by their bits.
    pub(crate) fn pages(&self) -> u32 {
        one_step(|| (0..PARTS).map(|part| self.bits(part).count_ones()).sum())
    }

    /// Number of the buddy blocks of each order that the bits make.
    pub(crate) fn blocks(&self) -> [u32; Order::PAGEBLOCK.index()] {
        one_step(|| {
            let mut blocks = [0; Order::PAGEBLOCK.index()];
            let mut index = 0;
            while index < PAGEBLOCK_PAGES {
                let state = self.state_of_tail(index);
                if state.kind() == Kind::Free {
                    blocks[state.order().index() % blocks.len()] += 1;
                }
                index += state.order().pages();
            }
            blocks
        })
    }
}

/// A pageblock on a list, or none. Holds one more than its first frame: a pageblock may begin with frame 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageblockLink(u32);

impl PageblockLink {
    pub(crate) const NONE: Self = Self(0);

    #[inline]
    pub(crate) const fn to(pageblock: Pfn) -> Self {
        Self(pageblock.get() + 1)
    }

    /// The first page of the pageblock.
    #[inline]
    pub(crate) const fn pageblock(self) -> Option<Pfn> {
        if self.0 == 0 { None } else { Some(Pfn::new(self.0 - 1)) }
    }
}

impl AreaWords {
    /// The order of the list that the pageblock is on.
    #[inline]
    pub(crate) fn list(&self) -> Option<Order> {
        Some(Order::new(self.list.load(Relaxed).checked_sub(1)? as u8))
    }

    #[inline]
    pub(crate) fn set_list(&self, list: Option<Order>) {
        self.list.store(list.map_or(0, |order| u32::from(order.get()) + 1), Relaxed);
    }

    /// The pageblock after this one on its list, by its first page.
    #[inline]
    pub(crate) fn after(&self) -> PageblockLink {
        PageblockLink(self.after.load(Relaxed))
    }

    /// The pageblock before this one on its list.
    #[inline]
    pub(crate) fn before(&self) -> PageblockLink {
        PageblockLink(self.before.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_after(&self, link: PageblockLink) {
        self.after.store(link.0, Relaxed);
    }

    #[inline]
    pub(crate) fn set_before(&self, link: PageblockLink) {
        self.before.store(link.0, Relaxed);
    }
}

#[cold]
#[inline(never)]
fn other_bits(index: u32, order: Order, found: u32, expected: u32) -> ! {
    panic!("page {index} of a pageblock, {order:?}: free pages are {found:#x}, and should be {expected:#x}")
}
