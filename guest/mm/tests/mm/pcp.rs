//! Per-CPU lists, and the guarantees of disabling them.
//!
//! Numbers such as S4.15 are those of the claims in `docs/features.md`.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use tidevm_mm::{FaultStep, Gfp, MemoryContent, Mm, NodeId, Order, PageblockSet, PcpPolicy, Pfn, ZoneType};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::BLOCK;

fn machine(cpus: usize, pcp: PcpPolicy) -> &'static Mm<Sim> {
    let mm = SimMachine { cpus, options: SimMachine::OPTIONS.with_pcp(pcp), ..SimMachine::default() }.boot();
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm
}

fn pages(mm: &Mm<Sim>, count: usize) -> Vec<Pfn> {
    (0..count).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect()
}

fn free(mm: &Mm<Sim>, pages: &[Pfn]) {
    pages.iter().for_each(|&pfn| mm.free_pages(pfn, Order::PAGE));
}

fn movable(mm: &Mm<Sim>) -> (u64, u64) {
    let zone = mm.stats().zones[2];
    (zone.free, zone.pcp)
}

/// A 128 MiB zone has batch 7, of which a refill brings one more, and, with few CPUs, high at its low watermark; a list grows to high
/// and then loses a batch.
#[test]
fn limits() {
    let mm = machine(1, PcpPolicy::Disable);
    let held = pages(mm, 600);
    let (_, pcp) = movable(mm);
    assert!(pcp < 8, "a refill takes 8 pages, and {pcp} are left");
    let mut most = 0;
    for &pfn in &held {
        let (_, before) = movable(mm);
        free(mm, &[pfn]);
        let (_, after) = movable(mm);
        assert!(after == before + 1 || after + 7 == before + 1, "from {before} to {after} pages");
        most = most.max(after);
    }
    // low = min 32 + max(managed / 1000, share of min_free_kbytes / 4).
    assert!((64..512).contains(&most), "the list held {most} pages");
    mm.check();
}

/// While lists are disabled, freeing leaves no page on them, and an allocation takes only its own page.
#[test]
fn disabled_lists_stay_empty() {
    let mm = machine(2, PcpPolicy::Disable);
    let held = pages(mm, 100);
    Sim::run_on(1, || free(mm, &pages(mm, 30)));
    assert!(movable(mm).1 > 0);
    let guard = mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Movable));
    assert_eq!(movable(mm), (32256 - 100, 0), "drained on every CPU");
    for (index, pfn) in held.into_iter().enumerate() {
        Sim::run_on(index % 2, || free(mm, &[pfn]));
        assert_eq!(movable(mm), (32256 - 99 + index as u64, 0));
    }
    let again = pages(mm, 10);
    assert_eq!(movable(mm), (32256 - 10, 0));
    free(mm, &again);
    drop(guard);
    mm.check();
    // Lists hold pages again.
    let again = pages(mm, 50);
    free(mm, &again);
    assert!(movable(mm).1 >= 20);
    mm.check();
}

/// Disabling lists drains once for a whole memory block; the older way drains in every round.
#[test]
fn drains_of_an_offline() {
    for (pcp, expected) in [(PcpPolicy::Disable, 1..2), (PcpPolicy::DrainAgain, 2..64)] {
        let mm = machine(2, pcp);
        let before = mm.stats().pcp_drains;
        mm.hotplug().offline(BLOCK).unwrap();
        let drains = mm.stats().pcp_drains - before;
        assert!(expected.contains(&drains), "{drains} drains under {pcp:?}");
    }
}

/// A failed offline leaves the limits as they were.
#[test]
fn limits_survive_a_failed_offline() {
    let mm = machine(1, PcpPolicy::Disable);
    let cached = || {
        let held = pages(mm, 300);
        free(mm, &held);
        movable(mm).1
    };
    let before = cached();
    mm.platform().inject(FaultStep::Isolate, 20);
    mm.hotplug().offline(BLOCK).unwrap_err();
    assert_eq!(movable(mm).1, 0, "drained");
    assert_eq!(cached(), before);
    mm.check();
}

/// One CPU at a time disables lists: other CPUs that disable lists or change limits wait.
#[test]
fn disablers_wait_for_each_other() {
    let mm = machine(2, PcpPolicy::Disable);
    let guard = mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Movable));
    let entered = AtomicBool::new(false);
    thread::scope(|scope| {
        let offline = scope.spawn(|| {
            Sim::run_on(1, || mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(3..4))).unwrap();
            entered.store(true, SeqCst);
        });
        thread::sleep(Duration::from_millis(30));
        assert!(!entered.load(SeqCst), "the second CPU did not wait");
        let held = pages(mm, 5);
        free(mm, &held);
        assert_eq!(movable(mm).1, 0, "still disabled");
        drop(guard);
        offline.join().unwrap();
    });
    mm.check();
}

/// Only the lists of one zone are disabled.
#[test]
fn disabling_one_zone_leaves_the_others() {
    let mm = machine(1, PcpPolicy::Disable);
    let _guard = mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Movable));
    let pfn = mm.alloc_pages(Order::PAGE, Gfp::Kernel).unwrap();
    mm.free_pages(pfn, Order::PAGE);
    assert!(mm.stats().zones[0].pcp > 0);
}

/// S3.8, S3.12: taking a whole memory block of 63 pageblocks, or a few pageblocks of it, disables lists once
/// and drains them once.
#[test]
fn both_ways_to_take_memory_away_disable_once() {
    let mm = machine(2, PcpPolicy::Disable);
    let ways: [&dyn Fn(); 2] =
        [&|| mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(10..30)).unwrap(), &|| {
            mm.hotplug().offline(BLOCK).unwrap()
        }];
    for way in ways {
        let before = mm.stats();
        way();
        let after = mm.stats();
        assert_eq!(after.pcp_disables - before.pcp_disables, 1);
        assert_eq!(after.pcp_drains - before.pcp_drains, 1);
    }
}

/// S3.9: limits are not recomputed while lists are disabled, so a CPU that onlines memory waits.
#[test]
fn changes_of_limits_wait_while_lists_are_disabled() {
    let mm = machine(2, PcpPolicy::Disable);
    let next = tidevm_mm::SectionNr::new(33);
    mm.hotplug().add_memory(NodeId::FIRST, next, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    let guard = mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Movable));
    let updates = mm.stats().pcp_limit_updates;
    thread::scope(|scope| {
        let online = scope.spawn(|| Sim::run_on(1, || mm.hotplug().online(next, ZoneType::Movable)).unwrap());
        thread::sleep(Duration::from_millis(30));
        assert!(!online.is_finished(), "the CPU that onlines memory did not wait");
        assert_eq!(mm.stats().pcp_limit_updates, updates);
        let held = pages(mm, 5);
        free(mm, &held);
        assert_eq!(movable(mm).1, 0, "still disabled");
        drop(guard);
        online.join().unwrap();
    });
    assert!(mm.stats().pcp_limit_updates > updates);
    mm.check();
}

/// S3.15: a CPU that runs for the first time while lists are disabled keeps no pages.
#[test]
fn a_cpu_that_comes_late_keeps_no_pages() {
    let mm = machine(3, PcpPolicy::Disable);
    let held = pages(mm, 40);
    let guard = mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Movable));
    Sim::run_on(2, || {
        free(mm, &held[..20]);
        free(mm, &pages(mm, 3));
    });
    assert_eq!(movable(mm).1, 0);
    drop(guard);
    Sim::run_on(2, || free(mm, &held[20..]));
    assert!(movable(mm).1 > 0, "the CPU keeps pages once lists are enabled");
    mm.check();
}
