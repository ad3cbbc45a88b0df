//! The tables of each size: what the allocator does when they are full, and all that it does in every geometry.
//!
//! The sizes are constants of a build (`geometry.rs`). So this program is built again, by a nested cargo with a target folder
//! of its own, once per row of [`GEOMETRIES`], and run there.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use tidevm_mm::{
    DevPagemap, Gfp, InitPolicy, MAX_NODES, MAX_OWNERS, MAX_PGMAPS, MEMBLOCK_RANGES, Memblock, MemoryContent,
    MemremapError, Mm, MovableOwner, NodeId, Options, Order, OwnerId, Pfn, PhysRange, SECTION_PAGES,
    SectionNr, SectionRange, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine, address};

/// Other geometries: the variables of the environment and their values.
const GEOMETRIES: [[(&str, &str); 5]; 2] = [
    [
        ("TIDEVM_MM_NODES", "1"),
        ("TIDEVM_MM_OWNERS", "1"),
        ("TIDEVM_MM_PGMAPS", "1"),
        ("TIDEVM_MM_MEMBLOCK_RANGES", "8"),
        ("TIDEVM_MM_DEFERRED_RANGES", "8"),
    ],
    [
        ("TIDEVM_MM_NODES", "2"),
        ("TIDEVM_MM_OWNERS", "200"),
        ("TIDEVM_MM_PGMAPS", "40"),
        ("TIDEVM_MM_MEMBLOCK_RANGES", "300"),
        ("TIDEVM_MM_DEFERRED_RANGES", "17"),
    ],
];

/// The name of the test that builds this program again.
const OTHERS: &str = "the_suite_passes_in_other_geometries";

const TESTS: [(&str, fn()); 6] = [
    ("memory_of_every_node_comes_is_used_and_goes", memory_of_every_node_comes_is_used_and_goes),
    ("pages_of_every_owner_move", pages_of_every_owner_move),
    ("a_full_memory_map_is_an_error", a_full_memory_map_is_an_error),
    ("a_full_table_of_device_memory_is_an_error", a_full_table_of_device_memory_is_an_error),
    (
        "memory_that_cannot_be_left_for_later_is_initialised",
        memory_that_cannot_be_left_for_later_is_initialised,
    ),
    ("there_may_be_more_cpus_than_a_word_has_bits", there_may_be_more_cpus_than_a_word_has_bits),
];

fn main() -> ExitCode {
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok::<(), Failed>(())
        })
    };
    let trials = TESTS
        .into_iter()
        .chain([(OTHERS, the_suite_passes_in_other_geometries as fn())])
        .map(trial)
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn the_suite_passes_in_other_geometries() {
    for geometry in GEOMETRIES {
        let mut cargo = Command::new(env::var_os("CARGO").expect("cargo runs tests"));
        cargo.args([
            "test",
            "--locked",
            "--package",
            env!("CARGO_PKG_NAME"),
            "--test",
            "geometry",
            "--target-dir",
        ]);
        cargo.arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("geometry"));
        cargo.args(["--", "--skip", OTHERS]).current_dir(env!("CARGO_MANIFEST_DIR")).envs(geometry);
        let output = cargo.output().unwrap_or_else(|error| panic!("{cargo:?}: {error}"));
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{geometry:?}\n{text}");
        assert!(text.contains(&format!("{} passed", TESTS.len())), "{geometry:?}\n{text}");
    }
}

/// A machine with two sections of boot memory on each node, and a CPU on each. The section after them comes later.
fn machine(options: Options) -> &'static Mm<Sim> {
    let nodes = 0..MAX_NODES as u32;
    let memory = |node: u32| (4 * node * SECTION_PAGES, 2 * SECTION_PAGES);
    SimMachine {
        memory: nodes.clone().map(memory).collect(),
        nodes: nodes.clone().map(|node| (4 * node * SECTION_PAGES, 4 * SECTION_PAGES, node as u8)).collect(),
        cpus: MAX_NODES,
        cpu_nodes: nodes.map(|node| node as u8).collect(),
        options,
        ..SimMachine::default()
    }
    .boot()
}

fn memory_of_every_node_comes_is_used_and_goes() {
    for init in [InitPolicy::Eager, InitPolicy::Deferred, InitPolicy::Lazy] {
        let mm = machine(SimMachine::OPTIONS.with_init(init));
        let before = mm.stats().zones;
        for node in NodeId::all() {
            let range =
                SectionRange::new(SectionNr::new(4 * u32::from(node.get()) + 2), 2).expect("two sections");
            let (zone, content) = (ZoneType::Movable, MemoryContent::Unknown);
            let added = mm.hotplug().add_and_online_memory(node, range, 1, zone, content, || true);
            assert_eq!(added, Ok(range.end()), "{init:?}");
            let pages = Sim::run_on(node.index(), || {
                let orders = [Order::PAGE, Order::new(3), Order::PAGEBLOCK, Order::MAX];
                let pages = orders
                    .map(|order| (mm.alloc_pages(order, Gfp::Movable).expect("it has just come"), order));
                for (page, _) in pages {
                    assert!(range.sections().any(|nr| nr == page.section()), "{page:?} is not near {node:?}");
                }
                pages
            });
            mm.check();
            Sim::run_on(node.index(), || {
                pages.into_iter().for_each(|(page, order)| mm.free_pages(page, order))
            });
            mm.hotplug().offline_and_remove_from_end(range, || true).expect("nothing is in use");
        }
        mm.check();
        assert_eq!(
            mm.stats().zones[ZoneType::Movable.index()],
            before[ZoneType::Movable.index()],
            "{init:?}"
        );
    }
}

/// An owner of one page.
struct Owner(Mutex<Option<Pfn>>);

impl Owner {
    fn page(&self) -> Option<Pfn> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, page: Pfn) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(page);
    }
}

impl MovableOwner for Owner {
    fn isolate(&self, pfn: Pfn, _: u64) -> bool {
        self.page() == Some(pfn)
    }

    fn hand_over(&self, _: Pfn, to: Pfn, _: u64) -> bool {
        self.set(to);
        true
    }

    fn put_back(&self, _: Pfn, _: u64) {}
}

fn pages_of_every_owner_move() {
    let mm = machine(SimMachine::OPTIONS);
    let range = SectionRange::new(SectionNr::new(2), 1).expect("a section");
    let (zone, content) = (ZoneType::Movable, MemoryContent::Unknown);
    mm.hotplug().add_and_online_memory(NodeId::FIRST, range, 1, zone, content, || true).expect("it is new");
    let owners: Vec<&'static Owner> =
        (0..MAX_OWNERS).map(|_| &*Box::leak(Box::new(Owner(Mutex::new(None))))).collect();
    for (&owner, id) in owners.iter().zip(0..=u8::MAX) {
        mm.register_owner(OwnerId(id), owner);
        let page = mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("free pages");
        assert!(range.sections().any(|nr| nr == page.section()), "{page:?}");
        owner.set(page);
        mm.set_owner(page, OwnerId(id), id.into());
    }
    mm.hotplug().offline_and_remove_from_end(range, || true).expect("all pages can move");
    for owner in owners {
        let page = owner.page().expect("it has a page");
        assert!(!range.sections().any(|nr| nr == page.section()), "{page:?} did not move");
        mm.free_pages(page, Order::PAGE);
    }
    mm.check();
}

fn a_full_memory_map_is_an_error() {
    let mut memblock = Memblock::new();
    let range = |index: usize| PhysRange::new(address(2 * index as u32), 4096);
    (0..MEMBLOCK_RANGES).for_each(|index| memblock.add(range(index)).expect("the table has room"));
    assert!(memblock.add(range(MEMBLOCK_RANGES)).is_err());
}

fn a_full_table_of_device_memory_is_an_error() {
    let mm = SimMachine { sections: MAX_PGMAPS as u32 + 4, ..SimMachine::default() }.boot();
    let map = |index: usize| {
        let range = SectionNr::new(3 + index as u32).frames();
        mm.memremap_pages(DevPagemap::new(range, NodeId::FIRST))
    };
    let maps: Vec<_> = (0..MAX_PGMAPS).map(|index| map(index).expect("the table has room")).collect();
    assert_eq!(map(MAX_PGMAPS), Err(MemremapError::TooMany));
    drop(maps);
    mm.check();
}

/// Every second memory block is one deferred range. When there is no room for another one, memory is initialised at once.
fn memory_that_cannot_be_left_for_later_is_initialised() {
    const BLOCKS: u32 = 80;
    let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy);
    let mm = SimMachine { sections: 4 + 2 * BLOCKS, options, ..SimMachine::default() }.boot();
    for nr in (0..BLOCKS).map(|index| SectionNr::new(4 + 2 * index)) {
        let (zone, content) = (ZoneType::Movable, MemoryContent::Unknown);
        let added = mm.hotplug().add_and_online_memory(NodeId::FIRST, nr.into(), 1, zone, content, || true);
        assert!(added.is_ok(), "{nr:?}: {added:?}");
    }
    let stats = mm.stats();
    assert_eq!(stats.zones[ZoneType::Movable.index()].present, u64::from(BLOCKS * SECTION_PAGES));
    let all = u64::from(BLOCKS * SECTION_PAGES);
    assert!((1..all).contains(&stats.deferred_pages()), "{} pages are deferred", stats.deferred_pages());
    mm.check();
}

fn there_may_be_more_cpus_than_a_word_has_bits() {
    const CPUS: usize = 130;
    let mm = SimMachine { cpus: CPUS, ..SimMachine::default() }.boot();
    let pages: Vec<Pfn> = (0..CPUS)
        .map(|cpu| Sim::run_on(cpu, || mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("free pages")))
        .collect();
    pages
        .into_iter()
        .enumerate()
        .for_each(|(cpu, page)| Sim::run_on(cpu, || mm.free_pages(page, Order::PAGE)));
    drop(mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Dma32)));
    mm.check();
}
