//! The right to a zone's free lists, and to everything else that the zone lock protects.
//!
//! Mirrors the code of Linux that runs with `zone->lock` held; `buddy`, `fallback` and `isolation` add
//! their steps to this guard. Differs from Linux on purpose: a function that needs the lock is a method
//! of the guard and cannot be called without it.
//!
//! Invariants: the free lists, a section's count of free pages, the types and isolation of the
//! pageblocks of online sections, and the zone's number of isolated pageblocks change only through this
//! guard. When it is dropped, the zone's published number of free pages is that of its lists.

use core::ops::{Deref, Range};

use super::Zone;
use crate::addr::{Order, Pfn, PfnRange};
use crate::free_block::FreeBlock;
use crate::free_lists::{FreeLists, Place};
use crate::lock::Guard;
use crate::page::Holder;
use crate::pageblock::MigrateType;
use crate::sparse::{SectionPages, Sparse};
use crate::sync::Ordering::Relaxed;

/// A zone whose lock this CPU holds.
pub(crate) struct ZoneGuard<'m> {
    lists: Guard<'m, FreeLists>,
    zone: &'m Zone,
    sparse: &'m Sparse,
}

impl Zone {
    /// Takes the zone lock. `sparse` is the table that has the zone's sections.
    #[inline]
    pub(crate) fn lock<'m>(&'m self, sparse: &'m Sparse) -> ZoneGuard<'m> {
        ZoneGuard { lists: self.lists.lock(), zone: self, sparse }
    }
}

/// The lists can be read directly; they change by the guard's own methods.
impl Deref for ZoneGuard<'_> {
    type Target = FreeLists;

    #[inline]
    fn deref(&self) -> &FreeLists {
        &self.lists
    }
}

impl<'m> ZoneGuard<'m> {
    /// The pages of the section of `pfn`, which is on a list.
    #[inline]
    pub(crate) fn section_pages(&self, pfn: Pfn) -> SectionPages<'m> {
        self.sparse.pages(pfn.section()).expect("a page on a list has a section")
    }

    /// Makes `block`, whose pages are not free, a free buddy block. Nothing of its pageblock is free that it would merge
    /// with to a pageblock.
    #[inline(always)]
    pub(crate) fn insert(&mut self, block: FreeBlock<'_>, place: Place) {
        if block.order() >= Order::PAGEBLOCK {
            self.lists.insert(self.sparse, block, place);
        } else if self.give(&block, place) {
            panic!("{:?} of {:?} makes a pageblock whole", block.pfn(), block.order());
        }
    }

    /// Takes `block`, which is a free buddy block or a part of one that is smaller than a pageblock.
    #[inline(always)]
    pub(crate) fn remove<'s>(&mut self, block: FreeBlock<'s>) -> FreeBlock<'s> {
        if block.order() >= Order::PAGEBLOCK {
            return self.lists.remove(self.sparse, block);
        }
        self.lists.take(self.sparse, &block);
        block
    }

    /// See [`FreeLists::give`].
    #[inline(always)]
    pub(crate) fn give(&mut self, block: &FreeBlock<'_>, place: Place) -> bool {
        self.lists.give(self.sparse, block, place)
    }

    /// See [`FreeLists::give_some`].
    pub(crate) fn give_some(&mut self, block: &FreeBlock<'_>, bits: u64) -> bool {
        self.lists.give_some(self.sparse, block, bits)
    }

    /// See [`FreeLists::take_lowest`].
    #[inline]
    pub(crate) fn take_lowest(&mut self, block: &FreeBlock<'_>) -> Option<(Pfn, u64)> {
        self.lists.take_lowest(self.sparse, block)
    }

    /// Number of free buddy blocks by order and migrate type. Looks at each pageblock that is free in part.
    pub(crate) fn free_blocks(&self) -> [[u32; MigrateType::COUNT]; Order::COUNT] {
        let mut blocks = [[0; MigrateType::COUNT]; Order::COUNT];
        for mt in [MigrateType::Unmovable, MigrateType::Movable, MigrateType::Isolate] {
            for order in (0..Order::COUNT as u8).map(Order::new) {
                if order >= Order::PAGEBLOCK {
                    blocks[order.index()][mt.index()] = self.len(order, mt);
                    continue;
                }
                let mut at = self.first(order, mt);
                while let Some(pfn) = at {
                    let area = self.sparse.area(pfn);
                    let of_area = area.blocks().into_iter().zip(&mut blocks);
                    of_area.for_each(|(count, blocks)| blocks[mt.index()] += count);
                    at = area.words().after().pageblock();
                }
            }
        }
        blocks
    }

    /// See [`FreeLists::set_reported`].
    pub(crate) fn set_reported(&mut self, pfn: Pfn, order: Order, mt: MigrateType) {
        self.lists.set_reported(self.sparse, pfn, order, mt);
    }

    /// See [`FreeLists::rotate_to`].
    pub(crate) fn rotate_to(&mut self, order: Order, mt: MigrateType, pfn: Pfn) {
        self.lists.rotate_to(self.sparse, order, mt, pfn);
    }

    /// See [`FreeLists::retype`].
    pub(crate) fn retype(&mut self, pageblock: Pfn, from: MigrateType, to: MigrateType) {
        self.lists.retype(self.sparse, pageblock, from, to);
    }

    /// See [`FreeLists::append_largest`].
    pub(crate) fn append_largest(&mut self, pages: SectionPages<'_>, range: PfnRange, mt: MigrateType) {
        self.lists.append_largest(self.sparse, pages, range, mt);
    }

    /// Makes `block`, which is on no list, an allocated one. Its pages are not free for any walk that
    /// takes the zone lock later.
    #[inline]
    pub(crate) fn allocate(&self, block: FreeBlock<'_>, holder: Holder) -> Pfn {
        block.head().hold(block.order(), holder);
        block.pfn()
    }

    /// Makes the pages of `block`, which is on no list, allocated single pages.
    pub(crate) fn allocate_pages(&self, block: FreeBlock<'_>, holder: Holder) -> PfnRange {
        let pages = block.section_pages();
        for offset in 0..block.order().pages() {
            pages.page(block.pfn().add(offset)).hold(Order::PAGE, holder);
        }
        block.frames()
    }

    /// Sets or clears the isolation of `pageblocks`, which are not so already, and counts them.
    pub(crate) fn set_isolated(&mut self, pages: SectionPages<'_>, pageblocks: &Range<u32>, isolated: bool) {
        for pageblock in pageblocks.clone() {
            pages.section().pageblocks.set_isolated(pageblock, isolated);
        }
        let count = pageblocks.len() as u64;
        let before = self.zone.nr_isolate_pageblock.load(Relaxed);
        let after = match isolated {
            true => before + count,
            false => before
                .checked_sub(count)
                .unwrap_or_else(|| panic!("{:?} loses {count} of {before} isolated pageblocks", self.zone())),
        };
        // A plain load and store: the lock excludes other writers.
        self.zone.nr_isolate_pageblock.store(after, Relaxed);
    }
}

impl Drop for ZoneGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(any(test, feature = "hosted"))]
        assert!(
            self.lists.free() <= self.zone.managed(),
            "{:?} has {} pages free and {} managed",
            self.zone(),
            self.lists.free(),
            self.zone.managed()
        );
        self.zone.free.store(self.lists.free(), Relaxed);
    }
}
