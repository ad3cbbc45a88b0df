//! memmap on memory: a test has the name of the row of S4 that it proves (`docs/features.md`). Memory blocks
//! have one section or several, and are added one at a time or in ranges.

use std::sync::{Arc, Mutex};

use tidevm_mm::{
    AddError, FaultStep, Gfp, Holder, InitPolicy, MemoryContent, MhpFlags, MigrateType, Mm, NodeId,
    OfflineAndRemoveError, OfflineError, OnlineError, Order, PageblockSet, Pfn, RemovalPolicy, RemoveError,
    SectionNr, SectionRange, SectionState, ZoneStats, ZoneType,
};
use tidevm_mm_sim::{PlatformCall, Sim, SimMachine};

use crate::faults::state_of;
use crate::steps;
use crate::workload::{BLOCK, Tenant};

const NODE: NodeId = NodeId::FIRST;
const MOVABLE: usize = ZoneType::Movable as usize;
/// Sections of the machines here: room for 2 GiB at 4 GiB.
const SECTIONS: u32 = 48;
/// Sections of a memory block of 1 GiB.
const GIB: usize = 8;

fn machine(memmap_on_memory: bool) -> &'static Mm<Sim> {
    SimMachine {
        sections: SECTIONS,
        options: SimMachine::OPTIONS.with_memmap_on_memory(memmap_on_memory),
        ..SimMachine::default()
    }
    .boot()
}

fn machine_with(removal: RemovalPolicy) -> &'static Mm<Sim> {
    SimMachine {
        sections: SECTIONS,
        options: SimMachine::OPTIONS.with_removal(removal),
        ..SimMachine::default()
    }
    .boot()
}

/// Adds a memory block of `sections` sections, wholly plugged.
fn add(mm: &Mm<Sim>, nr: SectionNr, sections: usize) -> Result<(), AddError> {
    mm.hotplug().add_memory(NODE, nr, vec![PageblockSet::ALL; sections], MemoryContent::Unknown)
}

fn movable(mm: &Mm<Sim>) -> ZoneStats {
    mm.stats().zones[MOVABLE]
}

fn section(offset: u32) -> SectionNr {
    SectionNr::new(BLOCK.get() + offset)
}

fn range(offset: u32, count: u32) -> SectionRange {
    SectionRange::new(section(offset), count).expect("the numbers are small")
}

/// Free buddy blocks of Movable by order, after the per-CPU lists are drained.
fn buddy(mm: &Mm<Sim>) -> [u32; Order::COUNT] {
    drop(mm.zone_pcp_disable(NODE.zone(ZoneType::Movable)));
    mm.free_blocks(NODE.zone(ZoneType::Movable)).map(|types| types.iter().sum())
}

/// Pages of memmap in older memory and in new memory.
fn memmap(mm: &Mm<Sim>) -> [u64; 2] {
    [mm.stats().memmap_boot_pages, mm.stats().memmap_altmap_pages]
}

type Row = (usize, usize, bool, [u64; 3], [u32; 2], [u32; 2]);

/// Counters of Linux 6.12. Input: sections per memory block, number of memory blocks, memmap on memory or not.
/// Output: present, managed and memmap pages; free buddy blocks of order 10 and 9; unmovable and movable
/// pageblocks.
const LINUX: [Row; 8] = [
    (1, 1, false, [32_768, 32_768, 512], [32, 0], [0, 64]),
    (1, 1, true, [32_768, 32_256, 512], [31, 1], [1, 63]),
    (8, 1, false, [262_144, 262_144, 4096], [256, 0], [0, 512]),
    (8, 1, true, [262_144, 258_048, 4096], [252, 0], [8, 504]),
    (8, 2, true, [524_288, 516_096, 8192], [504, 0], [16, 1008]),
    (16, 1, true, [524_288, 516_096, 8192], [504, 0], [16, 1008]),
    (16, 1, false, [524_288, 524_288, 8192], [512, 0], [0, 1024]),
    (1, 16, true, [524_288, 516_096, 8192], [496, 16], [16, 1008]),
];

/// S4.1, S4.6, S4.21: the counters are those of Linux to the page, in every state.
#[test]
fn s4_accounting_is_linuxs_table() {
    for (block, count, on, [present, managed, pages], [order_10, order_9], types) in LINUX {
        let mm = machine(on);
        let start = state_of(mm, SECTIONS);
        let name = format!("{count} of {block} sections, memmap on memory {on}");
        let firsts = || (0..count).map(|index| section((index * block) as u32));
        let free = mm.stats().zones[0].free;
        firsts().for_each(|nr| add(mm, nr, block).unwrap());
        let added = state_of(mm, SECTIONS);
        assert_eq!(memmap(mm), if on { [0, pages] } else { [pages, 0] }, "{name}");
        // S4.1: 512 pages of older memory per section.
        assert_eq!(free - mm.stats().zones[0].free, if on { 0 } else { pages }, "{name}");
        assert_eq!([movable(mm).spanned, movable(mm).present, movable(mm).managed], [0; 3], "{name}");

        firsts().for_each(|nr| mm.hotplug().online(nr, ZoneType::Movable).unwrap());
        mm.check();
        let ZoneStats { spanned, free, .. } = movable(mm);
        assert_eq!(
            [spanned, movable(mm).present, movable(mm).managed, free],
            [present, present, managed, managed],
            "{name}"
        );
        let mut expected = [0; Order::COUNT];
        (expected[10], expected[9]) = (order_10, order_9);
        assert_eq!(buddy(mm), expected, "{name}");
        let found = (0..(block * count) as u32).map(|offset| mm.pageblock_types(section(offset)));
        let sum = found.fold([0; 2], |sum, types| {
            [sum[0] + types[MigrateType::Unmovable.index()], sum[1] + types[MigrateType::Movable.index()]]
        });
        assert_eq!(sum, types, "{name}");
        assert_eq!(mm.stats().blocks_online, 2 + count as u64, "{name}");

        firsts().for_each(|nr| mm.hotplug().offline(nr).unwrap());
        assert_eq!(state_of(mm, SECTIONS), added, "{name}: the counters of an added memory block");
        firsts().for_each(|nr| mm.hotplug().remove_memory(nr).unwrap());
        assert_eq!(state_of(mm, SECTIONS), start, "{name}: removed");
    }
}

/// S4.2: a guest of 256 MiB, half of it in use, grows by 12 GiB in 96 memory blocks. Linux runs out of memory
/// after 62, rolls nothing back and panics.
#[test]
fn s4_2_growing_far_is_a_clean_error_without_and_works_with() {
    for on in [false, true] {
        let content = MemoryContent::Zero;
        let machine = SimMachine {
            sections: 32 + 96,
            reserved: [(0, 32_768)].into(),
            options: SimMachine::OPTIONS
                .with_memmap_on_memory(on)
                .with_content(content)
                .with_init(InitPolicy::Lazy),
            ..SimMachine::default()
        };
        let mm = machine.boot();
        while mm.init_deferred() {}
        let start = state_of(mm, 32 + 96);
        let free = mm.stats().zones[0].free;
        let result = mm.hotplug().add_memory_range(NODE, range(0, 96), 1, content);
        if on {
            assert_eq!(result, Ok(()));
            assert_eq!(mm.stats().zones[0].free, free, "no page of older memory is used");
            (0..96).for_each(|offset| mm.hotplug().online(section(offset), ZoneType::Movable).unwrap());
            mm.check();
            assert_eq!([movable(mm).present, movable(mm).managed], [3_145_728, 3_096_576]);
        } else {
            assert_eq!(result, Err(AddError::NoMemory));
            assert_eq!(state_of(mm, 32 + 96), start);
        }
    }
}

/// S4.3: also on a node that has only movable memory, the memmap lies on the node.
#[test]
fn s4_3_memmap_is_on_the_node_of_its_memory() {
    for on in [false, true] {
        let mm = machine(on);
        let far = NodeId::new(1);
        mm.hotplug().add_memory(far, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
        mm.check();
        let next = section(1);
        mm.hotplug().add_memory(far, next, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        let memmap = mm.platform().memmap_of(next).unwrap();
        // Without memmap on memory no page of the node can hold the memmap: all of them are movable.
        assert_eq!(memmap >= BLOCK.start(), on, "memmap at {memmap:?}");
        assert_eq!(mm.stats().nodes[1][MOVABLE].present, 32_768);
    }
}

/// S4.4: a memmap on memory is always one large page. In fragmented older memory it is single pages, whose
/// holder is a memmap, and removal frees all of them.
#[test]
fn s4_4_fragmented_memory_costs_the_large_mapping_without_altmap_only() {
    for on in [true, false] {
        let mm = SimMachine {
            sections: SECTIONS,
            page_tables: true,
            options: SimMachine::OPTIONS.with_memmap_on_memory(on),
            ..SimMachine::default()
        }
        .boot();
        // The memmap was a large page before: the table remembers nothing of that.
        add(mm, BLOCK, 4).unwrap();
        mm.hotplug().remove_memory(BLOCK).unwrap();
        // Every second page is in use, so no two free pages lie side by side.
        let held: Vec<_> = std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, Gfp::Kernel).ok()).collect();
        for &pfn in held.iter().filter(|pfn| pfn.get() % 2 == 0) {
            mm.free_pages(pfn, Order::PAGE);
        }
        let before = state_of(mm, SECTIONS);
        add(mm, BLOCK, 4).unwrap();
        mm.check();
        assert_eq!(mm.stats().memmaps_by_base_pages, if on { 0 } else { 4 });
        assert_eq!(memmap(mm), if on { [0, 2048] } else { [2048, 0] });
        assert!((0..4).all(|offset| mm.platform().memmap_of(section(offset)).is_some() == on));
        mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
        mm.check();
        let managed = if on { 4 * 32_256 } else { 4 * 32_768 };
        assert_eq!(movable(mm).managed, managed);
        mm.hotplug().offline(BLOCK).unwrap();
        mm.hotplug().remove_memory(BLOCK).unwrap();
        assert_eq!(state_of(mm, SECTIONS), before);

        // Each attempt fails once. Then memory runs out half-way.
        for (step, attempts) in
            [(FaultStep::AllocMemmap, 4), (FaultStep::MapMemmap, 4), (FaultStep::PageTable, 8)]
        {
            for attempt in 0..attempts {
                mm.platform().inject(step, attempt);
                add(mm, BLOCK, 4).unwrap_err();
                assert_eq!(state_of(mm, SECTIONS), before, "{step:?} {attempt}");
            }
        }
        if !on {
            let taken: Vec<_> = std::iter::from_fn(|| {
                let plenty = mm.stats().zones[0].free > 1500;
                plenty.then(|| mm.alloc_pages(Order::PAGE, Gfp::Kernel).unwrap())
            })
            .collect();
            let before = state_of(mm, SECTIONS);
            assert_eq!(add(mm, BLOCK, 4), Err(AddError::NoMemory));
            assert_eq!(state_of(mm, SECTIONS), before, "out of single pages");
            assert!(!taken.is_empty());
        }
    }
}

/// S4.5, S4.6, S4.7: one reserve at the memory block's start holds the memmaps of all its sections, in order.
#[test]
fn s4_6_one_common_reserve_at_the_start() {
    for sections in [1, 2, 4, 8, 16] {
        let mm = machine(true);
        add(mm, BLOCK, sections).unwrap();
        for offset in 0..sections as u32 {
            let backing = mm.platform().memmap_of(section(offset)).unwrap();
            assert_eq!(backing, BLOCK.start().add(512 * offset), "section {offset} of {sections}");
        }
        mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
        mm.check();
        let unmovable = |offset| mm.pageblock_types(section(offset))[MigrateType::Unmovable.index()] as usize;
        assert_eq!(unmovable(0), sections);
        assert!((1..sections as u32).all(|offset| unmovable(offset) == 0));
    }
}

/// S4.8: the memmap is allocated by add, written by online and freed by remove.
#[test]
fn s4_8_allocated_at_add_and_initialised_at_online() {
    let machine = SimMachine {
        sections: SECTIONS,
        options: SimMachine::OPTIONS.with_content(MemoryContent::Zero),
        ..SimMachine::default()
    };
    let mm = machine.boot();
    let start = state_of(mm, SECTIONS);
    for online in [false, true] {
        mm.hotplug().add_memory(NODE, BLOCK, [PageblockSet::ALL; GIB], MemoryContent::Zero).unwrap();
        assert_eq!(memmap(mm), [0, 4096]);
        if !online {
            let written: usize = (0..8).map(|offset| mm.platform().written_pages(section(offset))).sum();
            assert_eq!(written, 0, "a memmap that is only added is not written");
        } else {
            mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
            mm.hotplug().offline(BLOCK).unwrap();
        }
        mm.hotplug().remove_memory(BLOCK).unwrap();
        assert_eq!(state_of(mm, SECTIONS), start, "no trace");
    }
}

/// S4.9: a page of a memory block, including the pages of its memmap, is visible only while the memory block is
/// online.
#[test]
fn s4_9_no_online_page_before_online() {
    let mm = machine(true);
    let visible = |mm: &Mm<Sim>| {
        let looked_at =
            (0..8 * 64).map(|block| mm.is_online_page(BLOCK.start().add(block * 512 + block % 512)));
        looked_at.filter(|online| *online).count()
    };
    assert_eq!(visible(mm), 0, "absent");
    add(mm, BLOCK, GIB).unwrap();
    assert_eq!(visible(mm), 0, "added");
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    assert_eq!(visible(mm), 8 * 64, "online");
    mm.hotplug().offline(BLOCK).unwrap();
    assert_eq!(visible(mm), 0, "offline again");
    mm.hotplug().remove_memory(BLOCK).unwrap();
    assert_eq!(visible(mm), 0, "removed");
    assert!(mm.is_online_page(SectionNr::new(1).start()), "boot memory");
}

/// S4.10: the content of a memmap before online does not matter.
#[test]
fn s4_10_a_memmap_lost_while_offline_is_written_anew() {
    let mm = machine(true);
    add(mm, BLOCK, GIB).unwrap();
    let lose = || (0..8).for_each(|offset| mm.platform().lose_memmap(section(offset)));
    for _ in 0..2 {
        lose();
        mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
        // `check` reads every page.
        mm.check();
        assert_eq!(buddy(mm)[10], 252);
        mm.hotplug().offline(BLOCK).unwrap();
    }
    lose();
    mm.hotplug().remove_memory(BLOCK).unwrap();
    mm.check();
}

/// S4.11: the memmap of a memory block of 8 GiB fills a whole section, which is online as all others.
#[test]
fn s4_11_a_section_of_nothing_but_memmap() {
    let sections = 64;
    let (content, init) = (MemoryContent::Zero, InitPolicy::Lazy);
    let mm = SimMachine {
        sections: 64 + sections,
        options: SimMachine::OPTIONS.with_content(content).with_init(init),
        ..SimMachine::default()
    }
    .boot();
    let start = state_of(mm, 64 + sections);
    let first = SectionNr::new(64);
    mm.hotplug().add_memory(NODE, first, vec![PageblockSet::ALL; 64], MemoryContent::Zero).unwrap();
    let added = state_of(mm, 64 + sections);
    mm.platform().inject(FaultStep::Online, 0);
    let states = move || [0, 1].map(|at| mm.section_state(SectionNr::new(first.get() + at)));
    let seen = steps::watched(
        mm,
        |_| true,
        states,
        || {
            assert_eq!(mm.hotplug().online(first, ZoneType::Movable), Err(OnlineError::Vetoed));
        },
    );
    let half_way = [SectionState::Online, SectionState::Initialised];
    assert_eq!(
        seen,
        [(PlatformCall::Fault(FaultStep::Online), half_way)],
        "the memmap's section is online first"
    );
    assert_eq!(state_of(mm, 64 + sections), added, "rolled back");
    mm.hotplug().online(first, ZoneType::Movable).unwrap();
    mm.check();
    assert!(mm.is_online_page(first.start()));
    assert_eq!([movable(mm).present, movable(mm).managed], [64 * 32_768, 63 * 32_768]);
    assert_eq!(mm.pageblock_types(first)[MigrateType::Unmovable.index()], 64);
    mm.hotplug().offline(first).unwrap();
    mm.hotplug().remove_memory(first).unwrap();
    assert_eq!(state_of(mm, 64 + sections), start);
}

/// The zone's spanned and present pages at each attempt of `step`.
fn watched(mm: &'static Mm<Sim>, step: FaultStep, operation: impl FnOnce()) -> Vec<[u64; 2]> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    mm.platform().watch(move |call| {
        if call == PlatformCall::Fault(step) {
            into.lock().unwrap().push([movable(mm).spanned, movable(mm).present]);
        }
    });
    operation();
    mm.platform().unwatch();
    Arc::try_unwrap(seen).map_or_else(|seen| seen.lock().unwrap().clone(), |seen| seen.into_inner().unwrap())
}

/// S4.12, S4.13: the memmap's pages join the zone first and count as present last. A veto in between changes
/// nothing.
#[test]
fn s4_13_present_counts_the_memmap_after_the_rest() {
    let mm = machine(true);
    add(mm, BLOCK, GIB).unwrap();
    let added = state_of(mm, SECTIONS);
    for _ in 0..2 {
        mm.platform().inject(FaultStep::Online, 0);
        let veto = watched(mm, FaultStep::Online, || {
            assert_eq!(mm.hotplug().online(BLOCK, ZoneType::Movable), Err(OnlineError::Vetoed));
        });
        assert_eq!(veto, [[4096, 0]], "the memmap is in the span and not present");
        assert_eq!(state_of(mm, SECTIONS), added, "S4.12: deinit is the inverse of init");
    }
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    assert_eq!([movable(mm).spanned, movable(mm).present], [262_144; 2]);
}

/// S4.14, S4.15: the memmap stops counting as present before any other step, and counts again if the rest stays
/// online.
#[test]
fn s4_14_offline_takes_the_memmap_from_present_first() {
    let mm = machine(true);
    add(mm, BLOCK, GIB).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    let online = state_of(mm, SECTIONS);
    let pinned = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    mm.set_holder(pinned, 7);
    let seen = watched(mm, FaultStep::Isolate, || {
        let Err(OfflineError::Unmovable(stuck)) = mm.hotplug().offline(BLOCK) else {
            panic!("a page is pinned")
        };
        assert_eq!((stuck.pages, stuck.first[0]), (1, Some((pinned, Holder::Tagged(7)))));
    });
    assert!(!seen.is_empty() && seen.iter().all(|&seen| seen == [262_144, 258_048]), "{seen:?}");
    mm.free_pages(pinned, Order::PAGE);
    assert_eq!(state_of(mm, SECTIONS), online, "S4.15: present is whole again");

    for attempt in [0, 1, 100, 503] {
        mm.platform().inject(FaultStep::Isolate, attempt);
        assert_eq!(mm.hotplug().offline(BLOCK), Err(OfflineError::Busy));
        assert_eq!(state_of(mm, SECTIONS), online, "isolation that fails at pageblock {attempt}");
    }
    mm.hotplug().offline(BLOCK).unwrap();
    assert_eq!([movable(mm).spanned, movable(mm).present], [0; 2]);
}

/// S4.16: a range of memory blocks that hold their memmaps is removed memory block by memory block, or not at
/// all.
#[test]
fn s4_16_removal_has_the_granularity_of_adding() {
    let refused = OfflineAndRemoveError::Remove(RemoveError::Granularity);
    for policy in [RemovalPolicy::Range, RemovalPolicy::PerBlock] {
        let mm = machine_with(policy);
        let start = state_of(mm, SECTIONS);
        mm.hotplug().add_memory_range(NODE, range(0, 16), 4, MemoryContent::Unknown).unwrap();
        let added = state_of(mm, SECTIONS);
        let online =
            || (0..16).step_by(4).for_each(|at| mm.hotplug().online(section(at), ZoneType::Movable).unwrap());
        online();
        let tenant = Tenant::new(mm, 0, 2000);
        tenant.fill_all();
        let used = mm.stats().zones;
        let result = mm.hotplug().offline_and_remove_memory(range(0, 16));
        if policy == RemovalPolicy::Range {
            assert_eq!(result, Err(refused));
            assert_eq!(mm.stats().zones, used, "no counter has changed");
            assert_eq!(mm.stats().pages_migrated, 0);
            // Removed one by one, as the memory blocks were added.
            for at in (0..16).step_by(4) {
                assert_eq!(mm.hotplug().offline_and_remove_memory(range(at, 4)), Ok(()));
            }
        } else {
            assert_eq!(result, Ok(()));
        }
        tenant.verify_all();
        tenant.release_all();
        assert_eq!(state_of(mm, SECTIONS), start);

        mm.hotplug().add_memory_range(NODE, range(0, 16), 4, MemoryContent::Unknown).unwrap();
        let result = mm.hotplug().remove_memory_range(range(4, 8));
        assert_eq!(
            result,
            if policy == RemovalPolicy::Range { Err(RemoveError::Granularity) } else { Ok(()) }
        );
        if result.is_ok() {
            mm.hotplug().add_memory_range(NODE, range(4, 8), 4, MemoryContent::Unknown).unwrap();
        }
        assert_eq!(state_of(mm, SECTIONS), added);
    }
}

/// S4.16: memory blocks with their memmap on them and memory blocks without are not removed together.
#[test]
fn s4_16_mixed_ranges_are_refused() {
    let mm = machine(true);
    let elsewhere = MhpFlags::new(MemoryContent::Unknown).with_memmap_on_memory(false);
    mm.hotplug().add_memory_range(NODE, range(0, 4), 2, elsewhere).unwrap();
    mm.hotplug().add_memory_range(NODE, range(4, 4), 2, MemoryContent::Unknown).unwrap();
    let added = state_of(mm, SECTIONS);
    assert_eq!(mm.hotplug().remove_memory_range(range(0, 8)), Err(RemoveError::Mixed));
    assert_eq!(state_of(mm, SECTIONS), added);
    for part in [range(0, 4), range(4, 4)] {
        mm.hotplug().remove_memory_range(part).unwrap();
    }
    mm.check();
    assert_eq!(memmap(mm), [0, 0]);
    // Where no memmap is on memory, even the strict policy allows a range.
    let mm = machine_with(RemovalPolicy::Range);
    mm.hotplug().add_memory_range(NODE, range(0, 8), 2, elsewhere).unwrap();
    assert_eq!(mm.hotplug().remove_memory_range(range(0, 8)), Ok(()));
}

/// S4.17: the memmap's pages go back to the altmap, and never to the allocator.
#[test]
fn s4_17_removal_frees_into_the_altmap() {
    let mm = machine(true);
    let free = |mm: &Mm<Sim>| mm.stats().zones.map(|zone| zone.free + zone.pcp);
    add(mm, BLOCK, GIB).unwrap();
    let before = free(mm);
    mm.hotplug().remove_memory(BLOCK).unwrap();
    assert_eq!((free(mm), memmap(mm)), (before, [0, 0]));
    // The same when adding fails half-way: the sixth section's memmap cannot be mapped.
    let state = state_of(mm, SECTIONS);
    mm.platform().inject(FaultStep::MapMemmap, 5);
    assert_eq!(add(mm, BLOCK, GIB), Err(AddError::NoPageTable));
    assert_eq!((free(mm), memmap(mm)), (before, [0, 0]));
    assert_eq!(state_of(mm, SECTIONS), state);
}

/// S4.18, S4.19: the memmap's pages are never allocated or isolated, and do not prevent offlining.
#[test]
fn s4_18_memmap_pages_are_never_allocated() {
    let mm = machine(true);
    add(mm, BLOCK, GIB).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    let mut held = Vec::new();
    while let Ok(pfn) = mm.alloc_pages(Order::PAGE, Gfp::Movable) {
        held.push(pfn);
    }
    let in_block = held.iter().filter(|&&pfn| pfn >= BLOCK.start());
    let lowest = in_block.clone().min();
    assert_eq!(lowest, Some(&BLOCK.start().add(4096)), "the first page behind the memmap");
    assert!(in_block.count() > 257_000, "all but the pages that the watermark keeps");
    held.into_iter().for_each(|pfn| mm.free_pages(pfn, Order::PAGE));
    let attempts = mm.platform().attempts(FaultStep::Isolate);
    mm.hotplug().offline(BLOCK).unwrap();
    // One attempt for each pageblock behind the memmap. (For one section, Linux's trace begins at 0x100200.)
    assert_eq!(mm.platform().attempts(FaultStep::Isolate) - attempts, 504);
}

/// S4.20: a memory block that cannot hold its memmap has it in older memory; an impossible request is an error.
#[test]
fn s4_20_geometry_falls_back_or_is_refused() {
    let mm = machine(true);
    let start = state_of(mm, SECTIONS);
    let elsewhere = MhpFlags::new(MemoryContent::Unknown).with_memmap_on_memory(false);
    // The reserve of four sections is four pageblocks, and one of them is not plugged.
    let mut plugged = [PageblockSet::ALL; 4];
    plugged[0] = PageblockSet::ALL.without(PageblockSet::range(3..4));
    assert_eq!(
        mm.hotplug().add_memory(NODE, BLOCK, plugged, MemoryContent::Unknown),
        Err(AddError::NoMemmap)
    );
    assert_eq!(state_of(mm, SECTIONS), start);
    mm.hotplug().add_memory(NODE, BLOCK, plugged, elsewhere).unwrap();
    assert_eq!(memmap(mm), [4 * 512, 0]);
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm.check();
    assert_eq!(movable(mm).managed, 4 * 32_768 - 512);
    mm.hotplug().offline(BLOCK).unwrap();
    mm.hotplug().remove_memory(BLOCK).unwrap();
    assert_eq!(state_of(mm, SECTIONS), start);

    for (offset, sections) in [(0, 0), (0, 3), (1, 2), (2, 4), (4, 8)] {
        assert_eq!(add(mm, section(offset), sections), Err(AddError::Misaligned), "{sections} at {offset}");
    }
    assert_eq!(
        mm.hotplug().add_memory(NODE, SectionNr::new(0), [PageblockSet::ALL; 65], MemoryContent::Unknown),
        Err(AddError::Misaligned)
    );
    assert_eq!(add(mm, SectionNr::new(0), 2), Err(AddError::Exists), "boot memory");
    assert_eq!(add(mm, SectionNr::new(32), 32), Err(AddError::OutOfRange), "the table ends within it");
    for (range, block) in
        [(range(0, 0), 1), (range(0, 4), 0), (range(0, 6), 4), (range(2, 4), 4), (range(0, 128), 128)]
    {
        assert_eq!(
            mm.hotplug().add_memory_range(NODE, range, block, MemoryContent::Unknown),
            Err(AddError::Misaligned),
            "{range:?}"
        );
    }
    assert_eq!(state_of(mm, SECTIONS), start);
}

/// Pageblocks of a large memory block: the reserve is plugged as a whole, the others one by one and across
/// sections.
#[test]
fn pageblocks_of_a_large_memory_block() {
    let mm = machine(true);
    let start = state_of(mm, SECTIONS);
    let mut plugged = [PageblockSet::NONE; GIB];
    plugged[0] = PageblockSet::range(0..8);
    mm.hotplug().add_memory(NODE, BLOCK, plugged, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm.check();
    assert_eq!(
        [movable(mm).present, movable(mm).managed],
        [262_144, 0],
        "all plugged pageblocks hold memmap"
    );
    let pieces = [PageblockSet::range(60..64), PageblockSet::ALL, PageblockSet::range(0..1)];
    mm.hotplug().online_pageblocks(section(2), pieces).unwrap();
    mm.check();
    assert_eq!(movable(mm).managed, 69 * 512);
    assert_eq!(
        mm.hotplug().online_pageblocks(section(3), PageblockSet::range(5..6)),
        Err(OnlineError::Plugged)
    );
    assert_eq!(
        mm.hotplug().offline_pageblocks(section(2), pieces.map(|_| PageblockSet::ALL)),
        Err(OfflineError::NotPlugged)
    );
    assert_eq!(
        mm.hotplug().offline_pageblocks(section(0), PageblockSet::range(7..8)),
        Err(OfflineError::HoldsMemmap)
    );
    assert_eq!(
        mm.hotplug().offline_pageblocks(section(7), [PageblockSet::NONE; 2]),
        Err(OfflineError::NotOnline)
    );

    let tenant = Tenant::new(mm, 0, 1000);
    tenant.fill_all();
    let before = state_of(mm, SECTIONS);
    for attempt in [0, 1, 2] {
        mm.platform().inject(FaultStep::MapDirect, attempt);
        let more = [PageblockSet::range(1..3), PageblockSet::FIRST, PageblockSet::FIRST];
        assert_eq!(mm.hotplug().online_pageblocks(section(4), more), Err(OnlineError::NoPageTable));
        assert_eq!(state_of(mm, SECTIONS), before, "mapping fails at {attempt}");
    }
    mm.hotplug().offline_pageblocks(section(2), pieces).unwrap();
    tenant.verify_all();
    tenant.release_all();
    mm.hotplug().offline(BLOCK).unwrap();
    mm.hotplug().remove_memory(BLOCK).unwrap();
    assert_eq!(state_of(mm, SECTIONS), start);
}

/// Every step of adding a range of memory blocks fails once. Afterwards everything is as before.
#[test]
fn every_step_of_a_range_rolls_back() {
    for on in [true, false] {
        let mm = machine(on);
        let start = state_of(mm, SECTIONS);
        let mut failures = 0;
        for step in [FaultStep::MapDirect, FaultStep::AllocMemmap, FaultStep::MapMemmap, FaultStep::PageTable]
        {
            for attempt in 0.. {
                mm.platform().inject(step, attempt);
                if mm.hotplug().add_memory_range(NODE, range(4, 8), 4, MemoryContent::Unknown).is_ok() {
                    break;
                }
                assert_eq!(state_of(mm, SECTIONS), start, "{step:?} {attempt}");
                failures += 1;
            }
            mm.platform().inject_always(step, false);
            mm.hotplug().remove_memory_range(range(4, 8)).unwrap();
        }
        assert_eq!(failures, 5 * 8, "each step fails for each section, and either of its tables");
    }
}

/// If one memory block of a range stays online, the whole range returns to its zone.
#[test]
fn a_range_that_cannot_go_offline_returns_to_its_zone() {
    let mm = machine(true);
    mm.hotplug().add_memory_range(NODE, range(0, 16), 4, MemoryContent::Unknown).unwrap();
    for at in (0..16).step_by(4) {
        let zone = if at == 0 { ZoneType::Normal } else { ZoneType::Movable };
        mm.hotplug().online(section(at), zone).unwrap();
    }
    // A page of the third memory block.
    let mut held = Vec::new();
    while held
        .last()
        .is_none_or(|&pfn: &Pfn| !(section(8)..section(12)).contains(&SectionNr::of(pfn.address())))
    {
        held.push(mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap());
    }
    let pinned = held.pop().unwrap();
    mm.set_holder(pinned, 1);
    held.into_iter().for_each(|pfn| mm.free_pages(pfn, Order::MAX));
    let before = mm.stats().zones.map(|zone| (zone.spanned, zone.present, zone.managed));
    // Even when onlining is vetoed, the others return.
    mm.platform().inject(FaultStep::Online, 0);
    let result = mm.hotplug().offline_and_remove_memory(range(0, 16));
    let Err(OfflineAndRemoveError::Offline(nr, OfflineError::Unmovable(stuck))) = result else {
        panic!("{result:?}")
    };
    assert_eq!((nr, stuck.pages), (section(8), 1024));
    assert_eq!(mm.stats().zones.map(|zone| (zone.spanned, zone.present, zone.managed)), before);
    mm.check();
    mm.free_pages(pinned, Order::MAX);
    mm.hotplug().offline_and_remove_memory(range(0, 16)).unwrap();
    mm.check();
}

/// Removing online memory, onlining online memory, and invalid ranges are errors.
#[test]
fn remove_of_an_online_block_and_double_online() {
    for sections in [1, GIB] {
        let mm = machine(true);
        add(mm, BLOCK, sections).unwrap();
        mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
        let online = state_of(mm, SECTIONS);
        assert_eq!(mm.hotplug().remove_memory(BLOCK), Err(RemoveError::Online));
        assert_eq!(mm.hotplug().remove_memory_range(range(0, sections as u32)), Err(RemoveError::Online));
        assert_eq!(mm.hotplug().online(BLOCK, ZoneType::Movable), Err(OnlineError::Online));
        assert_eq!(mm.hotplug().online(BLOCK, ZoneType::Normal), Err(OnlineError::Online));
        assert_eq!(add(mm, BLOCK, sections), Err(AddError::Exists));
        if sections > 1 {
            let inside = section(1);
            assert_eq!(mm.hotplug().online(inside, ZoneType::Movable), Err(OnlineError::NotPresent));
            assert_eq!(mm.hotplug().offline(inside), Err(OfflineError::NotOnline));
            assert_eq!(mm.hotplug().remove_memory(inside), Err(RemoveError::NotPresent));
            assert_eq!(add(mm, inside, 1), Err(AddError::Exists));
        }
        for range in [range(0, 0), range(0, sections as u32 + 1), range(0, 17), range(9, 1)] {
            assert_eq!(mm.hotplug().remove_memory_range(range), Err(RemoveError::NotPresent), "{range:?}");
        }
        let boot = SectionRange::new(SectionNr::new(0), 1).unwrap();
        assert_eq!(mm.hotplug().remove_memory_range(boot), Err(RemoveError::Online));
        assert_eq!(state_of(mm, SECTIONS), online);
        mm.hotplug().offline(BLOCK).unwrap();
        assert_eq!(mm.hotplug().offline(BLOCK), Err(OfflineError::NotOnline));
        assert_eq!(mm.section_state(BLOCK), SectionState::Present);
        mm.hotplug().remove_memory(BLOCK).unwrap();
        assert_eq!(mm.hotplug().remove_memory(BLOCK), Err(RemoveError::NotPresent));
        mm.check();
    }
}
