//! The memory that is deferred: sorted ranges of memory blocks that no CPU has claimed.
//!
//! Takes the place of Linux `pgdat->first_deferred_pfn`, one frame number per node. Differs from Linux on
//! purpose: memory that was plugged is deferred as boot memory is, and both can be taken from anywhere in a
//! range, so a machine has several ranges.
//!
//! Invariants: the ranges are sorted, do not overlap, and are made of whole memory blocks. Two ranges that
//! could be one are one.

use arrayvec::ArrayVec;

use crate::addr::{MEMMAP_PAGES, Pfn, SECTION_PAGES, SectionNr, SectionRange};
use crate::geometry::DEFERRED_RANGES;
use crate::node::ZoneId;

/// Where deferred memory comes from, and what is needed to initialise it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Boot memory. Each section is a memory block of its own.
    Boot {
        /// Where the memmap of the first section goes; the memmaps of the others follow.
        memmap: Pfn,
    },
    /// Memory that was plugged, all of it. The memmap of each memory block goes to its start.
    Plugged {
        /// Sections of a memory block.
        block: u32,
        /// Whether the memory is zero.
        zeroed: bool,
    },
}

/// Consecutive memory blocks of one zone that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeferredRange {
    pub(crate) sections: SectionRange,
    pub(crate) zone: ZoneId,
    pub(crate) origin: Origin,
}

impl DeferredRange {
    /// Sections of a memory block.
    pub(crate) fn block(&self) -> u32 {
        match self.origin {
            Origin::Boot { .. } => 1,
            Origin::Plugged { block, .. } => block,
        }
    }

    /// Number of memory blocks.
    pub(crate) fn blocks(&self) -> u32 {
        self.sections.len() / self.block()
    }

    pub(crate) fn is_boot(&self) -> bool {
        matches!(self.origin, Origin::Boot { .. })
    }

    /// Pages of plugged memory that the allocator manages: all but the memmaps.
    pub(crate) fn plugged_managed(&self) -> u64 {
        u64::from(self.sections.len()) * u64::from(SECTION_PAGES - MEMMAP_PAGES)
    }

    /// Pageblocks at the start of section `nr` in which plugged memory will hold the memmap of its memory block.
    pub(crate) fn memmap_pageblocks(&self, nr: SectionNr) -> u32 {
        let is_first = nr.get().is_multiple_of(self.block());
        if is_first && !self.is_boot() { self.block() } else { 0 }
    }

    /// The part of it that `sections` are, which lie in it.
    fn part(&self, sections: SectionRange) -> Self {
        let origin = self.origin_from(sections.first().get() - self.sections.first().get());
        Self { sections, origin, ..*self }
    }

    /// Its memory blocks from section `from` on, if there are any.
    pub(crate) fn whole_from(&self, from: SectionNr) -> Option<Self> {
        let first = SectionNr::new(from.get().next_multiple_of(self.block()));
        let sections = self.sections.from(first);
        (!sections.is_empty()).then(|| self.part(sections))
    }

    /// The origin of what comes `skip` sections behind its start.
    fn origin_from(&self, skip: u32) -> Origin {
        match self.origin {
            Origin::Boot { memmap } => Origin::Boot { memmap: memmap.add(skip * MEMMAP_PAGES) },
            plugged @ Origin::Plugged { .. } => plugged,
        }
    }

    /// Whether `next` begins where this ends and is alike.
    fn is_continued_by(&self, next: &Self) -> bool {
        let end = (self.sections.end(), self.zone, self.origin_from(self.sections.len()));
        end == (next.sections.first(), next.zone, next.origin)
    }
}

/// The ranges.
#[derive(Clone)]
pub(crate) struct DeferredRanges(ArrayVec<DeferredRange, DEFERRED_RANGES>);

impl DeferredRanges {
    pub(crate) const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// The ranges, ascending.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &DeferredRange> {
        self.0.iter()
    }

    /// The range that holds section `nr`.
    pub(crate) fn find(&self, nr: SectionNr) -> Option<&DeferredRange> {
        self.0.iter().find(|range| range.sections.contains(nr))
    }

    /// Whether any of `sections` is deferred.
    pub(crate) fn intersects(&self, sections: SectionRange) -> bool {
        self.0.iter().any(|range| range.sections.intersects(sections))
    }

    /// Adds `range`, none of which is deferred. False when there is no room for one more range.
    #[must_use]
    pub(crate) fn insert(&mut self, range: DeferredRange) -> bool {
        let mut at = self.0.partition_point(|other| other.sections.first() < range.sections.first());
        if let Some(before) = at.checked_sub(1).map(|before| &mut self.0[before])
            && before.is_continued_by(&range)
        {
            before.sections = before.sections.hull(range.sections);
            at -= 1;
        } else if self.0.try_insert(at, range).is_err() {
            return false;
        }
        if let Some(next) = self.0.get(at + 1).copied()
            && self.0[at].is_continued_by(&next)
        {
            self.0[at].sections = self.0[at].sections.hull(next.sections);
            self.0.remove(at + 1);
        }
        true
    }

    /// Takes the lowest memory block of `zone`.
    pub(crate) fn pop(&mut self, zone: ZoneId) -> Option<DeferredRange> {
        let at = self.0.iter().position(|range| range.zone == zone)?;
        let first = self.0[at].sections.first();
        Some(self.take(at, SectionRange::new(first, self.0[at].block()).expect("it is in the range")))
    }

    /// Takes plugged memory in `wanted`: the lowest part that lies in one range, widened to whole memory blocks. When
    /// there is no room for one more range, the part may reach up to the range's end.
    pub(crate) fn take_plugged(&mut self, wanted: SectionRange) -> Option<DeferredRange> {
        let is_wanted = |range: &DeferredRange| !range.is_boot() && range.sections.intersects(wanted);
        let at = self.0.iter().position(is_wanted)?;
        Some(self.take(at, wanted))
    }

    fn take(&mut self, at: usize, wanted: SectionRange) -> DeferredRange {
        let range = self.0[at];
        // The first section of a memory block is a multiple of its size.
        let block = range.block();
        let whole = |nr: SectionNr| SectionNr::new(nr.get().next_multiple_of(block));
        let down = |nr: SectionNr| SectionNr::new(nr.get() / block * block);
        let first = down(wanted.first()).max(range.sections.first());
        let mut end = whole(wanted.end()).min(range.sections.end());
        let is_inside = range.sections.first() < first && end < range.sections.end();
        if is_inside && self.0.is_full() {
            end = range.sections.end();
        }
        let rest = [range.sections.before(first), range.sections.from(end)];
        match rest.map(|rest| (!rest.is_empty()).then(|| range.part(rest))) {
            [None, None] => drop(self.0.remove(at)),
            [Some(rest), None] | [None, Some(rest)] => self.0[at] = rest,
            [Some(lower), Some(upper)] => {
                self.0[at] = lower;
                self.0.insert(at + 1, upper);
            }
        }
        range.part(range.sections.from(first).before(end))
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::{DEFERRED_RANGES, DeferredRange, DeferredRanges, Origin};
    use crate::addr::{MEMMAP_PAGES, Pfn, SectionNr, SectionRange};
    use crate::node::{NodeId, ZoneId, ZoneType};

    const BLOCK: Origin = Origin::Plugged { block: 2, zeroed: true };

    fn zone(zone: ZoneType) -> ZoneId {
        NodeId::FIRST.zone(zone)
    }

    fn sections(first: u32, end: u32) -> SectionRange {
        SectionRange::new(SectionNr::new(first), end - first).expect("a small number")
    }

    fn range(first: u32, end: u32, origin: Origin) -> DeferredRange {
        DeferredRange { sections: sections(first, end), zone: zone(ZoneType::Movable), origin }
    }

    fn boot(memmap: u32) -> Origin {
        Origin::Boot { memmap: Pfn::new(memmap * MEMMAP_PAGES) }
    }

    fn of(list: &[DeferredRange]) -> DeferredRanges {
        let mut ranges = DeferredRanges::new();
        list.iter().for_each(|&range| assert!(ranges.insert(range)));
        ranges
    }

    fn all(ranges: &DeferredRanges) -> Vec<DeferredRange> {
        ranges.iter().copied().collect()
    }

    #[test]
    fn ranges_that_continue_each_other_are_one() {
        let both = of(&[range(8, 12, BLOCK), range(4, 6, BLOCK), range(6, 8, BLOCK)]);
        assert_eq!(all(&both), [range(4, 12, BLOCK)]);
        let boots = of(&[range(5, 7, boot(11)), range(1, 5, boot(7))]);
        assert_eq!(all(&boots), [range(1, 7, boot(7))]);
        let unlike = [
            range(0, 2, BLOCK),
            range(2, 4, Origin::Plugged { block: 1, zeroed: true }),
            range(4, 6, Origin::Plugged { block: 1, zeroed: false }),
            DeferredRange { zone: zone(ZoneType::Normal), ..range(6, 8, BLOCK) },
            range(8, 10, BLOCK),
            range(10, 11, boot(3)),
            range(11, 12, boot(5)),
            range(13, 14, boot(7)),
        ];
        assert_eq!(all(&of(&unlike)), unlike);
    }

    #[test]
    fn memory_blocks_are_taken_from_the_bottom() {
        let normal = DeferredRange { zone: zone(ZoneType::Normal), ..range(2, 4, boot(9)) };
        let mut ranges = of(&[range(8, 12, BLOCK), normal]);
        assert_eq!(ranges.pop(zone(ZoneType::Movable)), Some(range(8, 10, BLOCK)));
        let first = DeferredRange { sections: sections(2, 3), ..normal };
        assert_eq!(ranges.pop(zone(ZoneType::Normal)), Some(first));
        let left = DeferredRange { sections: sections(3, 4), origin: boot(10), ..normal };
        assert_eq!(all(&ranges), [left, range(10, 12, BLOCK)]);
        assert_eq!(ranges.pop(zone(ZoneType::Movable)), Some(range(10, 12, BLOCK)));
        assert_eq!(ranges.pop(zone(ZoneType::Movable)), None);
    }

    #[test]
    fn a_part_is_widened_to_whole_memory_blocks() {
        let mut ranges = of(&[range(4, 12, BLOCK)]);
        assert_eq!(ranges.take_plugged(sections(7, 9)), Some(range(6, 10, BLOCK)));
        assert_eq!(all(&ranges), [range(4, 6, BLOCK), range(10, 12, BLOCK)]);
        assert_eq!(ranges.take_plugged(sections(6, 10)), None);
        assert!(ranges.intersects(sections(5, 6)) && !ranges.intersects(sections(6, 10)));
        assert_eq!(ranges.take_plugged(sections(0, 20)), Some(range(4, 6, BLOCK)));
        assert_eq!(ranges.take_plugged(sections(0, 20)), Some(range(10, 12, BLOCK)));
        assert_eq!(all(&ranges), []);
        let mut boot = of(&[range(4, 12, boot(0))]);
        assert_eq!(boot.take_plugged(sections(0, 20)), None, "boot memory stays");
    }

    #[test]
    fn a_full_table_gives_more_than_was_wanted() {
        let list = (0..DEFERRED_RANGES as u32 - 1).map(|at| range(8 * at, 8 * at + 6, BLOCK));
        let mut ranges = of(&list.collect::<Vec<_>>());
        assert_eq!(
            ranges.take_plugged(sections(2, 4)),
            Some(range(2, 4, BLOCK)),
            "the last room for a range"
        );
        let before = all(&ranges);
        assert!(!ranges.insert(range(1000, 1002, BLOCK)));
        assert_eq!(all(&ranges), before);
        assert_eq!(ranges.take_plugged(sections(10, 12)), Some(range(10, 14, BLOCK)));
        assert!(ranges.insert(range(10, 14, BLOCK)), "it continues the range before it");
        assert_eq!(all(&ranges), before);
    }
}
