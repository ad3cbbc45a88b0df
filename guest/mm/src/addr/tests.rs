//! Arithmetic of addresses, and ranges and sets at their ends.

use std::vec::Vec;

use super::{Order, PAGE_SIZE, Pfn, PfnRange, PhysAddr, PhysRange, SectionNr, SectionRange};
use crate::pageblock_set::PageblockSet;

fn range(start: u32, end: u32) -> PfnRange {
    PfnRange::between(Pfn::new(start), Pfn::new(end)).unwrap()
}

#[test]
fn alignment() {
    let at = PhysAddr::new(0x12_3456);
    assert_eq!(at.align_down(0x1000).get(), 0x12_3000);
    assert_eq!(at.align_up(0x1000).get(), 0x12_4000);
    assert_eq!(PhysAddr::new(0x12_4000).align_up(0x1000).get(), 0x12_4000);
    assert!(!at.is_aligned(0x1000) && at.align_up(0x20_0000).is_aligned(0x20_0000));
}

#[test]
fn frames_inside_and_outside() {
    let odd = PhysRange::new(PhysAddr::new(PAGE_SIZE - 1), PAGE_SIZE + 2);
    assert_eq!(odd.inner_frames(), range(1, 2));
    assert_eq!(odd.outer_frames(), range(0, 3));
    let tiny = PhysRange::new(PhysAddr::new(PAGE_SIZE + 1), 10);
    assert!(tiny.inner_frames().is_empty());
    assert_eq!(tiny.outer_frames(), range(1, 2));
}

#[test]
fn chunks_tile_a_range_by_natural_alignment() {
    let chunks: Vec<_> = range(1021, 5000).chunks().map(|(pfn, order)| (pfn.get(), order.get())).collect();
    let expected = [(1021, 0), (1022, 1), (1024, 10), (2048, 10), (3072, 10), (4096, 9), (4608, 8)];
    assert_eq!(chunks[..7], expected);
    assert_eq!(chunks[7..], [(4864, 7), (4992, 3)]);
    assert_eq!(range(7, 7).chunks().count(), 0);
}

#[test]
fn sections_and_pageblocks() {
    let pfn = Pfn::new(3 * 32768 + 513);
    assert_eq!(pfn.section(), SectionNr::new(3));
    assert_eq!((pfn.in_section(), pfn.pageblock()), (513, 1));
    assert_eq!(SectionNr::of(pfn.address()), SectionNr::new(3));
    assert_eq!(SectionNr::new(3).pageblocks(&(63..64)).end(), SectionNr::new(4).start());
    assert_eq!(pfn.align_down(Order::MAX), SectionNr::new(3).start());
    assert_eq!(Pfn::new(512).buddy(Order::PAGEBLOCK), Pfn::new(0));
}

#[test]
fn pageblock_sets() {
    assert_eq!(PageblockSet::range(0..64), PageblockSet::ALL);
    assert_eq!(PageblockSet::range(64..64), PageblockSet::NONE);
    assert_eq!(PageblockSet::range(0..1), PageblockSet::FIRST);
    let set = PageblockSet::range(3..7).union(PageblockSet::range(60..64));
    assert_eq!(set.runs().collect::<Vec<_>>(), [3..7, 60..64]);
    assert_eq!(set.iter().collect::<Vec<_>>(), [3, 4, 5, 6, 60, 61, 62, 63]);
    let windows: Vec<_> = set.windows().map(|window| (window.start, window.end)).collect();
    assert_eq!(windows, [(3, 4), (4, 6), (6, 7), (60, 62), (62, 64)]);
    assert_eq!(PageblockSet::ALL.windows().count(), 32);
    assert_eq!(set.pages(), 8 * 512);
    assert_eq!(PageblockSet::ALL.runs().map(|run| (run.start, run.end)).collect::<Vec<_>>(), [(0, 64)]);
    assert!(set.contains(63) && !set.contains(2));
    assert_eq!(set.without(PageblockSet::range(5..64)).bits(), 0b11000);
}

#[test]
fn a_range_does_not_end_before_it_starts() {
    let [low, high] = [3, 7].map(Pfn::new);
    assert_eq!(PfnRange::between(high, low), None);
    assert_eq!(PfnRange::between(low, low), Some(PfnRange::new(low, 0)));
    assert_eq!(PhysRange::between(high.address(), low.address()), None);
    // For every bound, both parts are ranges and make up the whole.
    let whole = range(3, 7);
    for (pfn, before, from) in [(0, 0, 4), (3, 0, 4), (5, 2, 2), (7, 4, 0), (9, 4, 0)] {
        let pfn = Pfn::new(pfn);
        assert_eq!((whole.before(pfn).pages(), whole.from(pfn).pages()), (before, from), "{pfn:?}");
        assert_eq!(whole.before(pfn).hull(whole.from(pfn)), whole, "{pfn:?}");
    }
}

#[test]
fn sections_of_a_range_have_numbers() {
    let last = SectionNr::new(u32::MAX);
    assert_eq!(SectionRange::new(last, 1), None);
    let range = SectionRange::new(SectionNr::new(5), 3).unwrap();
    assert_eq!((range.len(), range.end()), (3, SectionNr::new(8)));
    assert!(range.sections().eq([5, 6, 7].map(SectionNr::new)));
    assert_eq!(range.before(SectionNr::new(6)).len(), 1);
    assert!(range.before(SectionNr::new(2)).is_empty());
}

#[test]
#[should_panic(expected = "beyond the largest address")]
fn a_range_of_bytes_does_not_wrap() {
    let _ = PhysRange::new(PhysAddr::new(PAGE_SIZE), u64::MAX);
}

#[test]
#[should_panic(expected = "beyond the largest frame number")]
fn a_range_of_frames_does_not_wrap() {
    let _ = PfnRange::new(Pfn::new(1), u32::MAX);
}
