//! How low a request may take a zone, the order in which zones are tried, and the steps of a split.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::vec::Vec;

use crate::addr::{Order, Pfn, PfnRange, SECTION_PAGES, SectionNr};
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::options::MemoryContent;
use crate::page::{Holder, Kind, OwnerId};
use crate::page_alloc::{AllocError, Gfp};
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::sim::{Sim, SimMachine};
use crate::zone::Watermark;
use crate::{Mm, steps};

const DMA32: ZoneId = NodeId::FIRST.zone(ZoneType::Dma32);
const NORMAL: ZoneId = NodeId::FIRST.zone(ZoneType::Normal);

/// Two sections of Dma32 and one of Normal.
fn machine() -> &'static Mm<Sim> {
    let memory = [(0, 2 * SECTION_PAGES), (32 * SECTION_PAGES, SECTION_PAGES)].into();
    SimMachine { memory, ..SimMachine::default() }.boot()
}

/// Takes pages of `zone` from the free lists until `left` are free, without a look at watermarks.
fn leave_free(mm: &Mm<Sim>, zone: ZoneId, left: u64) -> Vec<Pfn> {
    let off = mm.irq_off();
    let mut zone = mm.lock_zone(zone, &off);
    let mut taken = Vec::new();
    while zone.free() > left {
        let block = zone.rmqueue(Order::PAGE, MigrateType::Movable).expect("free pages");
        taken.push(zone.allocate(block, Holder::Unclaimed));
    }
    taken
}

fn zone_of(mm: &Mm<Sim>, pfn: Pfn) -> ZoneId {
    mm.sparse.pages(pfn.section()).expect("a memmap").section().zone()
}

/// The level in pages below which a request for up to `highest` leaves `zone` alone.
fn level(mm: &Mm<Sim>, zone: ZoneId, mark: Watermark, highest: ZoneType) -> u64 {
    mm.zone(zone).watermark(mark) + mm.zone(zone).lowmem_reserve(highest)
}

/// Every zone is tried above its low watermark before any is taken below it.
#[test]
fn no_zone_goes_below_low_while_another_is_above_it() {
    for (gfp, highest) in [(Gfp::Kernel, ZoneType::Normal), (Gfp::Movable, ZoneType::Movable)] {
        let mm = machine();
        leave_free(mm, NORMAL, level(mm, NORMAL, Watermark::Low, highest));
        let order = Order::new(1);
        assert_eq!(mm.alloc_pages(order, gfp).map(|pfn| zone_of(mm, pfn)), Ok(DMA32), "{gfp:?}");
        // With both at the low watermark, the first zone serves below it.
        leave_free(mm, DMA32, level(mm, DMA32, Watermark::Low, highest));
        assert_eq!(mm.alloc_pages(order, gfp).map(|pfn| zone_of(mm, pfn)), Ok(NORMAL), "{gfp:?}");
        mm.check();
    }
}

/// What is left for each purpose: a memmap stops at the low watermark, kernel data and movable pages at the min
/// watermark, and only page tables take the last page. A request takes the pages down to its level, to the page.
#[test]
fn each_purpose_stops_at_its_level() {
    let purposes = [
        (Gfp::Memmap, ZoneType::Normal, Some(Watermark::Low)),
        (Gfp::Kernel, ZoneType::Normal, Some(Watermark::Min)),
        (Gfp::Movable, ZoneType::Movable, Some(Watermark::Min)),
        (Gfp::PageTable, ZoneType::Normal, None),
    ];
    for (gfp, highest, mark) in purposes {
        for order in [0, 1].map(Order::new) {
            let mm = machine();
            let pages = u64::from(order.pages());
            leave_free(mm, NORMAL, 0);
            let level = mark.map_or(0, |mark| level(mm, DMA32, mark, highest));
            leave_free(mm, DMA32, level + pages);
            mm.alloc_pages(order, gfp).expect("the pages above the level");
            mm.drain_pcp(DMA32, mm.hotplug().held());
            leave_free(mm, DMA32, level + pages - 1);
            assert_eq!(mm.alloc_pages(order, gfp), Err(AllocError), "{gfp:?} {order:?}");
            mm.check();
        }
    }
}

/// What is available is what requests for any zone may take down to the high watermarks. A request that no zone serves
/// counts, and one that is served does not.
#[test]
fn memory_is_short_below_the_high_watermarks() {
    let mm = machine();
    for zone in [NORMAL, DMA32] {
        leave_free(mm, zone, level(mm, zone, Watermark::High, ZoneType::Movable) + 3);
    }
    assert_eq!((mm.available_pages(), mm.alloc_failed_movable()), (6, 0));
    leave_free(mm, NORMAL, 0);
    assert_eq!(mm.available_pages(), 3, "what one zone lacks does not count against the other");
    leave_free(mm, DMA32, level(mm, DMA32, Watermark::High, ZoneType::Movable));
    mm.alloc_pages(Order::new(1), Gfp::Movable).expect("memory is short, and not gone");
    assert_eq!((mm.available_pages(), mm.alloc_failed_movable()), (0, 0));
    leave_free(mm, DMA32, 0);
    assert_eq!(mm.alloc_pages(Order::PAGE, Gfp::Movable), Err(AllocError));
    assert_eq!(mm.alloc_pages(Order::new(1), Gfp::Kernel), Err(AllocError));
    assert_eq!((mm.stats().alloc_failed_movable, mm.stats().alloc_failed_kernel), (1, 1));
    mm.check();
}

/// A walk from buddy block to buddy block beside a split finds the head of every part, with the holder of the
/// whole. So the heads of the new parts are written before the old head, and each holder before its state.
#[test]
fn a_walk_beside_a_split_finds_a_head_at_every_step() {
    for to in [0, 5, 9].map(Order::new) {
        let mm = machine();
        let first = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
        mm.set_holder(first, 77);
        let whole = PfnRange::new(first, Order::MAX.pages());
        let walk = move || {
            let mut pfn = whole.start();
            while pfn < whole.end() {
                let page = mm.sparse.page(pfn);
                let state = page.state();
                assert_eq!(state.kind(), Kind::Allocated, "{pfn:?} of a buddy block that is being split");
                assert_eq!(page.holder(page.state()), Holder::Tagged(77), "{pfn:?}");
                pfn = pfn.add(state.order().pages());
            }
            assert_eq!(pfn, whole.end());
        };
        let steps = steps::each(walk, || mm.split_page_to(first, Order::MAX, to));
        assert_eq!(steps, Order::MAX.pages() / to.pages());
        for part in 0..steps {
            mm.free_pages(first.add(part * to.pages()), to);
        }
        mm.check();
    }
}

/// Pages that are freed are the next to be allocated, because their content may still be in the CPU's cache. Within a
/// pageblock the lowest free pages come first, so that its upper part becomes whole.
#[test]
fn freed_pages_are_used_first() {
    for order in [1, 4, 9].map(Order::new) {
        let mm = machine();
        let held: Vec<Pfn> = (0..6).map(|_| mm.alloc_pages(order, Gfp::Kernel).unwrap()).collect();
        // Not side by side, so that they do not become one buddy block.
        mm.free_pages(held[1], order);
        mm.free_pages(held[3], order);
        let again = [(); 2].map(|()| mm.alloc_pages(order, Gfp::Kernel).unwrap());
        let expected = if order < Order::PAGEBLOCK { [held[1], held[3]] } else { [held[3], held[1]] };
        assert_eq!(again, expected, "{order:?}");
    }
}

/// Single pages that lie side by side may be of several sections. Each goes back to its own.
#[test]
fn a_range_over_two_sections_is_freed() {
    let mm = machine();
    leave_free(mm, DMA32, 0);
    let border = SectionNr::new(1).start();
    mm.free_contig_range(PfnRange::new(Pfn::new(border.get() - 700), 1300));
    assert_eq!(mm.zone(DMA32).free(), 1300);
    let of_section = |nr| mm.sparse.entry(SectionNr::new(nr)).free();
    assert_eq!([of_section(0), of_section(1)], [700, 600]);
    mm.check();
}

/// Of pageblocks side by side, one may be isolated. The pages of the other one can be allocated again.
#[test]
fn a_range_over_an_isolated_pageblock_is_freed() {
    for isolated in [10, 11] {
        let mm = machine();
        let nr = SectionNr::new(33);
        mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        mm.hotplug().online(nr, ZoneType::Movable).unwrap();
        let both = PageblockSet::range(10..12);
        mm.hotplug().alloc_contig_range(nr, both).unwrap();
        let pages = mm.sparse.pages(nr).unwrap();
        let zone = pages.section().zone();
        let counts = || {
            let off = mm.irq_off();
            let lists = mm.lock_zone(zone, &off);
            [lists.free(), lists.isolated()]
        };
        let [free, _] = counts();
        let pageblock = PageblockSet::range(isolated..isolated + 1);
        let hotplug = mm.hotplug();
        mm.start_isolate(pages, pageblock).unwrap();
        drop(hotplug);
        mm.free_contig_range(nr.pageblocks(&(10..12)));
        assert_eq!(counts(), [free + 512, 512], "pageblock {isolated} is isolated");
        mm.check();
        mm.undo_isolate(pages, pageblock);
        assert_eq!(counts(), [free + 1024, 0]);
        mm.check();
    }
}

/// A range of single pages that is freed is used first too.
#[test]
fn freed_ranges_are_used_first() {
    let (mm, order) = (machine(), Order::new(4));
    let held: Vec<Pfn> = (0..6).map(|_| mm.alloc_pages(order, Gfp::Kernel).unwrap()).collect();
    mm.free_pages(held[1], order);
    mm.split_page(held[3], order);
    mm.free_contig_range(PfnRange::new(held[3], order.pages()));
    let again = [(); 2].map(|()| mm.alloc_pages(order, Gfp::Kernel).unwrap());
    assert_eq!(again, [held[1], held[3]]);
}

/// A call with a page that is not what the caller says panics, and the message says what was found.
#[test]
fn wrong_pages_are_not_touched() {
    let mm = machine();
    let [pair, freed] = [(); 2].map(|()| mm.alloc_pages(Order::new(1), Gfp::Movable).unwrap());
    mm.free_pages(freed, Order::new(1));
    let calls: [(&str, &dyn Fn()); 8] = [
        ("not an allocated block", &|| mm.split_page(pair, Order::new(2))),
        ("not an allocated block", &|| mm.split_page(freed, Order::new(1))),
        ("splits", &|| mm.split_page_to(pair, Order::new(1), Order::new(2))),
        ("not an allocated block", &|| mm.set_owner(pair, OwnerId(0), 1)),
        ("not an allocated block", &|| mm.set_owner(freed, OwnerId(0), 1)),
        ("more than 48 bits", &|| mm.set_owner(pair, OwnerId(0), 1 << 48)),
        ("not an allocated block", &|| mm.set_holder(freed, 1)),
        ("not an allocated block", &|| mm.free_pages(pair, Order::PAGE)),
    ];
    for (at, (expected, call)) in calls.into_iter().enumerate() {
        let Err(panic) = catch_unwind(AssertUnwindSafe(call)) else { panic!("call {at} did not panic") };
        let text = panic.downcast_ref::<String>().expect("a message");
        assert!(text.contains(expected), "call {at}: {text}");
    }
    mm.check();
}
