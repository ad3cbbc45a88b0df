//! The races between freeing, refilling and taking memory away, each run step by step in the order in
//! which a lock-free step would lose a page.

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::addr::{Order, SectionNr};
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::options::MemoryContent;
use crate::page_alloc::Gfp;
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::platform::FaultStep;
use crate::sim::{Sim, SimMachine};
use crate::sync::Ordering::Relaxed;
use crate::{Mm, PerCpuPages, Pfn};

const BLOCK: SectionNr = SectionNr::new(32);
const MOVABLE: ZoneId = NodeId::FIRST.zone(ZoneType::Movable);

fn machine() -> &'static Mm<Sim> {
    let mm = SimMachine { cpus: 2, ..SimMachine::default() }.boot();
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm
}

fn pageblock_of(pfn: Pfn) -> PageblockSet {
    PageblockSet::range(pfn.pageblock()..pfn.pageblock() + 1)
}

/// A CPU that frees a page read the pageblock's type before it was isolated, and goes on after that. The
/// page must end on the isolated list, not on a CPU's list and not where it can be allocated.
#[test]
fn free_with_a_stale_type() {
    let mm = machine();
    let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    let stale = mm.sparse.section(BLOCK).unwrap().pageblocks.migrate_type(pfn.pageblock());
    assert_eq!(stale, MigrateType::Movable);

    let disabled = mm.zone_pcp_disable(MOVABLE);
    let pages = mm.sparse.pages(BLOCK).unwrap();
    mm.start_isolate(pages, pageblock_of(pfn)).unwrap();
    assert_eq!(mm.test_pages_isolated(pages, pageblock_of(pfn)).pages, 1);

    assert!(mm.free_to_pcp(mm.sparse.page(pfn), pfn, stale, MOVABLE));
    assert_eq!(mm.pcp_pages(MOVABLE), 0, "flushed at once");
    assert_eq!(mm.test_pages_isolated(pages, pageblock_of(pfn)).pages, 0);
    assert_eq!(mm.lock_zone(MOVABLE).isolated(), 512);
    mm.undo_isolate(pages, pageblock_of(pfn));
    drop(disabled);
    mm.check();
}

/// The same without disabling: the page stays on the list until the next drain. This is the reason for
/// repeated draining.
#[test]
fn free_with_a_stale_type_hides_from_a_single_drain() {
    let mm = machine();
    let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    mm.drain_pcp(MOVABLE);
    let pages = mm.sparse.pages(BLOCK).unwrap();
    mm.start_isolate(pages, pageblock_of(pfn)).unwrap();
    assert!(mm.free_to_pcp(mm.sparse.page(pfn), pfn, MigrateType::Movable, MOVABLE));
    assert_eq!(mm.test_pages_isolated(pages, pageblock_of(pfn)).pages, 1, "hidden");
    mm.drain_pcp(MOVABLE);
    assert_eq!(mm.test_pages_isolated(pages, pageblock_of(pfn)).pages, 0);
    mm.undo_isolate(pages, pageblock_of(pfn));
    mm.check();
}

/// A CPU is refilling its list, which counts as empty until the refill is done. Disabling must wait for it,
/// and find the pages.
#[test]
fn pitfall_3_drain_waits_for_a_refill() {
    let mm = machine();
    let (held, wait_held) = channel();
    let (refill, wait_refill) = channel();
    let (disabled, wait_disabled) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut lists = mm.lock_pcp(&mm.cpus()[1], MOVABLE);
            assert_eq!(lists.count(), 0);
            held.send(()).unwrap();
            wait_refill.recv().unwrap();
            let mut zone = mm.lock_zone(MOVABLE);
            for _ in 0..3 {
                let block = zone.rmqueue(Order::PAGE, MigrateType::Movable).unwrap();
                lists.push(block.head(), block.pfn(), MigrateType::Movable);
            }
        });
        wait_held.recv().unwrap();
        scope.spawn(move || {
            let guard = mm.zone_pcp_disable(MOVABLE);
            disabled.send(mm.pcp_pages(MOVABLE)).unwrap();
            drop(guard);
        });
        let early = wait_disabled.recv_timeout(Duration::from_millis(30));
        assert!(early.is_err(), "the drain passed by a list in use");
        refill.send(()).unwrap();
        assert_eq!(wait_disabled.recv(), Ok(0), "pages left on the lists");
    });
    mm.check();
}

/// S3.1: every CPU has the limits of disabled lists before the first list is drained. A page that is freed after the
/// drain of its CPU would stay on the list otherwise.
#[test]
fn limits_are_published_before_the_drain() {
    let mm = machine();
    let drains = || mm.counters.pcp_drains.load(Relaxed);
    let before = drains();
    // The drain begins, and waits for this list.
    let lists = mm.lock_pcp(&mm.cpus()[0], MOVABLE);
    thread::scope(|scope| {
        scope.spawn(|| drop(mm.zone_pcp_disable(MOVABLE)));
        let deadline = Instant::now() + Duration::from_secs(60);
        while drains() == before {
            assert!(Instant::now() < deadline, "the drain does not begin");
            thread::yield_now();
        }
        let limits = [0, 1].map(|cpu: usize| mm.cpus()[cpu].zone(MOVABLE).limits());
        drop(lists);
        assert_eq!(limits, [crate::zone::PCP_OFF; 2], "limits when the drain has begun");
    });
    mm.check();
}

/// A list in use by another CPU does not stop allocating or freeing: both go to the buddy.
#[test]
fn busy_list_is_passed_by() {
    let mm = machine();
    let lists = mm.lock_pcp(&mm.cpus()[0], MOVABLE);
    // On another thread, which is the same CPU: this one holds the lock.
    let free = mm.zone(MOVABLE).free();
    thread::scope(|scope| {
        scope.spawn(|| {
            let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
            assert_eq!(mm.zone(MOVABLE).free(), free - 1, "exactly one page");
            mm.free_pages(pfn, Order::PAGE);
            assert_eq!(mm.zone(MOVABLE).free(), free);
        });
    });
    assert_eq!(lists.count(), 0);
    drop(lists);
    mm.check();
}

/// Flushing reads the type again: a page freed as movable whose pageblock became unmovable goes to
/// that list.
#[test]
fn flush_reads_the_type_again() {
    let mm = machine();
    let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    let pages = mm.sparse.pages(BLOCK).unwrap();
    mm.free_pages(pfn, Order::PAGE);
    let block = pfn.pageblock();
    {
        let mut buddy = mm.lock_zone(MOVABLE);
        buddy.split_to_pageblocks(pages, block);
        buddy.move_free(pages, &(block..block + 1), MigrateType::Unmovable);
        pages.section().pageblocks.set_type(block, MigrateType::Unmovable);
    }
    mm.drain_pcp(MOVABLE);
    mm.check();
}

/// S3.4: a list that is disabled has the limits with which every list begins.
#[test]
fn disabled_limits_are_those_of_a_new_list() {
    let zone = MOVABLE;
    let new = PerCpuPages::new();
    let mm = machine();
    let limits = || [0, 1].map(|cpu| mm.cpus()[cpu].zone(zone).limits());
    let before = limits();
    assert_ne!(before[0], new.zone(zone).limits());
    let disabled = mm.zone_pcp_disable(zone);
    assert_eq!(limits(), [new.zone(zone).limits(); 2]);
    drop(disabled);
    assert_eq!(limits(), before);
}

/// S3.11: after an offline, done or failed at any step, every CPU has the limits of before.
#[test]
fn limits_are_those_of_before() {
    let mm = machine();
    let zone = MOVABLE;
    let limits = || [0, 1].map(|cpu: usize| mm.cpus()[cpu].zone(zone).limits());
    let before = limits();
    assert_eq!(before[0], mm.zone(zone).pcp_limits());
    assert_ne!(before[0], crate::zone::PCP_OFF);
    for after in [0, 1, 20, 31] {
        mm.platform().inject(FaultStep::Isolate, after);
        mm.hotplug().offline(BLOCK).unwrap_err();
        assert_eq!(limits(), before, "isolation fails at {after}");
    }
    let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    mm.set_holder(pfn, 1);
    mm.hotplug().offline(BLOCK).unwrap_err();
    assert_eq!(limits(), before, "a page that cannot move");
    mm.free_pages(pfn, Order::PAGE);
    mm.hotplug().offline(BLOCK).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    assert_eq!(limits(), before, "there and back");
    mm.check();
}
