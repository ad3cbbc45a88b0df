//! `/proc/meminfo`, `/proc/zoneinfo` and `/proc/vmstat`, line by line in Linux's words and form.
//!
//! Mirrors `meminfo_proc_show`, `zoneinfo_show_print` and `vmstat_show`. Lines about things that do not
//! exist here are left out: reclaim, boosts, the statistics per node. It differs from
//! Linux on purpose: boot memory that is not initialised yet counts as free, because it is initialised when
//! it is wanted. The counters of `vmstat` have the names that scripts use.

use tidevm_abi as abi;
use tidevm_mm::{NodeId, PAGE_SIZE, ZoneId, ZoneStats, ZoneType};

use crate::agent::translate;
use crate::console::println;
use crate::mem::{MM, stamps};

/// The numbers of `/proc/meminfo`.
pub fn memory() -> abi::Meminfo {
    let stats = MM.stats();
    let sum = |pages: fn(&ZoneStats) -> u64| stats.zones.iter().map(pages).sum::<u64>();
    let size = |pages| abi::Size(pages * PAGE_SIZE);
    abi::Meminfo {
        total: size(sum(|zone| zone.managed)),
        free: size(sum(|zone| zone.all_free() + zone.pcp)),
        available: size(MM.available_pages()),
    }
}

/// `/proc/meminfo`.
pub fn meminfo() {
    let abi::Meminfo { total, free, available } = memory();
    for (name, size) in [("MemTotal:", total), ("MemFree:", free), ("MemAvailable:", available)] {
        println!("{name:<16}{:8} kB", size.0 / 1024);
    }
}

/// `/proc/zoneinfo`.
pub fn zoneinfo() {
    let stats = MM.stats();
    for zone in zones() {
        show_zone(zone, &stats.nodes[zone.node().index()][zone.zone_type().index()]);
    }
    if stats.device.spanned > 0 {
        // In Linux too, the zone of device memory has no present and no managed pages.
        println!("Node 0, zone   Device");
        println!("  pages free     0\n        min      0\n        low      0\n        high     0");
        println!("        spanned  {}", stats.device.spanned);
        println!("        present  0\n        managed  0");
    }
}

/// `/proc/vmstat`.
pub fn vmstat() {
    let stats = MM.stats();
    let record = translate::stats(&stats, stamps::times());
    for counter in abi::Stats::COUNTERS {
        println!("{} {}", counter.name(), (counter.read)(&record));
    }
    // These six stand in no table of `tidevm_abi`: JSON shows every row of its tables, and the control channel
    // carries every field of its records. Only a person at the console, the benchmark of the booted guest
    // (`tests/benches/guest.rs`) and its tests on QEMU (`tests/qemu.rs`) read them.
    for (name, value) in [
        ("memmaps_by_base_pages", stats.memmaps_by_base_pages),
        ("deferred_pages", stats.deferred_pages()),
        ("nr_isolate_pageblock", stats.zones.iter().map(|zone| zone.nr_isolate_pageblock).sum()),
        ("last_add_ticks", stamps::last_add()),
        ("last_resize_ticks", stamps::last_resize()),
        ("boot_ticks", stamps::boot()),
    ] {
        println!("{name} {value}");
    }
}

/// The zones of the first node, and of all other nodes that have memory.
fn zones() -> impl Iterator<Item = ZoneId> {
    let nodes = MM.stats().nodes;
    NodeId::all()
        .filter(move |&node| node == NodeId::FIRST || nodes[node.index()].iter().any(|zone| zone.spanned > 0))
        .flat_map(|node| ZoneType::ALL.map(|zone| node.zone(zone)))
}

fn show_zone(id: ZoneId, zone: &ZoneStats) {
    let name = translate::zone_name(id.zone_type());
    let info = MM.zone_info(id);
    println!("Node {}, zone {name:>8}", id.node().get());
    println!("  pages free     {}", zone.all_free());
    println!("        min      {}", info.min);
    println!("        low      {}", info.low);
    println!("        high     {}", info.high);
    println!("        spanned  {}", zone.spanned);
    println!("        present  {}", zone.present);
    println!("        managed  {}", zone.managed);
    let [dma32, normal, movable] = info.protection;
    println!("        protection: ({dma32}, {normal}, {movable})");
    if zone.present == 0 {
        // The other lines mean nothing for an empty zone.
        return;
    }
    println!("      nr_free_pages {}", zone.all_free());
    println!("  pagesets");
    for (cpu, pcp) in MM.pcp_info(id).enumerate() {
        println!("    cpu: {cpu}");
        println!("              count:    {}", pcp.count);
        println!("              high:     {}", pcp.high);
        println!("              batch:    {}", pcp.batch);
    }
    println!("  start_pfn:           {}", info.start_pfn.get());
}
