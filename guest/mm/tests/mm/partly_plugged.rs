//! Memory blocks that are plugged in part, in both directions.

use tidevm_mm::{
    Gfp, Holder, MemoryContent, Mm, NodeId, OfflineError, OnlineError, Order, PAGEBLOCK_PAGES, PageblockSet,
    ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{BLOCK, Random, Tenant};

fn machine(memmap_on_memory: bool, plugged: PageblockSet) -> &'static Mm<Sim> {
    let mm = SimMachine {
        options: SimMachine::OPTIONS.with_memmap_on_memory(memmap_on_memory),
        ..SimMachine::default()
    }
    .boot();
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, plugged, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm
}

/// Exactly the pageblocks `plugged` of the memory block are plugged, by the counters and by the direct map.
fn assert_plugged(mm: &Mm<Sim>, plugged: PageblockSet) {
    mm.check();
    assert_eq!(mm.plugged(BLOCK), plugged);
    let zone = mm.stats().zones[2];
    let memmap = mm.stats().memmap_altmap_pages;
    assert_eq!((zone.spanned, zone.present), (32768, 32768));
    assert_eq!(zone.managed, u64::from(plugged.pages()) - memmap);
    for block in 0..64 {
        let first = BLOCK.start().add(block * PAGEBLOCK_PAGES);
        assert_eq!(mm.platform().is_mapped(first), plugged.contains(block), "pageblock {block}");
    }
}

#[test]
fn boundaries() {
    let one = |index: u32| PageblockSet::range(index..index + 1);
    for on in [true, false] {
        let mm = machine(on, PageblockSet::FIRST);
        assert_plugged(mm, PageblockSet::FIRST);
        for set in [one(1), one(63), one(31), PageblockSet::range(2..63), PageblockSet::range(1..64)] {
            let set = set.without(mm.plugged(BLOCK));
            mm.hotplug().online_pageblocks(BLOCK, set).unwrap();
            assert_plugged(mm, set.union(PageblockSet::FIRST));
            mm.hotplug().offline_pageblocks(BLOCK, set).unwrap();
            assert_plugged(mm, PageblockSet::FIRST);
        }
        assert_eq!(mm.hotplug().online_pageblocks(BLOCK, PageblockSet::FIRST), Err(OnlineError::Plugged));
        assert_eq!(mm.hotplug().offline_pageblocks(BLOCK, one(5)), Err(OfflineError::NotPlugged));
        let first = mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::FIRST);
        assert_eq!(first, if on { Err(OfflineError::HoldsMemmap) } else { Ok(()) });
        mm.hotplug().offline(BLOCK).unwrap();
        mm.hotplug().remove_memory(BLOCK).unwrap();
        mm.check();
        assert!(!mm.platform().is_mapped(BLOCK.start()));
    }
}

/// The machine gives a page-table page back with the last mapping that needs it.
#[test]
fn page_tables_come_back_though_pageblocks_leave_in_other_parts() {
    let mm = SimMachine { page_tables: true, ..SimMachine::default() }.boot();
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::FIRST, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    let older = || mm.stats().zones[0].free + mm.stats().zones[0].pcp;
    let whole = vec![PageblockSet::range(1..4)];
    let parts: Vec<_> = (1..4).map(|block| PageblockSet::range(block..block + 1)).collect();
    for (come, leave) in [(&whole, &parts), (&parts, &whole)] {
        let before = older();
        come.iter().for_each(|&set| mm.hotplug().online_pageblocks(BLOCK, set).unwrap());
        assert_eq!(before - older(), come.len() as u64, "page-table pages");
        leave.iter().for_each(|&set| mm.hotplug().offline_pageblocks(BLOCK, set).unwrap());
        assert_eq!(older(), before);
    }
}

/// A free buddy block of 4 MiB is split when a pageblock of it is unplugged, and merged when the pageblock
/// returns.
#[test]
fn largest_blocks_are_cut_and_merged() {
    let mm = machine(true, PageblockSet::ALL);
    let large =
        |mm: &Mm<Sim>| [9, 10].map(|order| mm.free_blocks(NodeId::FIRST.zone(ZoneType::Movable))[order][1]);
    assert_eq!(large(mm), [1, 31]);
    for block in [2, 3, 62, 63] {
        mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(block..block + 1)).unwrap();
        mm.check();
        assert_eq!(large(mm), [2, 30], "without {block}");
        mm.hotplug().online_pageblocks(BLOCK, PageblockSet::range(block..block + 1)).unwrap();
        mm.check();
        assert_eq!(large(mm), [1, 31]);
    }
    mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(5..9)).unwrap();
    assert_eq!(large(mm), [3, 28], "one whole, and a half on either side");
    mm.check();
}

/// Random plugging and unplugging while the memory block holds data. The model is the set itself.
#[test]
fn random_sets() {
    for on in [true, false] {
        let mm = machine(on, PageblockSet::FIRST);
        let tenant = Tenant::new(mm, 0, 40_000);
        let mut random = Random::new("partly_plugged::random_sets");
        let mut plugged = PageblockSet::FIRST;
        let mut next_slot = 0;
        for _ in 0..60 {
            let start = random.below(63) as u32 + 1;
            let end = start + random.below(64 - start as usize) as u32 + 1;
            let set = PageblockSet::range(start..end);
            if random.chance(55) {
                let set = set.without(plugged);
                mm.hotplug().online_pageblocks(BLOCK, set).unwrap();
                plugged = plugged.union(set);
                for _ in 0..200.min(mm.stats().zones[2].free) {
                    if tenant.fill(next_slot, random.next()).is_ok() {
                        next_slot += 1;
                    }
                }
            } else {
                let set = PageblockSet::new(set.bits() & plugged.bits());
                mm.hotplug().offline_pageblocks(BLOCK, set).unwrap();
                plugged = plugged.without(set);
            }
            assert_plugged(mm, plugged);
            tenant.verify_all();
        }
        mm.hotplug().offline(BLOCK).unwrap();
        mm.hotplug().remove_memory(BLOCK).unwrap();
        tenant.verify_all();
        assert_eq!(tenant.release_all(), next_slot);
        mm.check();
    }
}

/// A page that cannot move keeps its pageblock plugged; other pageblocks can be unplugged.
#[test]
fn pinned_pageblock() {
    let mm = machine(true, PageblockSet::ALL);
    let pinned = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    mm.set_holder(pinned, 9);
    let home = pinned.pageblock();
    let all = PageblockSet::range(1..64);
    let Err(OfflineError::Unmovable(stuck)) = mm.hotplug().offline_pageblocks(BLOCK, all) else {
        panic!("pinned")
    };
    assert_eq!((stuck.pages, stuck.first[0]), (1, Some((pinned, Holder::Tagged(9)))));
    assert_plugged(mm, PageblockSet::ALL);
    let others = all.without(PageblockSet::range(home..home + 1));
    mm.hotplug().offline_pageblocks(BLOCK, others).unwrap();
    assert_plugged(mm, PageblockSet::ALL.without(others));
    mm.free_pages(pinned, Order::PAGE);
    mm.hotplug().offline(BLOCK).unwrap();
    mm.check();
}

/// An allocated buddy block of two pageblocks keeps each of them plugged until it is freed.
#[test]
fn a_buddy_block_over_two_pageblocks() {
    let mm = machine(true, PageblockSet::ALL);
    let block = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
    let first = block.pageblock();
    for half in [first, first + 1] {
        let result = mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(half..half + 1));
        let Err(OfflineError::Unmovable(stuck)) = result else { panic!("{result:?}") };
        assert_eq!((stuck.pages, stuck.first[0]), (512, Some((block, Holder::Unclaimed))));
        assert_plugged(mm, PageblockSet::ALL);
    }
    mm.free_pages(block, Order::MAX);
    mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(first..first + 1)).unwrap();
    assert_plugged(mm, PageblockSet::ALL.without(PageblockSet::range(first..first + 1)));
}

/// Unplugged pageblocks do not prevent offlining of their memory block, and are unplugged when it is online
/// again.
#[test]
fn offline_of_a_partly_plugged_block() {
    let plugged = PageblockSet::new(0x5555_0000_ffff_0f0f);
    for on in [true, false] {
        let mm = machine(on, plugged);
        for _ in 0..2 {
            assert_plugged(mm, plugged);
            mm.hotplug().offline(BLOCK).unwrap();
            mm.check();
            mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
        }
        mm.hotplug().offline(BLOCK).unwrap();
        mm.hotplug().remove_memory(BLOCK).unwrap();
        mm.check();
    }
}
