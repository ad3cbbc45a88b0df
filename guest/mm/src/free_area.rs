//! The free buddy blocks of one pageblock.
//!
//! Takes the place of the links of Linux `struct free_area` below the order of a pageblock. Differs from Linux on
//! purpose: a zone's lists link pageblocks, and a pageblock knows its free buddy blocks by itself. So freeing a page
//! and merging it touch the states of its pageblock, and not the struct pages of neighbours on a list, which lie
//! anywhere in memory.
//!
//! The words lie in the struct pages that have the states of the pageblock ([`part_of`](crate::page::part_of)):
//!
//! | word | in | meaning |
//! |---|---|---|
//! | `free_heads` | every part | which of the 32 pages of the part are heads of free buddy blocks below the order of a pageblock |
//! | `blocks` | part n, n below 9 | number of free buddy blocks of order n |
//! | `present` | part 0 | bits 0..=10: which orders have a free buddy block that begins here; 16..=31: which parts have free heads |
//! | `after`, `before` | part 0 | the neighbours of the pageblock on a zone's list |
//!
//! A buddy block of a pageblock or of two is free by its state and by its bit in `present` alone, so memory that comes
//! in large pieces costs one cache line for each.
//!
//! Invariant: the words change under the zone lock, together with the states that they tell of.

use crate::addr::{Order, PAGEBLOCK_PAGES};
use crate::page::{AreaWords, Kind, Link, PART_PAGES, PARTS, Page, PageState};
use crate::sync::{AtomicU32, Ordering::Relaxed};

/// Bits of `present` below the ones for parts.
const ORDERS: u32 = (1 << Order::COUNT) - 1;
const PARTS_SHIFT: u32 = 16;

/// See the header of this file.
#[derive(Clone, Copy)]
pub(crate) struct FreeArea<'s> {
    parts: &'s [Page; PARTS],
}

/// Replaces a word that only the holder of the zone lock writes.
#[inline(always)]
fn change(word: &AtomicU32, change: impl FnOnce(u32) -> u32) -> u32 {
    let after = change(word.load(Relaxed));
    word.store(after, Relaxed);
    after
}

impl<'s> FreeArea<'s> {
    #[inline]
    pub(crate) fn new(parts: &'s [Page; PARTS]) -> Self {
        Self { parts }
    }

    #[inline]
    fn first(&self) -> &'s AreaWords {
        &self.parts[0].area
    }

    /// Notes that page `index` of the pageblock is the head of a free buddy block of `order` now.
    #[inline]
    pub(crate) fn add(&self, index: u32, order: Order) {
        let mut set = 1 << order.get();
        if order < Order::PAGEBLOCK {
            let part = index as usize / PART_PAGES % PARTS;
            change(&self.parts[part].area.free_heads, |heads| heads | 1 << (index % 32));
            change(&self.parts[order.index()].area.blocks, |blocks| blocks + 1);
            set |= 1 << (PARTS_SHIFT + part as u32);
        }
        change(&self.first().present, |present| present | set);
    }

    /// Notes that page `index` of the pageblock is not the head of a free buddy block of `order` any more.
    #[inline]
    pub(crate) fn remove(&self, index: u32, order: Order) {
        let mut clear = 0;
        if order < Order::PAGEBLOCK {
            let part = index as usize / PART_PAGES % PARTS;
            if change(&self.parts[part].area.free_heads, |heads| heads & !(1 << (index % 32))) == 0 {
                clear |= 1 << (PARTS_SHIFT + part as u32);
            }
            let left = change(&self.parts[order.index()].area.blocks, |blocks| blocks.wrapping_sub(1));
            assert!(left < PAGEBLOCK_PAGES, "a pageblock without free blocks of {order:?} loses one");
            clear |= u32::from(left == 0) << order.get();
        } else {
            clear |= 1 << order.get();
        }
        change(&self.first().present, |present| present & !clear);
    }

    /// Order of the largest free buddy block that begins in the pageblock.
    #[inline]
    pub(crate) fn largest(&self) -> Option<Order> {
        let orders = self.first().present.load(Relaxed) & ORDERS;
        (orders != 0).then(|| Order::new(orders.ilog2() as u8))
    }

    /// Smallest order of at least `order` with a free buddy block here.
    #[inline]
    pub(crate) fn smallest(&self, order: Order) -> Option<Order> {
        let orders = (self.first().present.load(Relaxed) & ORDERS) >> order.get();
        (orders != 0).then(|| Order::new(order.get() + orders.trailing_zeros() as u8))
    }

    /// Number of free buddy blocks of `order`.
    pub(crate) fn blocks(&self, order: Order) -> u32 {
        if order < Order::PAGEBLOCK {
            return self.parts[order.index()].area.blocks.load(Relaxed);
        }
        self.first().present.load(Relaxed) >> order.get() & 1
    }

    /// The head of the lowest free buddy block below the order of a pageblock, and its state.
    #[inline]
    pub(crate) fn lowest(&self) -> Option<(u32, PageState)> {
        self.heads().next()
    }

    /// The head of the lowest free buddy block of `order`, which is below that of a pageblock.
    #[inline]
    pub(crate) fn find(&self, order: Order) -> Option<u32> {
        let free = PageState::new(Kind::Free, order);
        self.heads().find(|&(_, state)| state == free).map(|(index, _)| index)
    }

    /// The heads of free buddy blocks below the order of a pageblock, ascending: index in the pageblock, and state.
    #[inline]
    pub(crate) fn heads(&self) -> impl Iterator<Item = (u32, PageState)> + use<'s> {
        let parts = self.parts;
        Bits(self.first().present.load(Relaxed) >> PARTS_SHIFT).flat_map(move |part| {
            let of = &parts[part as usize % PARTS];
            let heads = Bits(of.area.free_heads.load(Relaxed));
            heads.map(move |at| (part * PART_PAGES as u32 + at, of.state_at(at)))
        })
    }

    /// The pageblock after this one on its list, by its first page.
    #[inline]
    pub(crate) fn after(&self) -> Link {
        Link::of_bits(self.first().after.load(Relaxed))
    }

    /// The pageblock before this one on its list.
    #[inline]
    pub(crate) fn before(&self) -> Link {
        Link::of_bits(self.first().before.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_after(&self, link: Link) {
        self.first().after.store(link.bits(), Relaxed);
    }

    #[inline]
    pub(crate) fn set_before(&self, link: Link) {
        self.first().before.store(link.bits(), Relaxed);
    }
}

/// The bits of a word that are set, ascending.
struct Bits(u32);

impl Iterator for Bits {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        let at = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (at < u32::BITS).then_some(at)
    }
}
