//! Boot: the zones that a memory map gives, and memblock.

use tidevm_mm::{
    BootError, FaultStep, Gfp, InitPolicy, Memblock, MemoryContent, NodeId, Order, PAGEBLOCK_PAGES,
    PageblockSet, Pfn, PhysAddr, PhysRange, SECTION_PAGES, SectionNr, SectionState, ZoneType,
};
use tidevm_mm_sim::SimMachine;

/// A small PC memory map: a hole at 640 KiB, odd ends, reserved ranges, memory above 4 GiB.
#[test]
fn holes_and_reserved_ranges() {
    let four_gib = 1 << 20;
    let machine = SimMachine {
        memory: [(0, 159), (256, 40_000), (four_gib + 7, 33_000)].into(),
        reserved: [(0, 1), (256, 1000), (1300, 3), (20_000, 1), (four_gib + 7, 1)].into(),
        sections: 40,
        ..SimMachine::default()
    };
    let mm = machine.boot();
    mm.check();
    let [dma32, normal, movable] = mm.stats().zones;
    assert_eq!((dma32.spanned, dma32.present), (40_256, 40_159));
    assert_eq!((normal.spanned, normal.present), (33_000, 33_000));
    // The memmaps of all four sections come from the top of memory, which is Normal.
    assert_eq!(dma32.managed, 40_159 - 1005);
    assert_eq!(normal.managed, 33_000 - 1 - 4 * 512);
    assert_eq!((movable.spanned, movable.present, movable.managed), (0, 0, 0));
    assert_eq!(dma32.free, dma32.managed);
    assert_eq!(mm.stats().memmap_boot_pages, 0, "only memmaps of hot-added memory count");

    // Every free page can be allocated, and no other page.
    let mut pages = Vec::new();
    while let Ok(pfn) = mm.alloc_pages(Order::PAGE, Gfp::PageTable) {
        pages.push(pfn.get());
    }
    assert_eq!(pages.len() as u64, dma32.managed + normal.managed);
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len() as u64, dma32.managed + normal.managed);
    let taken =
        |pfn: &u32| machine.reserved.iter().any(|&(first, count)| (first..first + count).contains(pfn));
    assert_eq!(pages.iter().find(|pfn| taken(pfn)), None);
    mm.check();
}

#[test]
fn memory_map_that_does_not_fit() {
    let boot = |machine: &SimMachine| {
        machine.build().boot(Box::leak(Box::new(machine.memblock())), machine.boot_options())
    };
    let beyond = SimMachine { memory: [(0, 10_000), (36 * 32768, 10)].into(), ..SimMachine::default() };
    let address = PhysAddr::new(36 << 27);
    assert_eq!(boot(&beyond), Err(BootError::OutOfRange(address)));
    let tiny = SimMachine { memory: [(0, 1023)].into(), reserved: Vec::new(), ..SimMachine::default() };
    assert_eq!(boot(&tiny), Err(BootError::NoMemory), "512 aligned pages, and not at 0");
    let full = SimMachine { reserved: [(0, 65_000)].into(), ..SimMachine::default() };
    assert_eq!(boot(&full), Err(BootError::NoMemory));
    let machine = SimMachine::default();
    for nr_cpus in [0, 2] {
        let options = machine.boot_options().with_nr_cpus(nr_cpus);
        assert_eq!(
            machine.build().boot(Box::leak(Box::new(machine.memblock())), options),
            Err(BootError::Cpus)
        );
    }
}

/// The platform takes page tables from the allocator while it maps, in every hotplug operation.
#[test]
fn page_tables_come_from_the_allocator() {
    let mm = SimMachine { page_tables: true, ..SimMachine::default() }.boot();
    mm.check();
    let block = SectionNr::new(32);
    let start = mm.stats().zones[0];
    mm.hotplug().add_memory(NodeId::FIRST, block, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(block, ZoneType::Movable).unwrap();
    let taken = start.free + start.pcp - mm.stats().zones[0].free - mm.stats().zones[0].pcp;
    assert_eq!(taken, 2, "one for the memmap, one for the direct map");
    mm.hotplug().offline_pageblocks(block, PageblockSet::range(8..16)).unwrap();
    mm.hotplug().online_pageblocks(block, PageblockSet::range(8..16)).unwrap();
    mm.hotplug().offline(block).unwrap();
    mm.hotplug().remove_memory(block).unwrap();
    mm.check();
}

/// Memory can be added to a machine without a free page, because page tables may take the reserve. When the
/// reserve is used up too, adding fails cleanly.
#[test]
fn growing_out_of_memory() {
    let mm = SimMachine { page_tables: true, ..SimMachine::default() }.boot();
    while mm.alloc_pages(Order::PAGE, Gfp::Kernel).is_ok() {}
    let block = SectionNr::new(32);
    mm.hotplug().add_memory(NodeId::FIRST, block, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(block, ZoneType::Normal).unwrap();
    mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("room in the new memory");
    mm.check();
    while mm.alloc_pages(Order::PAGE, Gfp::PageTable).is_ok() {}
    let before = mm.stats();
    let next = SectionNr::new(33);
    assert_eq!(
        mm.hotplug().add_memory(NodeId::FIRST, next, PageblockSet::ALL, MemoryContent::Unknown),
        Err(tidevm_mm::AddError::NoPageTable)
    );
    assert_eq!(mm.stats().zones, before.zones);
    assert_eq!(mm.platform().attempts(FaultStep::MapMemmap), 1, "the memmap was not mapped the second time");
    mm.check();
}

/// Boot maps the RAM of the sections that it initialises, and nothing else. Other RAM is mapped section by section, when
/// it is claimed, and holes never are. Neither takes a page for a page table.
#[test]
fn boot_memory_is_mapped_when_it_is_wanted() {
    const HIGH: u32 = 32 * SECTION_PAGES;
    // The second section has a hole of four pageblocks, and RAM that ends within a pageblock.
    let hole = SECTION_PAGES + 8 * PAGEBLOCK_PAGES;
    let memory =
        vec![(0, hole + 1), (hole + 5 * PAGEBLOCK_PAGES - 1, 2 * SECTION_PAGES), (HIGH, 2 * SECTION_PAGES)];
    let ram = |first: u32| memory.iter().any(|&(start, pages)| first < start + pages && start < first + 512);
    for init in [InitPolicy::Lazy, InitPolicy::Deferred, InitPolicy::Eager] {
        let machine = SimMachine {
            sections: 40,
            memory: memory.clone(),
            options: SimMachine::OPTIONS.with_init(init),
            page_tables: true,
            ..SimMachine::default()
        };
        let mm = machine.boot();
        let check = |when: &str| {
            for first in (0..40 * SECTION_PAGES).step_by(PAGEBLOCK_PAGES as usize) {
                let pfn = Pfn::new(first);
                let online = mm.section_state(pfn.section()) == SectionState::Online;
                let mapped = mm.platform().is_mapped(pfn);
                assert_eq!(mapped, online && ram(first), "{init:?}, {when}: {pfn:?}");
            }
            mm.check();
        };
        check("at boot");
        while mm.init_deferred() {
            check("one more is claimed");
        }
        assert_eq!(mm.platform().attempts(FaultStep::PageTable), 0);
    }
}

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), size)
}

fn spans(ranges: impl Iterator<Item = PhysRange>) -> Vec<(u64, u64)> {
    ranges.map(|range| (range.start().get(), range.end().get())).collect()
}

#[test]
fn memblock_merges_ranges_that_touch() {
    let mut memblock = Memblock::new();
    for (start, size) in [(100, 10), (0, 10), (50, 10), (110, 5), (10, 40), (200, 0), (58, 50)] {
        memblock.add(range(start, size)).unwrap();
    }
    assert_eq!(spans(memblock.memory()), [(0, 115)]);
    memblock.add(range(300, 10)).unwrap();
    memblock.add(range(200, 10)).unwrap();
    assert_eq!(spans(memblock.memory()), [(0, 115), (200, 210), (300, 310)]);
    memblock.reserve(range(20, 5)).unwrap();
    memblock.reserve(range(100, 105)).unwrap();
    memblock.reserve(range(305, 100)).unwrap();
    memblock.reserve(range(1000, 1)).unwrap();
    assert_eq!(spans(memblock.free()), [(0, 20), (25, 100), (205, 210), (300, 305)]);
}

#[test]
fn memblock_allocates_from_the_top() {
    let mut memblock = Memblock::new();
    memblock.add(range(0, 0x10_0000)).unwrap();
    memblock.add(range(0x20_0000, 0x8000)).unwrap();
    memblock.reserve(range(0x20_4000, 0x1000)).unwrap();
    let mut alloc = |size, align| memblock.alloc(size, align).map(PhysAddr::get);
    assert_eq!(alloc(0x2000, 0x1000), Some(0x20_6000));
    assert_eq!(alloc(0x2000, 0x1000), Some(0x20_2000));
    assert_eq!(alloc(0x4000, 0x4000), Some(0xf_c000));
    assert_eq!(alloc(0x1000, 0x1000), Some(0x20_5000));
    assert_eq!(alloc(0x2000, 0x2000), Some(0x20_0000));
    assert_eq!(alloc(0xf_b000, 0x1000), Some(0x1000));
    assert_eq!(alloc(0x1000, 0x1000), None, "address 0 is never given out");
}

#[test]
fn memblock_full() {
    let mut memblock = Memblock::new();
    for index in 0..tidevm_mm::MEMBLOCK_RANGES as u64 {
        memblock.add(range(index * 100, 10)).unwrap();
    }
    assert!(memblock.add(range(1 << 20, 10)).is_err());
    memblock.add(range(10, 5)).expect("merging needs no entry");
}
