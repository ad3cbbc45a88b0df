//! Free memory that is lent to the host, and comes back marked.

use std::collections::BTreeSet;

use tidevm_mm::{
    Gfp, Holder, InitPolicy, Lent, MemoryContent, Mm, NodeId, OfflineError, Order, PAGEBLOCK_PAGES,
    PageblockSet, Pfn, PfnRange, REPORTING_CAPACITY, SECTION_PAGES, SectionNr, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{BLOCK, POLICIES, Random, Tenant};

/// What the host finds in memory that it has taken back.
const TAKEN: u64 = 0x7a6e;

/// 128 MiB of boot memory and one memory block.
fn machine() -> &'static Mm<Sim> {
    let mm = SimMachine { memory: [(0, SECTION_PAGES)].into(), ..SimMachine::default() }.boot();
    online(mm, BLOCK);
    mm
}

fn online(mm: &Mm<Sim>, nr: SectionNr) {
    mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(nr, ZoneType::Movable).unwrap();
}

/// Lends memory once. The host takes it.
fn lend(mm: &Mm<Sim>) -> Lent {
    let mut lent = Lent::default();
    for looks in 0.. {
        assert!(looks < 1000, "a search that does not come to its end");
        if !(mm.lend_unreported(&mut lent) && lent.is_empty()) {
            break;
        }
    }
    for pfn in lent.ranges().flat_map(PfnRange::frames) {
        mm.platform().write(pfn, TAKEN);
    }
    lent
}

/// Reports until there is no more. Returns the ranges in the order in which they were lent.
fn report_all(mm: &Mm<Sim>) -> Vec<PfnRange> {
    let mut all = Vec::new();
    loop {
        let mut lent = lend(mm);
        if lent.is_empty() {
            return all;
        }
        all.extend(lent.ranges());
        mm.put_back(&mut lent, true);
        mm.check();
    }
}

fn pages(ranges: &[PfnRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.pages())).sum()
}

/// Pages of free buddy blocks that are reported, marked or not.
fn large_free(mm: &Mm<Sim>) -> u64 {
    let zones = ZoneType::ALL.map(|zone| NodeId::FIRST.zone(zone));
    let of = |zone| {
        let blocks = mm.free_blocks(zone);
        let orders = [Order::PAGEBLOCK, Order::MAX];
        orders.map(|order| {
            u64::from(order.pages()) * blocks[usize::from(order.get())].map(u64::from).iter().sum::<u64>()
        })
    };
    zones.into_iter().flat_map(of).sum()
}

#[test]
fn free_memory_is_reported_once() {
    let mm = machine();
    let reported = report_all(mm);
    assert_eq!(pages(&reported), large_free(mm));
    let frames: BTreeSet<Pfn> = reported.iter().copied().flat_map(PfnRange::frames).collect();
    assert_eq!(frames.len() as u64, pages(&reported), "each page once");
    assert_eq!(report_all(mm), []);
}

#[test]
fn memory_that_was_used_is_reported_again() {
    let mm = machine();
    report_all(mm);
    for order in [Order::MAX, Order::PAGEBLOCK, Order::new(3)] {
        let used = mm.alloc_pages(order, Gfp::Movable).unwrap();
        mm.free_pages(used, order);
        let again = report_all(mm);
        assert!(again.iter().any(|range| range.contains(used)), "{order:?}: {used:?} is not in {again:?}");
        assert!(pages(&again) <= 2 * u64::from(Order::MAX.pages()), "{order:?}: {again:?}");
    }
    // Pages that went through a per-CPU list, and only some of those that were listed were used.
    let used = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    mm.free_pages(used, Order::PAGE);
    ZoneType::ALL.iter().for_each(|&zone| drop(mm.zone_pcp_disable(NodeId::FIRST.zone(zone))));
    let again = report_all(mm);
    assert!(again.iter().any(|range| range.contains(used)), "{used:?} is not in {again:?}");
}

#[test]
fn a_block_that_came_back_and_merged_is_reported_as_a_whole() {
    let mm = machine();
    let block = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
    report_all(mm);
    mm.split_page_to(block, Order::MAX, Order::PAGEBLOCK);
    mm.free_pages(block, Order::PAGEBLOCK);
    let half = PfnRange::new(block, PAGEBLOCK_PAGES);
    assert_eq!(report_all(mm), [half]);
    mm.free_pages(half.end(), Order::PAGEBLOCK);
    assert_eq!(report_all(mm), [PfnRange::new(block, Order::MAX.pages())]);
}

/// What is told the host is the smaller block, and what is on the list is the larger one.
#[test]
fn a_block_whose_buddy_was_freed_meanwhile_comes_back_without_a_mark() {
    for lower_first in [true, false] {
        let mm = machine();
        let block = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
        report_all(mm);
        mm.split_page_to(block, Order::MAX, Order::PAGEBLOCK);
        let upper = PfnRange::new(block, PAGEBLOCK_PAGES).end();
        let (first, second) = if lower_first { (block, upper) } else { (upper, block) };
        mm.free_pages(first, Order::PAGEBLOCK);
        let mut lent = lend(mm);
        assert_eq!(lent.ranges().map(PfnRange::start).collect::<Vec<_>>(), [first]);
        mm.free_pages(second, Order::PAGEBLOCK);
        mm.put_back(&mut lent, true);
        mm.check();
        assert_eq!(report_all(mm), [PfnRange::new(block, Order::MAX.pages())]);
    }
}

#[test]
fn memory_that_the_host_did_not_take_is_reported_again() {
    let mm = machine();
    let mut lent = lend(mm);
    let first: Vec<PfnRange> = lent.ranges().collect();
    assert_eq!(first.len(), REPORTING_CAPACITY.min(first.len()));
    mm.put_back(&mut lent, false);
    mm.check();
    assert_eq!(pages(&report_all(mm)), large_free(mm));
}

#[test]
fn memory_that_is_lent_is_neither_allocated_nor_taken_offline() {
    let mm = machine();
    let tenant = Tenant::new(mm, 0, 8);
    tenant.fill(0, 1).unwrap();
    let mut lent = lend(mm);
    let out: BTreeSet<Pfn> = lent.ranges().flat_map(PfnRange::frames).collect();
    assert!(out.iter().any(|pfn| BLOCK.frames().contains(*pfn)));
    mm.check();
    let mut taken = Vec::new();
    while let Ok(pfn) = mm.alloc_pages(Order::PAGE, Gfp::Movable) {
        assert!(!out.contains(&pfn), "{pfn:?} is lent");
        taken.push(pfn);
    }
    taken.into_iter().for_each(|pfn| mm.free_pages(pfn, Order::PAGE));
    match mm.hotplug().offline(BLOCK) {
        Err(OfflineError::Unmovable(stuck)) => {
            assert!(stuck.first.iter().flatten().all(|(_, holder)| *holder == Holder::Lent), "{stuck}");
        }
        other => panic!("memory that is lent goes offline: {other:?}"),
    }
    assert_eq!(mm.stats().pages_migrated, 0, "pages were moved for nothing");
    assert!(out.iter().all(|&pfn| mm.platform().read(pfn) == TAKEN), "somebody wrote to memory that is lent");
    mm.check();
    mm.put_back(&mut lent, true);
    mm.hotplug().offline(BLOCK).unwrap();
    assert_eq!(mm.stats().pages_migrated, 1);
    tenant.verify_all();
    mm.check();
}

/// Isolation takes marked blocks off their lists, and puts them back when it is undone.
#[test]
fn memory_that_is_marked_goes_offline_and_comes_back() {
    for policy in POLICIES {
        let options = SimMachine::OPTIONS.with_init(policy.0).with_content(policy.1);
        let mm = SimMachine { memory: [(0, SECTION_PAGES)].into(), options, ..SimMachine::default() }.boot();
        online(mm, BLOCK);
        let pinned = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
        mm.set_holder(pinned, 7);
        report_all(mm);
        assert!(matches!(mm.hotplug().offline(BLOCK), Err(OfflineError::Unmovable(_))));
        mm.check();
        mm.free_pages(pinned, Order::PAGE);
        report_all(mm);
        mm.hotplug().offline(BLOCK).unwrap();
        mm.hotplug().remove_memory(BLOCK).unwrap();
        mm.check();
        online(mm, BLOCK);
        assert!(report_all(mm).iter().any(|range| BLOCK.frames().contains(range.start())));
    }
}

#[test]
fn little_memory_is_lent_at_a_time() {
    let mm = machine();
    let movable = |mm: &Mm<Sim>| mm.stats().zones[ZoneType::Movable as usize].free;
    let mut held = Vec::new();
    loop {
        let before = movable(mm);
        let mut lent = lend(mm);
        let frames = BLOCK.frames();
        let out: u64 = lent
            .ranges()
            .filter(|range| frames.contains(range.start()))
            .map(|range| u64::from(range.pages()))
            .sum();
        assert!(out * 4 <= before, "{out} of {before} pages");
        assert_eq!(movable(mm), before - out);
        mm.put_back(&mut lent, false);
        if before < 8 * u64::from(Order::MAX.pages()) {
            break;
        }
        held.push(mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap());
    }
    held.into_iter().for_each(|pfn| mm.free_pages(pfn, Order::MAX));
}

/// One block that was used stands behind more marked ones than are looked at under one hold of the lock.
#[test]
fn a_long_list_is_searched_in_parts() {
    const SECTIONS: u32 = 12;
    let memory = vec![(0, SECTIONS * SECTION_PAGES)];
    let mm = SimMachine { memory, sections: 40, ..SimMachine::default() }.boot();
    online(mm, SectionNr::new(32));
    let first: Vec<Pfn> = std::iter::from_fn(|| mm.alloc_pages(Order::MAX, Gfp::Kernel).ok()).collect();
    let (last, others) = first.split_last().unwrap();
    assert!(others.len() > 300, "{}", others.len());
    // The last one is free and marked, and others are put before it.
    others.iter().for_each(|&pfn| mm.free_pages(pfn, Order::MAX));
    report_all(mm);
    mm.free_pages(*last, Order::MAX);
    // Blocks that are taken and given back unmarked go to the head, so the one at the tail is made by hand.
    let mut lent = lend(mm);
    assert_eq!(lent.ranges().map(PfnRange::start).collect::<Vec<_>>(), [*last]);
    mm.put_back(&mut lent, false);
    mm.check();
    let again = report_all(mm);
    assert_eq!(again, [PfnRange::new(*last, Order::MAX.pages())], "it went to the end of its list");
    mm.check();
}

#[test]
fn memory_that_was_never_touched_is_not_reported() {
    let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
    let memory = vec![(0, 8 * SECTION_PAGES)];
    let mm = SimMachine { memory, options, ..SimMachine::default() }.boot();
    let written = mm.stats().memmaps_written;
    let reported = pages(&report_all(mm));
    let deferred: u64 = mm.stats().zones.iter().map(|zone| zone.deferred).sum();
    assert!(deferred >= 6 * u64::from(SECTION_PAGES), "{deferred} pages are left alone");
    assert!(reported <= 2 * u64::from(SECTION_PAGES), "{reported} pages");
    assert_eq!(mm.stats().memmaps_written, written);
}

/// Allocations, frees and migrations in any order between reports. A page's content is its owner's, unless the page is
/// lent.
#[test]
fn reports_change_nothing_that_is_in_use() {
    let mm = machine();
    let tenant = Tenant::new(mm, 0, 4000);
    let mut random = Random::new("reporting::reports_change_nothing_that_is_in_use");
    let mut lent = Lent::default();
    let mut blocks: Vec<(Pfn, Order)> = Vec::new();
    let (mut out, mut refused) = (0, 0);
    for step in 0..600 {
        match random.below(10) {
            0..3 => {
                for _ in 0..random.below(800) {
                    let slot = random.below(4000);
                    if !tenant.release(slot) {
                        tenant.fill(slot, random.next()).unwrap();
                    }
                }
            }
            3..5 => {
                let order = Order::new(random.below(Order::COUNT) as u8);
                if let Ok(pfn) = mm.alloc_pages(order, Gfp::Kernel) {
                    mm.platform().write(pfn, step);
                    blocks.push((pfn, order));
                }
            }
            5..7 if !blocks.is_empty() => {
                let (pfn, order) = blocks.swap_remove(random.below(blocks.len()));
                mm.free_pages(pfn, order);
            }
            7 if lent.is_empty() => {
                lent = lend(mm);
                out += lent.ranges().len();
            }
            8 => {
                for pfn in lent.ranges().flat_map(PfnRange::frames) {
                    assert_eq!(mm.platform().read(pfn), TAKEN, "{pfn:?} was written while it was lent");
                }
                mm.put_back(&mut lent, random.chance(80));
            }
            9 => {
                let offline = mm.hotplug().offline(BLOCK);
                match offline {
                    Ok(()) => mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap(),
                    Err(_) => refused += 1,
                }
            }
            _ => {}
        }
        if step % 10 == 0 {
            mm.check();
            tenant.verify_all();
        }
    }
    assert!(out > 100 && refused > 0, "{out} blocks were lent, {refused} times a memory block stayed online");
    mm.put_back(&mut lent, true);
    blocks.into_iter().for_each(|(pfn, order)| mm.free_pages(pfn, order));
    tenant.release_all();
    mm.check();
}

#[test]
#[should_panic(expected = "is not lent")]
fn what_is_not_lent_is_not_put_back() {
    let mm = machine();
    let mut lent = lend(mm);
    let first = lent.ranges().next().unwrap();
    mm.free_pages(
        first.start(),
        if first.pages() == PAGEBLOCK_PAGES { Order::PAGEBLOCK } else { Order::MAX },
    );
    mm.put_back(&mut lent, true);
}
