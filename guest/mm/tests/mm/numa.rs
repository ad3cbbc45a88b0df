//! Nodes: zone order, uses of a node with hot-added memory only, nodes that appear and go, and the CPUs that
//! initialise their boot memory.
//!
//! Numbers such as S4.15 are those of the claims in `docs/features.md`.

use tidevm_mm::{
    Gfp, InitPolicy, MEMMAP_PAGES, Memblock, MemoryContent, Mm, NodeId, NodeOverlap, Order, PageblockSet,
    Pfn, PhysAddr, PhysRange, SECTION_PAGES, SectionNr, SectionState, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{BLOCK, Tenant, zones};

/// First frame of memory above 4 GiB.
const FOUR_GIB: u32 = 1 << 20;
const N0: NodeId = NodeId::new(0);
const N1: NodeId = NodeId::new(1);
const N2: NodeId = NodeId::new(2);

fn section(nr: u32) -> (u32, u32) {
    (nr * SECTION_PAGES, SECTION_PAGES)
}

/// Two nodes with a CPU each: two sections below 4 GiB, and two above.
fn two_nodes() -> SimMachine {
    SimMachine {
        memory: [(0, 2 * SECTION_PAGES), (FOUR_GIB, 2 * SECTION_PAGES)].into(),
        nodes: [(0, FOUR_GIB, 0), (FOUR_GIB, 2 * SECTION_PAGES, 1)].into(),
        cpus: 2,
        cpu_nodes: [0, 1].into(),
        sections: 40,
        ..SimMachine::default()
    }
}

/// A memory block that is not boot memory of any machine here.
const HOT: SectionNr = SectionNr::new(36);

fn add_movable(mm: &Mm<Sim>, node: NodeId, nr: SectionNr) {
    mm.hotplug().add_memory(node, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(nr, ZoneType::Movable).unwrap();
}

/// Takes all pages that CPU `cpu` gets for `gfp`, and returns them with the sections that they came
/// from, in the order in which each was first used.
fn take_all(mm: &Mm<Sim>, cpu: usize, gfp: Gfp) -> (Vec<Pfn>, Vec<u32>) {
    let mut sections = Vec::new();
    let pages = Sim::run_on(cpu, || {
        std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, gfp).ok())
            .inspect(|pfn| {
                let nr = pfn.section().get();
                if !sections.contains(&nr) {
                    sections.push(nr);
                }
            })
            .collect()
    });
    (pages, sections)
}

fn free_all(mm: &Mm<Sim>, pages: Vec<Pfn>) {
    pages.into_iter().for_each(|pfn| mm.free_pages(pfn, Order::PAGE));
    mm.check();
}

/// Free pages of a node, including those on per-CPU lists.
fn free(mm: &Mm<Sim>, node: NodeId) -> u64 {
    mm.stats().nodes[node.index()].iter().map(|zone| zone.free + zone.pcp).sum()
}

/// All zones of the CPU's own node come first, from the top, then those of the next node by distance.
#[test]
fn fallback_by_distance() {
    let mm = SimMachine {
        memory: [(0, 8192), section(33), section(34), section(35)].into(),
        nodes: [section(33), section(34), section(35)]
            .map(|(at, len)| (at, len, (at >> 15) as u8 - 33))
            .into(),
        cpus: 3,
        cpu_nodes: [0, 1, 2].into(),
        distances: [(0, 1, 30), (0, 2, 15), (2, 0, 40)].into(),
        ..SimMachine::default()
    }
    .boot();
    add_movable(mm, N1, SectionNr::new(32));
    mm.check();
    assert_eq!([mm.distance(N0, N1), mm.distance(N1, N0), mm.distance(N1, N1)], [30, 20, 10]);
    // Section 33 is Normal of node 0, section 0 its Dma32; section 32 is Movable of node 1.
    for (cpu, gfp, order) in [
        (0, Gfp::Kernel, &[33, 0, 35, 34][..]),
        (0, Gfp::Movable, &[33, 0, 35, 32, 34]),
        // Nodes 0 and 2 are equally far: the next higher number comes first.
        (1, Gfp::Kernel, &[34, 35, 33, 0]),
        (1, Gfp::Movable, &[32, 34, 35, 33, 0]),
        (2, Gfp::Movable, &[35, 32, 34, 33, 0]),
    ] {
        let (pages, sections) = take_all(mm, cpu, gfp);
        assert_eq!(sections, order, "CPU {cpu}, {gfp:?}");
        free_all(mm, pages);
    }
}

/// Pages come from the node of the asking CPU and return to their own node, whichever CPU frees them.
#[test]
fn pages_are_of_the_own_node() {
    let mm = two_nodes().boot();
    let before = mm.stats().nodes;
    let mut pages = Vec::new();
    for (cpu, node) in [(0, 0), (1, 1)] {
        for order in [0, 3, 10].map(Order::new) {
            for gfp in [Gfp::Kernel, Gfp::PageTable, Gfp::Movable] {
                let pfn = Sim::run_on(cpu, || mm.alloc_pages(order, gfp)).unwrap();
                assert_eq!(pfn.get() / FOUR_GIB, node, "{order:?} of {gfp:?} for CPU {cpu} is {pfn:?}");
                pages.push((pfn, order, 1 - cpu));
            }
        }
    }
    for (pfn, order, other) in pages {
        Sim::run_on(other, || mm.free_pages(pfn, order));
    }
    mm.check();
    zones().for_each(|zone| drop(mm.zone_pcp_disable(zone)));
    assert_eq!(mm.stats().nodes, before);
}

/// Boot memory's memmap lies on the node that it describes.
#[test]
fn memmaps_of_boot_memory_are_node_local() {
    let mm = two_nodes().boot();
    mm.check();
    for nr in [0, 1, 32, 33] {
        let memmap = mm.platform().memmap_of(SectionNr::new(nr)).expect("boot memory");
        assert_eq!(memmap.get() / FOUR_GIB, nr / 32, "of section {nr}: {memmap:?}");
    }
    let nodes = mm.stats().nodes;
    assert_eq!([nodes[0][0].present, nodes[0][1].present], [65536, 0], "node 0 is Dma32");
    assert_eq!([nodes[1][0].present, nodes[1][1].present], [0, 65536], "node 1 is Normal");
    assert_eq!([nodes[0][0].managed, nodes[1][1].managed], [65536 - 1024 - 1024, 65536 - 1024]);
}

/// S4.3: no part of a node's memmap lies on another node, also when the node has no memory for the kernel. Only
/// movable pages are allocated on such a node.
#[test]
fn a_node_that_is_movable_only() {
    let mm = SimMachine { cpus: 2, cpu_nodes: [0, 2].into(), ..SimMachine::default() }.boot();
    let before = mm.stats();
    add_movable(mm, N2, BLOCK);
    mm.check();
    assert_eq!(mm.platform().memmap_of(BLOCK), Some(BLOCK.start()));
    let now = mm.stats();
    assert_eq!(now.nodes[0], before.nodes[0], "no page of the other node is used");
    let movable = now.nodes[2][ZoneType::Movable.index()];
    assert_eq!((movable.spanned, movable.present, movable.managed), (32768, 32768, 32768 - 512));
    assert_eq!(now.zones[ZoneType::Movable.index()], movable, "the sum over all nodes");

    let (kernel, sections) = take_all(mm, 1, Gfp::PageTable);
    assert!(!sections.contains(&BLOCK.get()), "kernel pages lie in {sections:?}");
    assert_eq!(free(mm, N2), movable.managed);
    let (movable, sections) = take_all(mm, 1, Gfp::Movable);
    assert_eq!(sections, [BLOCK.get()], "the rest is full");
    free_all(mm, kernel);
    free_all(mm, movable);
    mm.hotplug().offline(BLOCK).unwrap();
    mm.hotplug().remove_memory(BLOCK).unwrap();
    mm.check();
}

/// Without memmap on memory, the memmap comes from the memory block's node, or from the nearest node that has
/// memory for the kernel.
#[test]
fn a_memmap_elsewhere_is_near() {
    let mm = SimMachine {
        distances: [(2, 0, 40)].into(),
        options: SimMachine::OPTIONS.with_memmap_on_memory(false),
        ..two_nodes()
    }
    .boot();
    for (node, home) in [(N0, 0), (N1, 1), (N2, 1)] {
        add_movable(mm, node, HOT);
        mm.check();
        let memmap = mm.platform().memmap_of(HOT).expect("it was added");
        assert_eq!(memmap.get() / FOUR_GIB, home, "for {node:?} it lies at {memmap:?}");
        mm.hotplug().offline(HOT).unwrap();
        mm.hotplug().remove_memory(HOT).unwrap();
    }
    assert_eq!(mm.stats().memmap_boot_pages, 0);
}

/// S4.14, for a whole node: the node appears with its first memory block and goes with its last one. Counters
/// and orders of fallback follow.
#[test]
fn a_node_appears_and_goes() {
    let mm = two_nodes().boot();
    let node_of = |nr: u32| if nr < 32 { 0 } else { 1 + (nr - 32) / 4 };
    let fallback = || {
        [(0, Gfp::Movable), (1, Gfp::Kernel)].map(|(cpu, gfp)| {
            let (pages, sections) = take_all(mm, cpu, gfp);
            free_all(mm, pages);
            zones().for_each(|zone| drop(mm.zone_pcp_disable(zone)));
            let mut nodes: Vec<u32> = sections.into_iter().map(node_of).collect();
            nodes.dedup();
            nodes
        })
    };
    let (before, order) = (mm.stats(), fallback());
    assert_eq!(order, [[0, 1], [1, 0]], "boot");
    for zone in [ZoneType::Movable, ZoneType::Normal] {
        for round in 0..2 {
            for nr in [36, 38].map(SectionNr::new) {
                mm.hotplug().add_memory(N2, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
                assert_eq!(mm.stats().nodes, before.nodes, "added, not online");
                mm.hotplug().online(nr, zone).unwrap();
                mm.check();
                mm.hotplug().offline(nr).unwrap();
                mm.check();
                assert_eq!(mm.stats().nodes, before.nodes, "offline");
                mm.hotplug().remove_memory(nr).unwrap();
            }
            add_to(mm, N2, zone, [36, 38]);
            let all = mm.stats().nodes[2][zone.index()];
            assert_eq!((all.spanned, all.present, all.managed), (3 * 32768, 2 * 32768, 2 * 32256));
            // A node without CPUs comes before other nodes at the same distance.
            let kernel: &[u32] = if zone == ZoneType::Normal { &[1, 2, 0] } else { &[1, 0] };
            assert_eq!(fallback(), [&[0, 2, 1], kernel], "{zone:?}, round {round}");
            for nr in [38, 36].map(SectionNr::new) {
                mm.hotplug().offline(nr).unwrap();
                mm.hotplug().remove_memory(nr).unwrap();
                mm.check();
            }
            assert_eq!((mm.stats().zones, mm.stats().nodes), (before.zones, before.nodes), "gone");
            assert_eq!(fallback(), order);
        }
    }
}

fn add_to(mm: &Mm<Sim>, node: NodeId, zone: ZoneType, sections: [u32; 2]) {
    for nr in sections.map(SectionNr::new) {
        mm.hotplug().add_memory(node, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        mm.hotplug().online(nr, zone).unwrap();
    }
    mm.check();
}

/// Pages that must move stay on their node as long as it has room.
#[test]
fn migration_stays_on_the_node() {
    let mm = two_nodes().boot();
    let [own, other, here] = [36, 37, 38].map(SectionNr::new);
    add_movable(mm, N1, own);
    let tenant = Tenant::new(mm, 0, 40_000);
    Sim::run_on(1, || (0..20_000).for_each(|slot| _ = tenant.fill(slot, slot as u64).unwrap()));
    assert_eq!(tenant.held_in(own), 20_000);
    add_movable(mm, N0, other);
    add_movable(mm, N1, here);
    // The CPU that offlines the memory block is on node 0.
    mm.hotplug().offline(own).unwrap();
    assert_eq!((tenant.held_in(here), tenant.held_in(other)), (20_000, 0));
    mm.check();
    // The rest of the node is its Normal zone. When that is full too, pages go to the next node.
    let (kernel, sections) = take_all(mm, 1, Gfp::Kernel);
    assert_eq!(sections, [32, 33, 0, 1]);
    mm.hotplug().offline(here).unwrap();
    assert_eq!(tenant.held_in(other), 20_000);
    tenant.verify_all();
    free_all(mm, kernel);
    assert_eq!(tenant.release_all(), 20_000);
}

/// Number of initialised sections among the four from `first` on.
fn initialised(mm: &Mm<Sim>, first: u32) -> usize {
    (first..first + 4).filter(|&nr| mm.section_state(SectionNr::new(nr)) == SectionState::Online).count()
}

/// Two nodes of four sections each, a CPU on each.
fn deferred() -> &'static Mm<Sim> {
    SimMachine {
        memory: [(0, 4 * SECTION_PAGES), (FOUR_GIB, 4 * SECTION_PAGES)].into(),
        nodes: [(0, FOUR_GIB, 0), (FOUR_GIB, 4 * SECTION_PAGES, 1)].into(),
        options: SimMachine::OPTIONS.with_init(InitPolicy::Deferred),
        ..two_nodes()
    }
    .boot()
}

/// S1.12 for each node: its highest zone has one section at first, and grows when allocations need it.
#[test]
fn every_node_is_deferred_and_grows_by_itself() {
    let mm = deferred();
    mm.check();
    assert_eq!([0, 32].map(|first| initialised(mm, first)), [1, 1]);
    let pages: Vec<Pfn> = Sim::run_on(1, || {
        (0..2 * SECTION_PAGES).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Kernel).unwrap()).collect()
    });
    assert!(pages.iter().all(|pfn| pfn.get() >= FOUR_GIB), "node 1 grows before node 0 is used");
    assert_eq!([0, 32].map(|first| initialised(mm, first)), [1, 2], "only as many sections as needed");
    assert_eq!(mm.stats().deferred_sections[1], [0, 1, 0, 0]);
    mm.check();
    free_all(mm, pages);
    while mm.init_deferred() {}
    assert!(mm.is_all_initialised());
    let memmap = |nr| mm.platform().memmap_of(SectionNr::new(nr)).map(|pfn| pfn.get() / FOUR_GIB);
    assert_eq!([3, 35].map(memmap), [Some(0), Some(1)], "set aside on their nodes");
    mm.check();
}

/// S1.4 and S2.6: workers initialise memory of their own node first, and then help other nodes.
#[test]
fn workers_begin_with_their_own_node() {
    let mm = deferred();
    for done in 1..=3 {
        for cpu in [0, 1] {
            assert!(Sim::run_on(cpu, || mm.init_deferred()));
        }
        assert_eq!(mm.stats().deferred_sections[..2], [[done, 0, 0, 0], [0, done, 0, 0]]);
        mm.check();
    }
    assert!(!mm.init_deferred() && mm.is_all_initialised());

    let mm = deferred();
    while Sim::run_on(1, || mm.init_deferred()) {}
    assert_eq!(mm.stats().deferred_sections[..2], [[0, 3, 0, 0], [0, 3, 0, 0]]);
    assert_eq!(mm.stats().deferred_pages(), 0);
    assert!(mm.is_all_initialised());
    mm.check();
}

/// While workers of both nodes run at the same time, every deferred section is initialised once.
#[test]
fn workers_of_two_nodes_race() {
    let mm = deferred();
    let all: u64 = mm.stats().zones.iter().map(|zone| zone.managed).sum();
    std::thread::scope(|scope| {
        for cpu in [0, 1] {
            scope.spawn(move || Sim::run_on(cpu, || while mm.init_deferred() {}));
        }
        scope.spawn(|| (0..3).map(|_| mm.check().pages).sum::<u64>());
    });
    assert!(mm.is_all_initialised());
    mm.check();
    let stats = mm.stats();
    assert_eq!(stats.zones.iter().map(|zone| zone.managed).sum::<u64>(), all);
    for node in &stats.deferred_sections[..2] {
        assert_eq!(node.iter().sum::<u32>(), 3, "{:?}", stats.deferred_sections);
    }
}

/// CPUs on a node without memory allocate from the next node. A node without CPUs and memory changes nothing.
#[test]
fn a_node_without_memory() {
    let mm = SimMachine { cpus: 3, cpu_nodes: [0, 3, 1].into(), ..two_nodes() }.boot();
    mm.check();
    let (pages, sections) = take_all(mm, 1, Gfp::Movable);
    assert_eq!(sections, [0, 1, 32, 33]);
    free_all(mm, pages);
    assert_eq!(mm.stats().nodes[3].map(|zone| zone.present), [0; 3]);
}

fn range(first: u32, sections: u32) -> PhysRange {
    let bytes = |sections: u32| u64::from(sections) << 27;
    PhysRange::new(PhysAddr::new(bytes(first)), bytes(sections))
}

#[test]
fn ranges_of_two_nodes_may_not_overlap() {
    let mut memblock = Memblock::new();
    memblock.set_node(range(0, 4), N0).unwrap();
    memblock.set_node(range(4, 4), N1).unwrap();
    let common = NodeOverlap::With(range(3, 1), N0);
    assert_eq!(memblock.set_node(range(3, 2), N1), Err(common));
    memblock.set_node(range(2, 2), N0).expect("ranges of one node may overlap");
    let more = (8..).find_map(|nr| memblock.set_node(range(nr, 1), N2).err());
    assert_eq!(more, Some(NodeOverlap::Full));
}

/// A section belongs to the node of its first RAM with a known node, or else to node 0.
#[test]
fn the_node_of_a_section() {
    let mut memblock = Memblock::new();
    let mib = |start: u64, size: u64| PhysRange::new(PhysAddr::new(start << 20), size << 20);
    memblock.add(mib(0, 600)).unwrap();
    for (range, node) in [(mib(0, 200), N0), (mib(200, 200), N1), (mib(500, 700), N2)] {
        memblock.set_node(range, node).unwrap();
    }
    let nodes = [0, 1, 2, 3, 4, 5].map(|nr| memblock.node_of(SectionNr::new(nr)));
    // Section 3 begins at 384 MiB, and its first 16 MiB are on node 1. Section 5 has no RAM.
    assert_eq!(nodes, [N0, N0, N1, N1, N2, N0]);
    memblock.forget_nodes();
    assert_eq!(memblock.node_of(SectionNr::new(2)), N0);
    assert_eq!(
        memblock.alloc_on(N1, 4096, 4096),
        memblock.memory().last().map(|ram| PhysAddr::new(ram.end().get() - 4096))
    );
}

/// If a node is too small for the memmap of its boot memory, the memmap lies on another node.
#[test]
fn a_node_too_small_for_its_memmap() {
    // The node has 256 pages, and its memmap needs 512.
    let mm = SimMachine { memory: [(0, 2 * SECTION_PAGES), (FOUR_GIB, 256)].into(), ..two_nodes() }.boot();
    mm.check();
    let memmap = mm.platform().memmap_of(SectionNr::new(32)).expect("boot memory");
    assert!(memmap.get() + MEMMAP_PAGES <= 2 * SECTION_PAGES, "{memmap:?}");
    assert_eq!(mm.stats().nodes[1][ZoneType::Normal.index()].managed, 256);
}
