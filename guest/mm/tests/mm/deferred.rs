//! Boot memory whose struct pages are initialised on demand, or later by all CPUs.
//!
//! Numbers such as S4.15 are those of the claims in `docs/features.md`.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;

use tidevm_mm::{
    AddError, BlockState, Gfp, InitPolicy, MemoryContent, Mm, NodeId, OfflineError, OnlineError, Order,
    PageblockSet, Pfn, RemoveError, SECTION_PAGES, SectionNr, SectionState, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::BLOCK;

/// Sections of boot memory, all in one zone.
const SECTIONS: u32 = 8;

fn machine(cpus: usize, init: InitPolicy, grow: bool) -> &'static Mm<Sim> {
    SimMachine {
        memory: [(0, SECTIONS * SECTION_PAGES)].into(),
        cpus,
        options: SimMachine::OPTIONS.with_init(init).with_grow(grow),
        ..SimMachine::default()
    }
    .boot()
}

fn deferred(cpus: usize) -> &'static Mm<Sim> {
    machine(cpus, InitPolicy::Deferred, true)
}

fn take(mm: &Mm<Sim>, pages: u32) -> Vec<Pfn> {
    (0..pages).map_while(|_| mm.alloc_pages(Order::PAGE, Gfp::Kernel).ok()).collect()
}

fn initialised(mm: &Mm<Sim>) -> u32 {
    let online = |&nr: &u32| mm.section_state(SectionNr::new(nr)) == SectionState::Online;
    (0..SECTIONS).filter(online).count() as u32
}

fn finish(mm: &Mm<Sim>) {
    while mm.init_deferred() {}
    assert!(mm.is_all_initialised());
}

/// S1.18: boot initialises one section; present and spanned pages count all sections, and the deferred ones are
/// counted.
#[test]
fn boot_initialises_one_section() {
    let mm = deferred(1);
    let eager = machine(1, InitPolicy::Eager, true);
    assert_eq!(initialised(mm), 1);
    mm.check();
    let (zone, whole) = (mm.stats().zones[0], eager.stats().zones[0]);
    assert_eq!((zone.spanned, zone.present), (whole.spanned, whole.present));
    assert_eq!((zone.managed, zone.free + mm.stats().deferred_pages()), (whole.managed, whole.free));
    assert!(!mm.is_all_initialised());
}

/// S1.1: an early demand beyond the first section is met, and only as many sections as needed are initialised
/// for it.
#[test]
fn early_allocations_initialise_the_sections_they_need() {
    let mm = deferred(1);
    let demand = 4 * SECTION_PAGES;
    let pages = take(mm, demand);
    assert_eq!(pages.len() as u32, demand);
    // The first one, those of the demand, and one for watermarks and pages that boot has taken.
    assert!((5..=6).contains(&initialised(mm)), "{} sections", initialised(mm));
    mm.check();
    finish(mm);
    mm.check();
    pages.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
    mm.check();
}

/// The same with growing off: the allocation fails although most memory is free.
#[test]
fn without_growing_early_allocations_fail() {
    let mm = machine(1, InitPolicy::Deferred, false);
    let pages = take(mm, 2 * SECTION_PAGES);
    assert!(
        (pages.len() as u32) < SECTION_PAGES && mm.stats().deferred_pages() > 5 * u64::from(SECTION_PAGES)
    );
    finish(mm);
    assert_eq!(take(mm, SECTION_PAGES).len() as u32, SECTION_PAGES);
}

/// S1.13: all of memory can be allocated this way, and then allocations fail.
#[test]
fn all_of_memory_can_be_allocated_early() {
    let [mm, eager] = [deferred(1), machine(1, InitPolicy::Eager, true)];
    let [all, whole] = [mm, eager].map(|mm| take(mm, u32::MAX).len());
    // Watermarks follow the size of zones, and are those of one section until all are initialised.
    assert!(all >= whole, "{all} and {whole} pages");
    assert_eq!((initialised(mm), mm.stats().deferred_pages()), (SECTIONS, 0));
    assert!(mm.alloc_pages(Order::PAGE, Gfp::Kernel).is_err());
    mm.check();
}

/// Allocations of large buddy blocks grow the zone too.
#[test]
fn blocks_of_the_largest_order_grow_the_zone() {
    let mm = deferred(1);
    let blocks: Vec<Pfn> = std::iter::from_fn(|| mm.alloc_pages(Order::MAX, Gfp::Kernel).ok()).collect();
    assert!(blocks.len() > 7 * 31, "{} blocks", blocks.len());
    mm.check();
}

/// Deferred and eager end in the same state: every counter and every allocation is the same.
#[test]
fn deferred_and_eager_end_in_the_same_state() {
    let [mm, eager] = [deferred(2), machine(2, InitPolicy::Eager, true)];
    finish(mm);
    let same = |what: &str| {
        mm.check();
        eager.check();
        let [stats, whole] = [mm, eager].map(|mm| {
            let mut stats = mm.stats();
            stats.pcp_limit_updates = 0;
            stats.deferred_sections = eager.stats().deferred_sections;
            stats
        });
        assert_eq!(stats, whole, "{what}");
        assert_eq!(
            mm.free_blocks(NodeId::FIRST.zone(ZoneType::Dma32)),
            eager.free_blocks(NodeId::FIRST.zone(ZoneType::Dma32)),
            "{what}"
        );
    };
    same("initialised");
    for mm in [mm, eager] {
        mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    }
    same("grown");
    let [pages, others] = [mm, eager].map(|mm| take(mm, 3 * SECTION_PAGES));
    assert!(pages == others, "pages are allocated in the same order");
    same("used");
}

/// Three nodes of three sections; only the first section of each is initialised. The last node has no CPU.
fn three_nodes() -> &'static Mm<Sim> {
    let node = |node: u32| (3 * node * SECTION_PAGES, 3 * SECTION_PAGES);
    SimMachine {
        memory: [(0, 9 * SECTION_PAGES)].into(),
        cpus: 2,
        cpu_nodes: [0, 1].into(),
        nodes: (0..3).map(|nr| (node(nr).0, node(nr).1, nr as u8)).collect(),
        options: SimMachine::OPTIONS.with_init(InitPolicy::Deferred),
        ..SimMachine::default()
    }
    .boot()
}

/// S2.7: one worker migrates to a CPU of the node whose memory it initialises, and finishes a node before the
/// next.
#[test]
fn a_single_worker_migrates_from_node_to_node() {
    let mm = three_nodes();
    let (mut cpu, mut moves) = (0, Vec::new());
    while let Some(next) = Sim::run_on(cpu, || mm.next_deferred_cpu()) {
        if next != cpu {
            moves.push((cpu, next));
            cpu = next;
        }
        assert!(Sim::run_on(cpu, || mm.init_deferred()), "a section is left to claim");
    }
    assert_eq!(moves, [(0, 1)]);
    let by = mm.stats().deferred_sections;
    assert_eq!([by[0], by[1]], [[2, 0, 0, 0], [0, 2, 0, 0]], "each node's sections by a CPU of that node");
    assert_eq!(by[2].iter().sum::<u32>(), 2, "node 2's sections by a CPU of another node");
    assert!(mm.is_all_initialised());
    mm.check();
}

/// S2.6: with a worker on every CPU, each initialises memory of its own node as long as sections are left
/// there.
#[test]
fn workers_initialise_the_memory_of_their_own_nodes() {
    let mm = three_nodes();
    // In turns, so that both workers finish their own node at the same time.
    for _ in 0..2 {
        for cpu in 0..2 {
            assert!(Sim::run_on(cpu, || mm.init_deferred()));
        }
    }
    let by = mm.stats().deferred_sections;
    assert_eq!(by, [[2, 0, 0, 0], [0, 2, 0, 0], [0; 4], [0; 4]]);
    while Sim::run_on(1, || mm.init_deferred()) {}
    assert_eq!(mm.stats().deferred_sections[2], [0, 2, 0, 0], "node 2's sections by the CPU that was free");
    assert!(mm.is_all_initialised());
    mm.check();
}

/// While workers initialise and other CPUs allocate nearly all memory, no allocation fails and no page is
/// allocated twice.
#[test]
fn workers_and_allocations_race() {
    const WORKERS: usize = 2;
    const TAKERS: usize = 2;
    for _ in 0..4 {
        let mm = deferred(WORKERS + TAKERS + 1);
        let taken = AtomicU64::new(0);
        // All but a third of a section: watermarks and per-CPU lists keep some pages.
        let all = mm.stats().zones[0].managed;
        let each = (all as u32 - SECTION_PAGES / 3) / TAKERS as u32;
        thread::scope(|scope| {
            for cpu in 0..WORKERS {
                scope.spawn(move || Sim::run_on(cpu, || while mm.init_deferred() {}));
            }
            for cpu in WORKERS..WORKERS + TAKERS {
                let taken = &taken;
                scope.spawn(move || {
                    Sim::run_on(cpu, || {
                        let pages = take(mm, each);
                        for (index, &page) in pages.iter().enumerate() {
                            mm.platform().write(page, (cpu as u64) << 32 | index as u64);
                        }
                        for (index, &page) in pages.iter().enumerate() {
                            assert_eq!(mm.platform().read(page), (cpu as u64) << 32 | index as u64);
                        }
                        taken.fetch_add(pages.len() as u64, SeqCst);
                    });
                });
            }
            let check = move || (0..3).map(|_| mm.check().pages).sum::<u64>();
            scope.spawn(move || Sim::run_on(WORKERS + TAKERS, check));
        });
        assert_eq!(taken.load(SeqCst), u64::from(each) * TAKERS as u64);
        finish(mm);
        // S1.9: every struct page of every section is written once.
        assert_eq!(mm.stats().memmaps_written, u64::from(SECTIONS));
        mm.check();
    }
}

/// S1.10: memory blocks are added and removed in a zone that is partly deferred.
#[test]
fn memory_blocks_join_a_zone_that_is_deferred() {
    let mm = deferred(1);
    let low = SectionNr::new(SECTIONS + 2);
    for nr in [3, SECTIONS - 1].map(SectionNr::new) {
        assert_eq!(mm.hotplug().online(nr, ZoneType::Dma32), Err(OnlineError::Online));
        assert_eq!(mm.hotplug().offline(nr), Err(OfflineError::BootMemory));
        assert_eq!(mm.hotplug().remove_memory(nr), Err(RemoveError::Online));
        assert_eq!(
            mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown),
            Err(AddError::Exists)
        );
    }
    let spanned = mm.stats().zones[0].spanned;
    mm.hotplug().add_memory(NodeId::FIRST, low, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(low, ZoneType::Dma32).unwrap();
    mm.check();
    assert_eq!(mm.stats().zones[0].spanned, spanned + 3 * u64::from(SECTION_PAGES));
    mm.hotplug().offline(low).unwrap();
    mm.hotplug().remove_memory(low).unwrap();
    assert_eq!(mm.stats().zones[0].spanned, spanned);
    mm.check();
    finish(mm);
    mm.check();
}

/// S1.8: growing by a section with three free pages counts as growth. The allocation tries again and gets its
/// buddy block from the next section.
#[test]
fn growing_less_than_was_asked_for_is_growing() {
    let memory = [(0, 3 * SECTION_PAGES)].into();
    let reserved = [(0, 1024), (SECTION_PAGES, SECTION_PAGES - 3)].into();
    let mm = SimMachine {
        memory,
        reserved,
        options: SimMachine::OPTIONS.with_init(InitPolicy::Deferred),
        ..SimMachine::default()
    }
    .boot();
    while initialised(mm) == 1 {
        mm.alloc_pages(Order::MAX, Gfp::Kernel).expect("a deferred section has free buddy blocks");
    }
    assert_eq!(initialised(mm), 3, "the section with three free pages, and the one after it");
    mm.check();
}

/// S2.6 and S2.7: a worker per node, or one worker that migrates from node to node. Either way every section is
/// initialised by a CPU of its node, and the end state is the same.
#[test]
fn each_node_by_its_own_cpus_or_by_one_that_migrates() {
    let section = |nr: u32| nr * SECTION_PAGES;
    let booted = || {
        let machine = SimMachine {
            memory: [(0, section(4)), (section(32), section(4))].into(),
            nodes: [(0, section(4), 0), (section(32), section(4), 1)].into(),
            cpus: 2,
            cpu_nodes: [0, 1].into(),
            options: SimMachine::OPTIONS.with_init(InitPolicy::Deferred),
            ..SimMachine::default()
        };
        machine.boot()
    };
    let own_node = |mm: &Mm<Sim>| mm.stats().deferred_sections;
    let parallel = booted();
    thread::scope(|scope| {
        for cpu in 0..2 {
            let of_node = move || own_node(parallel)[cpu].iter().sum::<u32>();
            // Each CPU initialises as many sections as its node has. A CPU that finishes early would help
            // another node.
            scope.spawn(move || Sim::run_on(cpu, || while of_node() < 3 && parallel.init_deferred() {}));
        }
    });
    let migrating = booted();
    for cpu in 0..2 {
        Sim::run_on(cpu, || while own_node(migrating)[cpu][cpu] < 3 && migrating.init_deferred() {});
    }
    let mut expected = own_node(parallel).map(|by| by.map(|_| 0));
    (expected[0][0], expected[1][1]) = (3, 3);
    for mm in [parallel, migrating] {
        assert_eq!(own_node(mm), expected);
        finish(mm);
        mm.check();
    }
    let [one, other] = [parallel, migrating].map(|mm| mm.stats().nodes);
    assert_eq!(one, other);
}

/// The memory blocks of `mm` from section `from` on: first section, number of blocks, state.
fn listed(mm: &Mm<Sim>, from: u32) -> Vec<(u32, u32, BlockState)> {
    let mut listed = Vec::new();
    mm.hotplug().each_memory_block(SectionNr::new(from), |block| {
        assert!(block.boot && block.zone.is_some_and(|zone| zone.node() == block.node));
        listed.push((block.first.get(), block.count, block.state));
        true
    });
    listed
}

/// Boot memory is listed and counted from boot on: what is deferred by ranges, with its state and zone.
#[test]
fn deferred_memory_is_listed_and_counted() {
    use BlockState::{Deferred, Online};
    let memory = [(0, 3 * SECTION_PAGES), (32 * SECTION_PAGES, 4 * SECTION_PAGES)].into();
    let machine = SimMachine {
        memory,
        options: SimMachine::OPTIONS.with_init(InitPolicy::Deferred),
        ..SimMachine::default()
    };
    let mm = machine.boot();
    let all = u64::from(7 * SECTION_PAGES);
    let online = listed(mm, 0).iter().filter(|block| block.2 == Online).count();
    assert!(online < 7 && listed(mm, 0).contains(&(33, 3, Deferred)), "{:?}", listed(mm, 0));
    assert_eq!(listed(mm, 34), [(34, 2, Deferred)], "the list can begin inside of a range");
    let mut told = 0;
    loop {
        let list = listed(mm, 0);
        let blocks: Vec<u32> = list.iter().flat_map(|&(first, count, _)| first..first + count).collect();
        assert_eq!(blocks, [0, 1, 2, 32, 33, 34, 35], "each once: {list:?}");
        assert_eq!(mm.stats().blocks_online, 7);
        let checked = mm.check();
        let deferred = list.iter().filter(|block| block.2 == Deferred).map(|block| u64::from(block.1));
        assert_eq!(checked.deferred, deferred.sum::<u64>() * u64::from(SECTION_PAGES));
        assert_eq!(checked.pages + checked.deferred, all);
        told += 1;
        if !mm.init_deferred() {
            break;
        }
    }
    assert!(told > 1 && listed(mm, 0).iter().all(|block| block.2 == Online));

    // A listener may allocate, also what is deferred.
    let mm = machine.boot();
    let mut taken = Vec::new();
    mm.hotplug().each_memory_block(SectionNr::new(0), |_| {
        taken.extend((0..SECTION_PAGES / 1024).filter_map(|_| mm.alloc_pages(Order::MAX, Gfp::Kernel).ok()));
        true
    });
    assert!(!taken.is_empty());
}
