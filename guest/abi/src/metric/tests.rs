//! Every metric: its name in scripts, its unit, and the counter that its value comes from.

use super::{GuestMetric, Metric, NodeNumber, Unit, VMM_METRICS, VmmMetric, find};
use crate::{MAX_NODES, NodeStats, Stats, ZoneName, ZoneStats};

/// Every metric that there is.
pub(crate) fn all() -> Vec<Metric> {
    let vmm = VMM_METRICS.iter().map(|(_, metric)| Metric::Vmm(*metric));
    let whole = Stats::COUNTERS.iter().filter(|counter| counter.word.is_some()).map(GuestMetric::Whole);
    let of_zone = |make: &dyn Fn(ZoneName, &'static crate::Counter<ZoneStats>) -> GuestMetric| {
        let counters = || ZoneStats::COUNTERS.iter().filter(|counter| counter.word.is_some());
        let all = ZoneName::ALL.into_iter();
        all.flat_map(|zone| counters().map(move |counter| (zone, counter)))
            .map(|(zone, counter)| make(zone, counter))
            .collect::<Vec<_>>()
    };
    let nodes = || (0..MAX_NODES as u8).map(|number| NodeNumber::new(number).unwrap());
    let of_node = nodes().flat_map(|node| {
        let zones = of_zone(&|zone, counter| GuestMetric::NodeZone(node, zone, counter));
        NodeStats::COUNTERS.iter().map(move |counter| GuestMetric::Node(node, counter)).chain(zones)
    });
    let of_zones = of_zone(&GuestMetric::Zone);
    vmm.chain(whole.chain(of_zones).chain(of_node).map(Metric::Guest)).collect()
}

#[test]
fn every_metric_has_a_name_of_its_own() {
    let all = all();
    for (index, metric) in all.iter().enumerate() {
        let name = metric.to_string();
        assert_eq!(Metric::new(&name), Some(*metric), "{name}");
        assert!(all[..index].iter().all(|other| other.to_string() != name), "{name} stands for two");
    }
    assert_eq!(all.len(), 4 + 18 + 3 * 4 + 4 * (2 + 3 * 4));
}

#[test]
fn names_are_those_of_scripts() {
    let names = [
        "plugged",
        "requested",
        "host.held",
        "resets",
        "memmap.boot_pages",
        "memmap.altmap_pages",
        "migrated",
        "blocks.online",
        "deferred",
        "zone.Device.spanned",
        "device.pages",
        "device.refs",
        "pcp.drains",
        "pcp.stranded",
        "faults.injected",
        "alloc.waited",
        "zone.DMA32.free",
        "zone.Movable.spanned",
        "node.3.zone.Normal.managed",
        "node.0.init.local",
        "node.1.init.remote",
    ];
    for name in names {
        assert_eq!(Metric::new(name).map(|metric| metric.to_string()).as_deref(), Some(name));
    }
    for name in
        ["zone.Movable.pcp", "zone.Device.free", "node.4.init.local", "migrate_failed", "node.1.plugged"]
    {
        assert_eq!(Metric::new(name), None, "{name}");
    }
    let listed = "plugged, requested, host.held, resets, memmap.boot_pages, memmap.altmap_pages, blocks.online, \
                  deferred, migrated, pcp.drains, pcp.stranded, faults.injected, zone.Device.spanned, device.pages, \
                  device.refs, alloc.failed, alloc.waited, alloc.gave_up, driver.mismatches, \
                  driver.errors, driver.overdue, driver.resets, [node.N.]zone.{DMA32,Normal,Movable}.{spanned,present,managed,free}, \
                  node.N.{init.local,init.remote}";
    assert_eq!(Metric::names(), listed);
}

#[test]
fn units_decide_how_values_are_shown() {
    let migrated = Metric::new("migrated").unwrap();
    assert_eq!(Metric::Vmm(VmmMetric::Plugged).unit(), Unit::Bytes);
    assert_eq!(migrated.unit(), Unit::Count);
    assert_eq!(
        (Metric::Vmm(VmmMetric::HostHeld).show(4 << 20), migrated.show(1024)),
        ("4M".into(), "1024".into())
    );
}

#[test]
fn values_are_read_from_the_guests_counters() {
    let mut stats = Stats { pages_migrated: 7, nr_nodes: 2, ..Stats::default() };
    stats.nodes[1].init_remote = 3;
    stats.nodes[1].zones[2].free = 5;
    stats.zones[0].managed = 9;
    let read = |name: &str| match Metric::new(name) {
        Some(Metric::Guest(metric)) => metric.read(&stats),
        other => panic!("{name}: {other:?}"),
    };
    let names = ["migrated", "node.1.init.remote", "node.1.zone.Movable.free", "zone.DMA32.managed"];
    assert_eq!(names.map(read), [7, 3, 5, 9].map(Some));
    assert_eq!((read("node.0.zone.Movable.free"), read("zone.Normal.managed")), (Some(0), Some(0)));
    for missing in ["node.2.init.remote", "node.3.zone.Movable.free"] {
        assert_eq!(read(missing), None, "the guest has two nodes");
    }
}

#[test]
fn a_guest_that_boasts_is_not_believed_beyond_64_bits() {
    let boast = ZoneStats { free: u64::MAX, ..ZoneStats::empty(ZoneName::Movable) };
    let stats = Stats { zones: [boast; 3], ..Stats::default() };
    let free = find(ZoneStats::COUNTERS, "free").unwrap();
    assert_eq!(GuestMetric::Zone(ZoneName::Movable, free).read(&stats), Some(u64::MAX));
    assert_eq!(GuestMetric::Zone(ZoneName::Normal, free).read(&stats), None);
}
