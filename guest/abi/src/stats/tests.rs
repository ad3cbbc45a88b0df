//! The tables of counters: each counter reads the field that its key names.

use super::{BootTimes, NodeStats, Stats, ZoneName, ZoneStats};
use crate::{Counter, Kernel};

/// A record whose numbers come from `number`, in the order of the fields.
pub(crate) fn filled(mut number: impl FnMut() -> u64) -> Stats {
    let mut zone = |name| ZoneStats {
        name,
        spanned: number(),
        present: number(),
        managed: number(),
        free: number(),
        pcp: number(),
    };
    let (zones, of_node) = (ZoneName::ALL.map(&mut zone), ZoneName::ALL.map(&mut zone));
    let node = NodeStats { zones: of_node, init_local: number(), init_remote: number() };
    Stats {
        kernel: Kernel::Tidevm,
        zones,
        nr_nodes: u8::MAX,
        nodes: [node; crate::MAX_NODES],
        memmap_boot_pages: number(),
        memmap_altmap_pages: number(),
        blocks_online: number(),
        deferred_pages: number(),
        pages_migrated: number(),
        migrate_failed: number(),
        pcp_drains: number(),
        pcp_stranded: number(),
        memmaps_written: number(),
        faults_injected: number(),
        device_spanned: number(),
        device_pages: number(),
        device_refs: number(),
        alloc_failed: number(),
        alloc_waited: number(),
        alloc_gave_up: number(),
        driver_mismatches: number(),
        driver_errors: number(),
        driver_overdue: number(),
        driver_resets: number(),
        boot: BootTimes {
            mapped: number(),
            first_allocation: number(),
            initialised: Some(number()),
            memmaps_written: number(),
        },
    }
}

/// Numbers from 1000 on, so that none is a part of another.
fn distinct() -> Stats {
    let mut last = 1000;
    filled(|| {
        last += 1;
        last
    })
}

#[track_caller]
fn assert_reads_its_fields<T: core::fmt::Debug>(value: &T, counters: &[Counter<T>], fields: usize) {
    let shown = format!("{value:?}");
    for counter in counters {
        let field = format!("{}: {}", counter.key, (counter.read)(value));
        assert!(shown.contains(&field), "{field} is not in {shown}");
    }
    assert_eq!(counters.len(), fields, "a counter has no row");
}

#[test]
fn every_counter_is_read_from_the_field_of_its_key() {
    let stats = distinct();
    // Numbers of the record: those of its zones and nodes, of boot, and the counters.
    let numbers = |shown: &str| shown.split(|c: char| !c.is_ascii_digit()).filter(|n| n.len() == 4).count();
    let [zone, node] =
        [format!("{:?}", stats.zones[0]), format!("{:?}", stats.nodes[0])].map(|s| numbers(&s));
    let all = numbers(&format!("{stats:?}"));
    let boot = numbers(&format!("{:?}", stats.boot));
    assert_reads_its_fields(&stats.zones[0], ZoneStats::COUNTERS, zone);
    assert_reads_its_fields(&stats.nodes[0], NodeStats::COUNTERS, node - 3 * zone);
    assert_reads_its_fields(&stats, Stats::COUNTERS, all - 3 * zone - 4 * node - boot);
}

#[test]
fn counters_are_one_line_and_device_memory_another() {
    let stats = Stats {
        memmap_boot_pages: 1,
        memmap_altmap_pages: 2,
        blocks_online: 3,
        pages_migrated: 4,
        migrate_failed: 5,
        pcp_drains: 6,
        ..Stats::default()
    };
    let line = "memmap: 1 page in boot memory, 2 in hot-added memory; 3 memory blocks online; 4 pages \
                migrated, 5 migrations failed; 6 drains of per-CPU lists";
    assert_eq!(stats.to_string(), line);
    let stats = Stats { device_spanned: 7, device_pages: 8, device_refs: 9, ..stats };
    let device = "device memory: 7 pages spanned, 8 to use, 9 references";
    assert_eq!(stats.to_string(), format!("{line}\n{device}"));
}

#[test]
fn a_counter_that_linux_does_not_tell_is_shown_nowhere() {
    let stats = Stats { kernel: Kernel::Linux, blocks_online: 3, pages_migrated: 4, ..distinct() };
    let migrations = stats.migrate_failed;
    let line = format!("3 memory blocks online; 4 pages migrated, {migrations} migrations failed");
    assert_eq!(stats.to_string(), line);
    let metric = |name: &str| match crate::Metric::new(name) {
        Some(crate::Metric::Guest(metric)) => metric.read(&stats),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!((metric("blocks.online"), metric("migrated")), (Some(3), Some(4)));
    assert_eq!(metric("zone.Movable.free"), Some(stats.zones[2].free));
    for untold in ["pcp.drains", "memmap.boot_pages", "node.0.init.local"] {
        assert_eq!(metric(untold), None, "{untold}");
    }
}
