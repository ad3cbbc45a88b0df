//! NUMA nodes in a booted guest: described by ACPI or on the command line, with memory that comes and goes on one
//! node.

use tidevm_abi::{MEMORY_BLOCK_SIZE, NodeStats};
use tidevm_machine::{Config, ConsoleMode, HotplugConfig, InitPolicy, NodeConfig, Size};
use tidevm_tests::{Session, Test, machine, run_checked};

pub const TESTS: &[Test] = &[
    ("two_nodes_by_srat", two_nodes_by_srat),
    ("two_nodes_by_the_command_line", two_nodes_by_the_command_line),
    ("a_node_that_is_movable_only", a_node_that_is_movable_only),
    ("a_cpu_on_a_node_without_memory", a_cpu_on_a_node_without_memory),
    ("every_node_is_initialised_in_the_end", every_node_is_initialised_in_the_end),
    ("more_nodes_than_there_can_be", more_nodes_than_there_can_be),
    ("a_command_line_that_is_no_nodes", a_command_line_that_is_no_nodes),
];

const MIB: u64 = 1 << 20;
const BLOCK_PAGES: u64 = MEMORY_BLOCK_SIZE >> 12;

/// A VM with the given memory blocks of boot memory and CPUs per node. The hotplug region is on node 1.
fn on_nodes(nodes: &[(u64, u8)]) -> Config {
    let numa: Vec<NodeConfig> = nodes
        .iter()
        .map(|&(blocks, cpus)| NodeConfig { memory: Size(blocks * MEMORY_BLOCK_SIZE), cpus })
        .collect();
    Config {
        cpus: numa.iter().map(|node| node.cpus).sum(),
        memory: Size(numa.iter().map(|node| node.memory.0).sum()),
        hotplug: vec![HotplugConfig { node: Some(1), ..HotplugConfig::new(Size::mib(512)) }],
        numa,
        ..machine(0)
    }
}

/// The guest's nodes after the first step whose text is `command`.
#[track_caller]
fn nodes_after(session: &Session, command: &str) -> Vec<NodeStats> {
    let step = session.steps.iter().find(|step| step.command.to_string() == command);
    let guest = step.and_then(|step| step.sample.guest).expect("a guest to ask");
    guest.nodes[..guest.nr_nodes.into()].to_vec()
}

/// Grows and shrinks node 1 while it is in use, so that data has to move.
const GROW_NODE_1: &str = "
    expect node.0.zone.DMA32.present >= 32000
    expect node.1.zone.DMA32.present == 32768
    expect node.0.zone.Movable.present == 0
    plug 258M
    expect node.1.zone.Movable.present == 98304
    expect node.1.zone.Movable.managed == 64512
    expect zone.Movable.present == 98304
    expect node.0.zone.Movable.present == 0
    hog 2M movable scattered as data
    resize 130M within 60s
    expect node.1.zone.Movable.present == 65536
    verify data
    release data
    resize 0 within 60s
    expect node.1.zone.Movable.spanned == 0
    expect node.1.zone.DMA32.present == 32768";

fn assert_two_nodes(session: &Session) {
    session.assert_done();
    let nodes = nodes_after(session, "plug 258M");
    assert_eq!(nodes.len(), 2);
    let sums = session.after("plug 258M").zones;
    for (zone, sum) in sums.iter().enumerate() {
        let present: u64 = nodes.iter().map(|node| node.zones[zone].present).sum();
        assert_eq!((nodes[0].zones[zone].name, present), (sum.0, sum.2));
    }
}

fn two_nodes_by_srat() {
    assert_two_nodes(&run_checked(on_nodes(&[(1, 1), (1, 1)]), GROW_NODE_1));
}

/// The same nodes, described on the command line. ACPI's tables have only the node of the region, which names the same
/// node as the command line.
fn two_nodes_by_the_command_line() {
    let cmdline = Some("tidevm.numa=128M:1,128M:1".to_owned());
    let config = Config { numa: Vec::new(), cmdline, ..on_nodes(&[(1, 1), (1, 1)]) };
    assert_two_nodes(&run_checked(config, GROW_NODE_1));
}

/// S4.3: node 1 has no memory at boot. Its memmap lies in its own memory, and takes none of node 0.
fn a_node_that_is_movable_only() {
    let script = "plug 256M\nhog 4M unmovable as kernel\nrelease kernel\nresize 0 within 60s";
    let session = run_checked(Config { numa: Vec::new(), ..on_nodes(&[(1, 1)]) }, script);
    session.assert_done();
    let nodes = nodes_after(&session, "plug 256M");
    let [_, _, movable] = nodes[1].zones;
    assert_eq!((movable.present, movable.managed), (2 * BLOCK_PAGES, 2 * BLOCK_PAGES - 2 * 512));
    assert_eq!(session.after("plug 256M").memmap, (0, 2 * 512));
    let hogged = nodes_after(&session, "hog 4M unmovable as kernel")[1].zones[2];
    assert_eq!(hogged.free + hogged.pcp, movable.managed, "kernel pages are on node 0");
    assert_eq!(nodes_after(&session, "resize 0 within 1m")[1].zones.map(|zone| zone.present), [0; 3]);
}

fn a_cpu_on_a_node_without_memory() {
    let script = "hog 4M movable as data\nplug 128M\nverify data\nrelease data\nresize 0 within 60s";
    let session = run_checked(on_nodes(&[(1, 1), (0, 1)]), script);
    session.assert_done();
    assert_eq!(session.boot.ready.map(|ready| ready.cpus), Some(2));
    let nodes = nodes_after(&session, "plug 128M");
    assert_eq!(nodes[1].zones.map(|zone| zone.present), [0, 0, BLOCK_PAGES]);
}

/// The second and third memory block of each node are deferred. The guest counts which of them a CPU of the
/// node initialised.
fn every_node_is_initialised_in_the_end() {
    let config = Config { init: InitPolicy::Deferred, ..on_nodes(&[(3, 1), (3, 1)]) };
    let session = run_checked(config, "expect deferred == 0 within 60s\nstats\nplug 128M");
    session.assert_done();
    for (number, node) in nodes_after(&session, "stats").iter().enumerate() {
        assert_eq!(node.init_local + node.init_remote, 2, "node {number}: {node:?}");
    }
}

/// The console output of the guest during `script`, which must succeed.
#[track_caller]
fn says(config: Config, script: &str) -> (Session, String) {
    let console = std::env::temp_dir().join(format!("tidevm-numa-{}", std::process::id()));
    let session = run_checked(Config { console: ConsoleMode::File(console.clone()), ..config }, script);
    session.assert_done();
    let text = std::fs::read_to_string(&console).unwrap_or_default();
    drop(std::fs::remove_file(&console));
    (session, text)
}

/// Five proximity domains with arbitrary numbers. The fifth counts as node 0.
fn more_nodes_than_there_can_be() {
    let region = |node| HotplugConfig { node: Some(node), ..HotplugConfig::new(Size::mib(128)) };
    let hotplug = [40, 2, 7, 63].map(region).into();
    let config = Config { numa: Vec::new(), hotplug, ..on_nodes(&[(1, 1)]) };
    let script = "plug 64M\nplug 64M device 3\nresize 0 within 60s\nresize 0 device 3 within 60s";
    let (session, text) = says(config, script);
    assert!(
        text.contains("there are 4 nodes at most; what is in proximity domain 63 and in those above counts"),
        "{text}"
    );
    let present = |command| {
        let nodes = nodes_after(&session, command);
        nodes.iter().map(|node| node.zones[2].present).collect::<Vec<u64>>()
    };
    // In ascending order, domain 40 is the fourth.
    assert_eq!(present("plug 64M"), [0, 0, 0, BLOCK_PAGES]);
    assert_eq!(present("plug 64M device 3"), [BLOCK_PAGES, 0, 0, BLOCK_PAGES]);
}

fn a_command_line_that_is_no_nodes() {
    for value in ["100M:1", "128M:1,,", "128M:x", "128M,128M,0,0,0"] {
        let config = Config { cmdline: Some(format!("tidevm.numa={value}")), ..machine(128 * MIB) };
        let (session, text) = says(config, "stats");
        assert!(text.contains(&format!("command line: cannot use tidevm.numa={value}")), "{text}");
        assert_eq!(nodes_after(&session, "stats").len(), 1);
    }
}
