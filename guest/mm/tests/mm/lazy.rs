//! Struct pages that are initialised when they are first used.
//!
//! Numbers such as S4.15 are those of the claims in `docs/features.md`.

use tidevm_mm::{
    AddError, Gfp, InitPolicy, MemoryContent, Mm, NodeId, OfflineError, OnlineError, Order, PageblockSet,
    Pfn, RemoveError, SECTION_PAGES, SectionNr, SectionState, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{BLOCK, Tenant};

const ALL_PAGES: usize = SECTION_PAGES as usize;

fn machine(init: InitPolicy, content: MemoryContent) -> &'static Mm<Sim> {
    SimMachine { options: SimMachine::OPTIONS.with_init(init).with_content(content), ..SimMachine::default() }
        .boot()
}

fn add(mm: &Mm<Sim>, content: MemoryContent) {
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, content).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
}

fn written(mm: &Mm<Sim>, nr: SectionNr) -> usize {
    mm.platform().written_pages(nr)
}

/// Allocates all pages, and returns them in order of allocation.
fn take_all(mm: &Mm<Sim>) -> Vec<Pfn> {
    std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, Gfp::Movable).ok()).collect()
}

/// Boot initialises one section of two zones, however large memory is, and writes nothing for the others before
/// they are claimed. Then every page can be allocated, once.
#[test]
fn boot_writes_nothing_for_sections_that_are_not_claimed() {
    const HIGH: u32 = 32;
    for sections in [3, 12] {
        let memory = vec![(0, 3 * SECTION_PAGES), (HIGH * SECTION_PAGES, sections * SECTION_PAGES)];
        let machine = |init, content| {
            SimMachine {
                memory: memory.clone(),
                sections: 48,
                options: SimMachine::OPTIONS.with_init(init).with_content(content),
                ..SimMachine::default()
            }
            .boot()
        };
        let eager = machine(InitPolicy::Eager, MemoryContent::Unknown);
        let mm = machine(InitPolicy::Lazy, MemoryContent::Zero);
        let online = |mm: &Mm<Sim>| {
            let online = |&nr: &u32| mm.section_state(SectionNr::new(nr)) == SectionState::Online;
            (0..48).filter(online).collect::<Vec<_>>()
        };
        assert_eq!(online(mm), [HIGH]);
        let known = (0..48).filter(|&nr| mm.platform().memmap_of(SectionNr::new(nr)).is_some()).count();
        assert_eq!(known, 1);
        mm.check();
        assert_eq!(mm.stats().zones.map(|zone| zone.managed), eager.stats().zones.map(|zone| zone.managed));

        let (first, wanted) =
            (mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap(), sections * SECTION_PAGES / 2);
        assert_eq!(first.section().get(), HIGH);
        mm.free_pages(first, Order::PAGE);
        let some: Vec<Pfn> =
            (0..wanted).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
        let blocks = online(mm);
        assert!(blocks.len() as u32 <= sections / 2 + 2 && blocks.iter().all(|&nr| nr >= HIGH), "{blocks:?}");
        mm.check();
        some.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));

        let (all, of_eager) = (take_all(mm), take_all(eager));
        // A CPU's list takes the last pages of a zone 63 at a time, or not at all.
        assert!(all.len().abs_diff(of_eager.len()) < 63, "{} pages, {} eagerly", all.len(), of_eager.len());
        assert_eq!((online(mm), mm.stats().deferred_pages()), (online(eager), 0));
        assert!(all.iter().collect::<std::collections::HashSet<_>>().len() == all.len(), "each page once");
        mm.check();
    }
}

/// Operations on a section of boot memory that is not claimed are refused as for other boot memory.
#[test]
fn boot_memory_that_is_not_claimed_is_not_vacant() {
    let mm = SimMachine {
        memory: [(0, 6 * SECTION_PAGES)].into(),
        options: SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero),
        ..SimMachine::default()
    }
    .boot();
    let nr = SectionNr::new(3);
    assert_eq!(mm.section_state(nr), SectionState::Absent);
    assert_eq!(
        mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Zero),
        Err(AddError::Exists)
    );
    assert_eq!(mm.hotplug().online(nr, ZoneType::Movable), Err(OnlineError::Online));
    assert_eq!(mm.hotplug().offline(nr), Err(OfflineError::BootMemory));
    assert_eq!(mm.hotplug().remove_memory(nr), Err(RemoveError::Online));
    mm.check();
    assert_eq!(mm.section_state(nr), SectionState::Absent);
}

/// A zone that its reserve keeps from a request does not grow for that request.
#[test]
fn a_zone_does_not_grow_for_a_request_that_its_reserve_refuses() {
    // Dma32 has fewer pages than its reserve against requests that may use Normal.
    let mm = SimMachine {
        sections: 48,
        memory: [(0, 2560), (32 * SECTION_PAGES, 16 * SECTION_PAGES)].into(),
        options: SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero),
        ..SimMachine::default()
    }
    .boot();
    let lowest = mm.stats().zones[0].deferred;
    while mm.alloc_pages(Order::PAGE, Gfp::Kernel).is_ok() {}
    assert_eq!(mm.section_state(SectionNr::new(0)), SectionState::Absent);
    assert_eq!((mm.stats().deferred_pages(), mm.stats().zones[0].deferred), (lowest, lowest));
    assert!(mm.alloc_pages(Order::PAGE, Gfp::PageTable).is_ok());
    mm.check();
}

/// Pages that migrate off a memory block stay on its node, in boot memory that was not claimed before.
#[test]
fn migration_initialises_boot_memory() {
    const HIGH: u32 = 32;
    let node = NodeId::new(1);
    let mm = SimMachine {
        sections: 48,
        memory: [(0, 2 * SECTION_PAGES), (HIGH * SECTION_PAGES, 4 * SECTION_PAGES)].into(),
        nodes: [(0, HIGH * SECTION_PAGES, 0), (HIGH * SECTION_PAGES, 16 * SECTION_PAGES, 1)].into(),
        cpus: 2,
        cpu_nodes: vec![0, 1],
        options: SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero),
        ..SimMachine::default()
    }
    .boot();
    let block = SectionNr::new(40);
    mm.hotplug().add_memory(node, block, PageblockSet::ALL, MemoryContent::Zero).unwrap();
    mm.hotplug().online(block, ZoneType::Movable).unwrap();
    let tenant = Tenant::new(mm, 0, 30_000);
    Sim::run_on(1, || (0..30_000).for_each(|slot| _ = tenant.fill(slot, slot as u64).unwrap()));
    assert_eq!(tenant.held_in(block), 30_000);
    let normal = || mm.stats().nodes[1][ZoneType::Normal as usize];
    // The initialised part has no room for all of those pages.
    while normal().free > 10_000 {
        Sim::run_on(1, || mm.alloc_pages(Order::PAGE, Gfp::Kernel)).unwrap();
    }
    let before = normal().deferred;
    mm.hotplug().offline(block).unwrap();
    let held: usize = (HIGH..HIGH + 4).map(|nr| tenant.held_in(SectionNr::new(nr))).sum();
    assert_eq!(held, 30_000, "no page went to the other node");
    assert!(normal().deferred < before);
    tenant.verify_all();
    mm.check();
}

/// If no contiguous piece can hold the memmaps of all sections to defer, none is deferred.
#[test]
fn fragmented_memory_is_not_left_for_later() {
    // Between any two reserved pages there is room for one memmap, and not for two.
    let reserved = (0..3 * SECTION_PAGES).step_by(1024).map(|pfn| (pfn, 1)).collect();
    let machine = SimMachine {
        memory: [(0, 3 * SECTION_PAGES)].into(),
        reserved,
        options: SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero),
        ..SimMachine::default()
    };
    let mm = machine.boot();
    mm.check();
    assert_eq!((mm.stats().blocks_online, mm.stats().deferred_pages()), (3, 0));
    assert!(mm.is_all_initialised());
}

/// S4.21: 31 free buddy blocks of 1024 pages, one of 512, and the one that holds the memmap.
#[test]
fn onlining_writes_the_heads_of_free_blocks_and_nothing_else() {
    let mm = machine(InitPolicy::Lazy, MemoryContent::Zero);
    add(mm, MemoryContent::Zero);
    assert_eq!(written(mm, BLOCK), 31 + 1 + 1);
    mm.check();

    let mm = machine(InitPolicy::Eager, MemoryContent::Zero);
    add(mm, MemoryContent::Zero);
    assert_eq!(written(mm, BLOCK), ALL_PAGES);
}

/// S2.3, S2.4: beside heads of free buddy blocks, only pages that left the buddy allocator are written.
#[test]
fn a_page_is_initialised_when_it_is_handed_out() {
    let mm = machine(InitPolicy::Lazy, MemoryContent::Zero);
    add(mm, MemoryContent::Zero);
    let before = written(mm, BLOCK);
    let block = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
    assert_eq!(written(mm, BLOCK), before, "its head was written before, and its tails need not be");
    mm.split_page(block, Order::MAX);
    assert_eq!(written(mm, BLOCK), before + 1023);
    mm.free_contig_range(tidevm_mm::PfnRange::new(block, 1024));
    mm.check();

    let mm = machine(InitPolicy::Lazy, MemoryContent::Zero);
    add(mm, MemoryContent::Zero);
    let pages: Vec<Pfn> = (0..603).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
    // The first page was the head of the buddy block that was split. A refill brings 8 pages.
    assert_eq!(written(mm, BLOCK) - before, 608 - 1, "pages that were handed out or listed, and no other");
    mm.check();
    pages.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
    mm.check();
}

/// S2.2: a page is initialised on every path out of the buddy allocator, and its neighbours are not.
#[test]
fn every_way_out_initialises_the_pages_it_returns() {
    let order = |order| move |mm: &Mm<Sim>| _ = mm.alloc_pages(Order::new(order), Gfp::Movable).unwrap();
    // The first page that is handed out was the head of the buddy block that is split, and a split makes no heads.
    type Way<'w> = (&'static str, &'w dyn Fn(&Mm<Sim>), usize);
    let ways: [Way<'_>; 4] = [
        ("refill", &order(0), 7),
        ("a buddy block", &order(3), 0),
        ("the largest buddy block", &order(10), 0),
        ("a range", &|mm| _ = mm.alloc_contig_pages(2).unwrap(), 1023),
    ];
    for (what, take, expected) in ways {
        let mm = machine(InitPolicy::Lazy, MemoryContent::Zero);
        add(mm, MemoryContent::Zero);
        let before = written(mm, BLOCK);
        take(mm);
        assert_eq!(written(mm, BLOCK) - before, expected, "{what}");
        mm.check();
    }
}

/// Decision 7 (`docs/decisions`): a memmap of unknown content is written once, never twice.
#[test]
fn a_memmap_that_may_hold_anything_is_written_once() {
    let mm = machine(InitPolicy::Lazy, MemoryContent::Unknown);
    // The second section of boot memory is left for later.
    assert_eq!(mm.stats().memmaps_written, 1);
    while mm.init_deferred() {}
    assert_eq!(mm.stats().memmaps_written, 2);
    add(mm, MemoryContent::Unknown);
    assert_eq!((written(mm, BLOCK), mm.stats().memmaps_written), (ALL_PAGES, 3));
    mm.check();
}

/// Only a memmap in memory fresh from its provider is known to be zero, not a used one or one in older memory.
#[test]
fn a_memmap_that_was_used_is_not_zero() {
    let mm = machine(InitPolicy::Lazy, MemoryContent::Zero);
    add(mm, MemoryContent::Zero);
    let pages = take_all(mm);
    pages.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
    mm.hotplug().offline(BLOCK).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    assert_eq!(written(mm, BLOCK), ALL_PAGES);
    mm.check();

    let machine = SimMachine {
        options: SimMachine::OPTIONS
            .with_init(InitPolicy::Lazy)
            .with_content(MemoryContent::Zero)
            .with_memmap_on_memory(false),
        ..SimMachine::default()
    };
    let mm = machine.boot();
    let used: Vec<Pfn> = take_all(mm);
    used.iter().for_each(|&page| mm.platform().write(page, 1));
    used.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
    add(mm, MemoryContent::Zero);
    assert_eq!(written(mm, BLOCK), ALL_PAGES);
    mm.check();
}

/// S2.12: every counter and every allocation is the same under eager and lazy, from boot to the last page and
/// back.
#[test]
fn eager_and_lazy_end_in_the_same_state() {
    let [eager, lazy] =
        [machine(InitPolicy::Eager, MemoryContent::Unknown), machine(InitPolicy::Lazy, MemoryContent::Zero)];
    let same = |what: &str| {
        for mm in [eager, lazy] {
            mm.check();
        }
        let seen = |mm: &Mm<Sim>| {
            let mut stats = mm.stats();
            (stats.memmaps_written, stats.deferred_sections) = Default::default();
            stats
        };
        let [stats, others] = [eager, lazy].map(seen);
        assert_eq!(stats, others, "{what}");
        for zone in ZoneType::ALL {
            assert_eq!(
                eager.free_blocks(NodeId::FIRST.zone(zone)),
                lazy.free_blocks(NodeId::FIRST.zone(zone)),
                "{what}: {zone:?}"
            );
        }
    };
    let sizes = |mm: &Mm<Sim>| {
        let stats = mm.stats();
        stats.zones.map(|zone| (zone.spanned, zone.present, zone.managed, zone.free + stats.deferred_pages()))
    };
    assert_eq!(sizes(eager)[0], sizes(lazy)[0], "with one section of two initialised");
    while lazy.init_deferred() {}
    same("boot");
    add(eager, MemoryContent::Unknown);
    add(lazy, MemoryContent::Zero);
    same("online");
    let (of_eager, of_lazy) = (take_all(eager), take_all(lazy));
    assert!(of_eager == of_lazy, "pages are allocated in the same order");
    assert_eq!(
        of_eager.len() as u64,
        eager.stats().zones.iter().map(|zone| zone.managed).sum::<u64>()
            - eager.stats().zones.iter().map(|zone| zone.free + zone.pcp).sum::<u64>()
    );
    same("all taken");
    for &page in &of_eager {
        eager.free_pages(page, Order::PAGE);
        lazy.free_pages(page, Order::PAGE);
    }
    same("all free");
    for mm in [eager, lazy] {
        mm.hotplug().offline(BLOCK).unwrap();
        mm.hotplug().remove_memory(BLOCK).unwrap();
    }
    same("removed");
}

/// The same for boot memory: struct pages of free pages are not written.
#[test]
fn boot_writes_as_many_pages_as_there_are_blocks() {
    let mm = machine(InitPolicy::Lazy, MemoryContent::Zero);
    let heads: usize = [0, 1].map(|nr| written(mm, SectionNr::new(nr))).iter().sum();
    assert!(heads < 100, "{heads} pages were written of {}", 2 * ALL_PAGES);
}
