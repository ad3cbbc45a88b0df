//! Add, online, offline, remove: states, counters and errors. The counters are those that Linux
//! 6.12 shows for one memory block of 128 MiB at 4 GiB.

use tidevm_mm::{
    AddError, Gfp, Holder, MemoryContent, MigrateType, Mm, NodeId, OfflineError, OnlineError, Order,
    PageblockSet, RemoveError, SectionNr, SectionState, ZoneStats, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::faults::state_of;
use crate::workload::BLOCK;

pub fn machine(memmap_on_memory: bool) -> &'static Mm<Sim> {
    SimMachine {
        options: SimMachine::OPTIONS.with_memmap_on_memory(memmap_on_memory),
        ..SimMachine::default()
    }
    .boot()
}

/// Counters of `zone`: spanned, present, managed, free.
fn counters(mm: &Mm<Sim>, zone: ZoneType) -> [u64; 4] {
    let ZoneStats { spanned, present, managed, free, .. } = mm.stats().zones[zone.index()];
    [spanned, present, managed, free]
}

/// Free movable buddy blocks of `zone`, of the two largest orders.
fn large_blocks(mm: &Mm<Sim>, zone: ZoneType) -> [u32; 2] {
    let blocks = mm.free_blocks(NodeId::FIRST.zone(zone));
    [blocks[9], blocks[10]].map(|types| types[MigrateType::Movable.index()])
}

#[test]
fn one_block() {
    for zone in [ZoneType::Movable, ZoneType::Normal] {
        for on in [true, false] {
            let mm = machine(on);
            let start = mm.stats();
            let memmap = |mm: &Mm<Sim>| [mm.stats().memmap_boot_pages, mm.stats().memmap_altmap_pages];
            for _ in 0..2 {
                mm.hotplug()
                    .add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown)
                    .unwrap();
                mm.check();
                assert_eq!(counters(mm, zone), [0; 4], "added");
                assert_eq!(memmap(mm), if on { [0, 512] } else { [512, 0] });
                let taken = start.zones[0].free - mm.stats().zones[0].free;
                assert_eq!(taken, if on { 0 } else { 512 }, "memmap pages out of boot memory");
                assert_eq!(mm.section_state(BLOCK), SectionState::Present);
                let backing = mm.platform().memmap_of(BLOCK).unwrap();
                assert_eq!(backing == BLOCK.start(), on, "where the memmap lies");

                let managed = if on { 32256 } else { 32768 };
                for _ in 0..2 {
                    mm.hotplug().online(BLOCK, zone).unwrap();
                    mm.check();
                    assert_eq!(counters(mm, zone), [32768, 32768, managed, managed], "online");
                    assert_eq!(large_blocks(mm, zone), if on { [1, 31] } else { [0, 32] });
                    assert_eq!(mm.stats().blocks_online, 3);
                    assert_eq!(memmap(mm), if on { [0, 512] } else { [512, 0] });

                    mm.hotplug().offline(BLOCK).unwrap();
                    mm.check();
                    assert_eq!(counters(mm, zone), [0; 4], "offline again");
                    assert_eq!(mm.section_state(BLOCK), SectionState::Present);
                }
                mm.hotplug().remove_memory(BLOCK).unwrap();
                mm.check();
                assert_eq!(mm.section_state(BLOCK), SectionState::Absent);
                assert_eq!(mm.stats().zones, start.zones, "removed");
                assert_eq!(memmap(mm), [0, 0]);
                assert!(!mm.platform().is_mapped(BLOCK.start()));
                assert_eq!(mm.platform().memmap_of(BLOCK), None);
            }
        }
    }
}

/// Holes count only in the span. When memory at an end of the span goes, the hole beside it goes too.
#[test]
fn holes_and_spans() {
    let mm = machine(true);
    let block = |offset: u32| SectionNr::new(32 + offset);
    let online = |offset, zone| {
        mm.hotplug()
            .add_memory(NodeId::FIRST, block(offset), PageblockSet::ALL, MemoryContent::Unknown)
            .unwrap();
        mm.hotplug().online(block(offset), zone).unwrap();
        mm.check();
    };
    let offline = |offset| {
        mm.hotplug().offline(block(offset)).unwrap();
        mm.check();
    };
    let span = |zone| [counters(mm, zone)[0], counters(mm, zone)[1]];
    online(0, ZoneType::Movable);
    online(2, ZoneType::Movable);
    assert_eq!(span(ZoneType::Movable), [3 * 32768, 2 * 32768]);
    online(1, ZoneType::Normal);
    online(3, ZoneType::Normal);
    assert_eq!(span(ZoneType::Normal), [3 * 32768, 2 * 32768]);
    offline(0);
    assert_eq!(span(ZoneType::Movable), [32768, 32768], "the start moves over the hole");
    mm.hotplug().online(block(0), ZoneType::Movable).unwrap();
    offline(2);
    assert_eq!(span(ZoneType::Movable), [32768, 32768], "the end moves over the hole");
    offline(0);
    assert_eq!(span(ZoneType::Movable), [0, 0]);
    offline(1);
    offline(3);
    assert_eq!(span(ZoneType::Normal), [0, 0]);
    for offset in 0..4 {
        mm.hotplug().remove_memory(block(offset)).unwrap();
    }
    mm.check();
}

/// The span of boot memory stays, however far hot-added memory reached.
#[test]
fn span_of_boot_memory() {
    // 4 GiB is sections 0..32: boot memory ends inside section 1, and inside section 33.
    let memory = [(16, 40_000), (33 * 32768 + 100, 1000)].into();
    let mm = SimMachine { memory, ..SimMachine::default() }.boot();
    mm.check();
    let at_boot = mm.stats().zones;
    assert_eq!([at_boot[0].spanned, at_boot[1].spanned], [40_000, 1000]);
    for nr in [2, 3, 31, 32, 34].map(SectionNr::new) {
        mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        let zone = if nr.get() < 32 { ZoneType::Dma32 } else { ZoneType::Normal };
        mm.hotplug().online(nr, zone).unwrap();
        mm.check();
    }
    for nr in [31, 3, 2, 32, 34].map(SectionNr::new) {
        mm.hotplug().offline(nr).unwrap();
        mm.hotplug().remove_memory(nr).unwrap();
        mm.check();
    }
    assert_eq!(mm.stats().zones.map(|zone| zone.spanned), at_boot.map(|zone| zone.spanned));
}

/// Every section that the table can hold, including the first and the last.
#[test]
fn table_boundaries() {
    let mm = machine(true);
    let add = |nr| {
        mm.hotplug().add_memory(NodeId::FIRST, SectionNr::new(nr), PageblockSet::ALL, MemoryContent::Unknown)
    };
    for nr in [0, 1] {
        assert_eq!(add(nr), Err(AddError::Exists), "boot memory");
        assert_eq!(mm.hotplug().online(SectionNr::new(nr), ZoneType::Dma32), Err(OnlineError::Online));
        assert_eq!(mm.hotplug().offline(SectionNr::new(nr)), Err(OfflineError::BootMemory));
        assert_eq!(mm.hotplug().remove_memory(SectionNr::new(nr)), Err(RemoveError::Online));
        assert_eq!(
            mm.hotplug().online_pageblocks(SectionNr::new(nr), PageblockSet::ALL),
            Err(OnlineError::Plugged)
        );
    }
    for nr in [36, 37, u32::MAX >> 15, u32::MAX] {
        let nr = SectionNr::new(nr);
        assert_eq!(
            mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown),
            Err(AddError::OutOfRange)
        );
        assert_eq!(mm.hotplug().online(nr, ZoneType::Movable), Err(OnlineError::NotPresent));
        assert_eq!(mm.hotplug().online_pageblocks(nr, PageblockSet::ALL), Err(OnlineError::NotOnline));
        assert_eq!(mm.hotplug().offline(nr), Err(OfflineError::NotOnline));
        assert_eq!(mm.hotplug().remove_memory(nr), Err(RemoveError::NotPresent));
        assert_eq!(mm.section_state(nr), SectionState::Absent);
    }
    for nr in [2, 31, 32, 35] {
        add(nr).unwrap();
        mm.hotplug().online(SectionNr::new(nr), ZoneType::Movable).unwrap();
        mm.check();
    }
    assert_eq!(counters(mm, ZoneType::Movable)[..2], [34 * 32768, 4 * 32768]);
    for nr in [31, 2, 35, 32] {
        mm.hotplug().offline(SectionNr::new(nr)).unwrap();
        mm.hotplug().remove_memory(SectionNr::new(nr)).unwrap();
        mm.check();
    }
}

/// Each operation in each state that does not allow it is an error that changes nothing.
#[test]
fn wrong_states() {
    for on in [true, false] {
        let mm = machine(on);
        let all = PageblockSet::ALL;
        let start = mm.stats();
        assert_eq!(mm.hotplug().online(BLOCK, ZoneType::Movable), Err(OnlineError::NotPresent));
        assert_eq!(mm.hotplug().online_pageblocks(BLOCK, all), Err(OnlineError::NotOnline));
        assert_eq!(mm.hotplug().offline(BLOCK), Err(OfflineError::NotOnline));
        assert_eq!(mm.hotplug().offline_pageblocks(BLOCK, all), Err(OfflineError::NotOnline));
        assert_eq!(mm.hotplug().remove_memory(BLOCK), Err(RemoveError::NotPresent));
        assert_eq!(
            mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::NONE, MemoryContent::Unknown),
            Err(AddError::NothingPlugged)
        );
        let without_first = PageblockSet::range(1..64);
        if on {
            assert_eq!(
                mm.hotplug().add_memory(NodeId::FIRST, BLOCK, without_first, MemoryContent::Unknown),
                Err(AddError::NoMemmap)
            );
        }
        assert_eq!(mm.stats(), start);

        mm.hotplug().add_memory(NodeId::FIRST, BLOCK, all, MemoryContent::Unknown).unwrap();
        let added = mm.stats();
        assert_eq!(
            mm.hotplug().add_memory(NodeId::FIRST, BLOCK, all, MemoryContent::Unknown),
            Err(AddError::Exists)
        );
        assert_eq!(mm.hotplug().online(BLOCK, ZoneType::Dma32), Err(OnlineError::WrongZone));
        assert_eq!(mm.hotplug().offline(BLOCK), Err(OfflineError::NotOnline));
        assert_eq!(mm.hotplug().online_pageblocks(BLOCK, all), Err(OnlineError::NotOnline));
        assert_eq!(mm.hotplug().offline_pageblocks(BLOCK, all), Err(OfflineError::NotOnline));
        assert_eq!(mm.stats(), added);

        mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
        let online = mm.stats();
        assert_eq!(
            mm.hotplug().add_memory(NodeId::FIRST, BLOCK, all, MemoryContent::Unknown),
            Err(AddError::Exists)
        );
        assert_eq!(mm.hotplug().online(BLOCK, ZoneType::Movable), Err(OnlineError::Online));
        assert_eq!(mm.hotplug().online_pageblocks(BLOCK, all), Err(OnlineError::Plugged));
        assert_eq!(mm.hotplug().remove_memory(BLOCK), Err(RemoveError::Online));
        assert_eq!(mm.stats(), online);
        mm.check();

        let low = SectionNr::new(5);
        mm.hotplug().add_memory(NodeId::FIRST, low, all, MemoryContent::Unknown).unwrap();
        assert_eq!(mm.hotplug().online(low, ZoneType::Normal), Err(OnlineError::WrongZone));
        mm.hotplug().online(low, ZoneType::Dma32).unwrap();
        mm.check();
    }
}

/// Without memmap on memory, growing takes pages of boot memory, and fails cleanly when they are used up. With
/// it, growing takes none.
#[test]
fn memmap_from_boot_memory_runs_out() {
    // 16 MiB free at boot.
    let memory: Vec<_> = [(0, 6 * 1024)].into();
    for on in [true, false] {
        let mm = SimMachine {
            memory: memory.clone(),
            sections: 80,
            options: SimMachine::OPTIONS.with_memmap_on_memory(on),
            ..SimMachine::default()
        }
        .boot();
        let all_free = |mm: &Mm<Sim>| mm.stats().zones[0].free + mm.stats().zones[0].pcp;
        let free = all_free(mm);
        let mut added = 0;
        let refused = (32..80).map(SectionNr::new).find_map(|nr| {
            let before = state_of(mm, 80);
            let result =
                mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown);
            if result.is_err() {
                assert_eq!(state_of(mm, 80), before, "a refused memory block changes nothing");
                assert!(!mm.platform().is_mapped(nr.start()));
            } else {
                added += 1;
            }
            result.err()
        });
        mm.check();
        let taken = free - all_free(mm);
        if on {
            assert_eq!((refused, added, taken), (None, 48, 0));
        } else {
            assert_eq!((refused, taken), (Some(AddError::NoMemory), added * 512));
            for nr in (32..32 + added as u32).map(SectionNr::new) {
                mm.hotplug().remove_memory(nr).unwrap();
            }
            assert_eq!(all_free(mm), free);
            mm.check();
        }
    }
}

/// When the pages of a memmap in older memory prevent offlining, the error names their holder.
#[test]
fn holder_of_a_memmap() {
    let mm = machine(false);
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Normal).unwrap();
    // Kernel memory comes from Normal first, so the memmap of the next memory block lies in this one.
    let next = SectionNr::new(33);
    mm.hotplug().add_memory(NodeId::FIRST, next, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    let memmap = mm.platform().memmap_of(next).unwrap();
    assert!(BLOCK.frames().contains(memmap));
    let Err(OfflineError::Unmovable(stuck)) = mm.hotplug().offline(BLOCK) else {
        panic!("it holds a memmap")
    };
    assert_eq!((stuck.pages, stuck.first[0]), (512, Some((memmap, Holder::Memmap))));
    assert_eq!(stuck.first[1], None);
    mm.hotplug().remove_memory(next).unwrap();
    mm.hotplug().offline(BLOCK).unwrap();
    mm.check();
}

/// In a kernel zone a kernel page makes its memory block unmovable. Offlining fails at once and names the page.
#[test]
fn kernel_page_in_normal() {
    let mm = machine(true);
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Normal).unwrap();
    let table = mm.alloc_pages(Order::PAGE, Gfp::PageTable).unwrap();
    let data = mm.alloc_pages(Order::new(4), Gfp::Kernel).unwrap();
    let before = mm.stats().zones;
    let Err(OfflineError::Unmovable(stuck)) = mm.hotplug().offline(BLOCK) else {
        panic!("pages cannot move")
    };
    assert_eq!(stuck.pages, 17);
    let mut expected = [(table, Holder::PageTable), (data, Holder::Kernel)];
    expected.sort_by_key(|&(pfn, _)| pfn);
    assert_eq!(stuck.first, [Some(expected[0]), Some(expected[1]), None, None]);
    mm.check();
    let drained = |zones: [ZoneStats; 3]| zones.map(|zone| (zone.managed, zone.free + zone.pcp));
    assert_eq!(drained(mm.stats().zones), drained(before));
    mm.free_pages(table, Order::PAGE);
    mm.free_pages(data, Order::new(4));
    mm.hotplug().offline(BLOCK).unwrap();
    mm.check();
}
