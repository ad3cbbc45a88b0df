//! The races between freeing, refilling and taking memory away, each run step by step in the order in
//! which a careless step would lose a page.
//!
//! Identifiers such as S3.4 are claims of `docs/features.toml`.

use std::cell::RefCell;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use crate::addr::{Order, SectionNr};
use crate::free_lists::Place;
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::options::MemoryContent;
use crate::page_alloc::Gfp;
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::pcplist::ListOf;
use crate::platform::FaultStep;
use crate::sim::{Sim, SimMachine};
use crate::sync::Ordering::Relaxed;
use crate::zone::PcpLimits;
use crate::{Mm, PerCpuPages, Pfn, steps};

const BLOCK: SectionNr = SectionNr::new(32);
const MOVABLE: ZoneId = NodeId::FIRST.zone(ZoneType::Movable);
/// Longest wait for another thread.
const LIMIT: Duration = Duration::from_secs(60);

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

    let hotplug = mm.hotplug();
    let disabled = mm.disable_pcp(MOVABLE, hotplug.held());
    let pages = mm.sparse.pages(BLOCK).unwrap();
    mm.start_isolate(pages, pageblock_of(pfn)).unwrap();
    assert_eq!(mm.test_pages_isolated(pages, pageblock_of(pfn)).pages, 1);

    let of = ListOf { order: Order::PAGE, mt: stale };
    assert!(!mm.free_to_pcp(mm.sparse.page(pfn), pfn, MOVABLE, of), "the list is stopped");
    mm.free_pages(pfn, Order::PAGE);
    assert_eq!(mm.pcp_pages(MOVABLE), 0);
    assert_eq!(mm.test_pages_isolated(pages, pageblock_of(pfn)).pages, 0);
    assert_eq!(mm.lock_zone(MOVABLE, &mm.irq_off()).isolated(), 512);
    mm.undo_isolate(pages, pageblock_of(pfn));
    drop(disabled);
    drop(hotplug);
    mm.check();
}

/// S3.1: a page of an isolated pageblock passes by the lists, also while they are enabled.
#[test]
fn free_with_a_fresh_type() {
    let mm = machine();
    let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    mm.drain_pcp(MOVABLE, mm.hotplug().held());
    let pages = mm.sparse.pages(BLOCK).unwrap();
    let hotplug = mm.hotplug();
    mm.start_isolate(pages, pageblock_of(pfn)).unwrap();
    drop(hotplug);
    mm.free_pages(pfn, Order::PAGE);
    assert_eq!(mm.pcp_pages(MOVABLE), 0);
    assert_eq!(mm.lock_zone(MOVABLE, &mm.irq_off()).isolated(), 512);
    mm.undo_isolate(pages, pageblock_of(pfn));
    mm.check();
}

/// With a stale type and without disabling, the page stays on the list until the next drain. This is the reason for
/// repeated draining.
#[test]
fn free_with_a_stale_type_hides_from_a_single_drain() {
    let mm = machine();
    let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    let hotplug = mm.hotplug();
    mm.drain_pcp(MOVABLE, hotplug.held());
    let pages = mm.sparse.pages(BLOCK).unwrap();
    mm.start_isolate(pages, pageblock_of(pfn)).unwrap();
    let of = ListOf { order: Order::PAGE, mt: MigrateType::Movable };
    assert!(mm.free_to_pcp(mm.sparse.page(pfn), pfn, MOVABLE, of));
    assert_eq!(mm.test_pages_isolated(pages, pageblock_of(pfn)).pages, 1, "hidden");
    mm.drain_pcp(MOVABLE, hotplug.held());
    assert_eq!(mm.test_pages_isolated(pages, pageblock_of(pfn)).pages, 0);
    mm.undo_isolate(pages, pageblock_of(pfn));
    drop(hotplug);
    mm.check();
}

/// A CPU is at its list, which is empty when others look at it. Disabling must wait until the CPU has left the list,
/// and find the pages that it put there.
#[test]
fn pitfall_3_drain_waits_for_a_refill() {
    let mm = machine();
    let (held, wait_held) = channel();
    let (refill, wait_refill) = channel();
    let (disabled, wait_disabled) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            Sim::run_on(1, || {
                let cpu = mm.own_cpu();
                let lists = cpu.lists(MOVABLE).unwrap();
                assert_eq!(mm.cpus()[1].zone(MOVABLE).count(), 0);
                held.send(()).unwrap();
                wait_refill.recv().unwrap();
                lists.refill(Order::PAGE, MigrateType::Movable);
                assert!(mm.cpus()[1].zone(MOVABLE).count() > 0);
            });
        });
        wait_held.recv().unwrap();
        scope.spawn(move || {
            let guard = mm.zone_pcp_disable(MOVABLE);
            disabled.send(mm.pcp_pages(MOVABLE)).unwrap();
            drop(guard);
        });
        let early = wait_disabled.recv_timeout(Duration::from_millis(30));
        assert!(early.is_err(), "the drain did not wait for a list in use");
        refill.send(()).unwrap();
        assert_eq!(wait_disabled.recv(), Ok(0), "pages left on the lists");
    });
    mm.check();
}

/// S3.3: every CPU has the limits of stopped lists before the grace period begins. A CPU that did not have them could
/// fill its list again.
#[test]
fn limits_are_published_before_the_grace_period() {
    let mm = machine();
    let limits = || [0, 1].map(|cpu: usize| mm.cpus()[cpu].zone(MOVABLE).limits());
    thread::scope(|scope| {
        // The grace period waits for the use of this list.
        let used = mm.own_cpu();
        scope.spawn(|| Sim::run_on(1, || drop(mm.zone_pcp_disable(MOVABLE))));
        let began = Instant::now();
        while limits() != [PcpLimits::OFF; 2] {
            assert!(began.elapsed() < LIMIT, "limits are {:?} in the grace period", limits());
            thread::yield_now();
        }
        let drains = mm.counters.pcp_drains.load(Relaxed);
        thread::sleep(Duration::from_millis(30));
        assert_eq!(limits(), [PcpLimits::OFF; 2], "drained while the list is in use, {drains}");
        drop(used);
    });
    assert_eq!(limits(), [mm.zone(MOVABLE).pcp_limits(); 2]);
    mm.check();
}

/// S3.8: however the lists are stopped, one grace period is enough: also for those of all zones.
#[test]
fn a_request_has_one_grace_period() {
    let mm = machine();
    let requests: [(&str, &dyn Fn()); 4] = [
        ("disable", &|| drop(mm.zone_pcp_disable(MOVABLE))),
        ("drain", &|| mm.drain_pcp(MOVABLE, mm.hotplug().held())),
        ("check", &|| _ = mm.check()),
        ("offline", &|| mm.hotplug().offline(BLOCK).unwrap()),
    ];
    for (what, request) in requests {
        let before = mm.platform().grace_periods();
        request();
        assert_eq!(mm.platform().grace_periods(), before + 1, "{what}");
    }
}

/// S3.9: the memory hotplug lock is held whenever the limits of a CPU change: when lists are disabled, when they are
/// enabled again, and when the limits of a zone are computed anew.
#[test]
fn limits_change_under_the_memory_hotplug_lock() {
    let mm = machine();
    let is_held = || mm.hotplug.try_lock().is_none();
    let changes: [(&str, &dyn Fn()); 3] = [
        ("disabled and enabled", &|| drop(mm.zone_pcp_disable(MOVABLE))),
        ("a zone loses its memory", &|| mm.hotplug().offline(BLOCK).unwrap()),
        ("a zone gets memory", &|| mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap()),
    ];
    for (what, change) in changes {
        let limits = move || [0, 1].map(|cpu: usize| mm.cpus()[cpu].zone(MOVABLE).limits());
        let seen = Rc::new(RefCell::new(std::vec![limits()]));
        let look = {
            let seen = Rc::clone(&seen);
            move || {
                let now = limits();
                if seen.borrow().last() != Some(&now) {
                    assert!(mm.hotplug.try_lock().is_none(), "limits become {now:?} without the lock");
                    seen.borrow_mut().push(now);
                }
            }
        };
        assert!(!is_held());
        steps::each(look, change);
        assert!(!is_held());
        // Of two CPUs, one after the other, at least once.
        assert!(seen.borrow().len() > 2, "{what}: {seen:?}");
    }
    mm.check();
}

/// S3.10: limits are written to the CPUs when they change, and only then. Limits that no zone has stand for
/// the ones of before, so a write is seen even if it writes the same value again.
#[test]
fn unchanged_limits_are_not_published() {
    const PLANTED: PcpLimits = PcpLimits { high: 12_345, batch: 6, large: 0 };
    // With so many CPUs a list's share is at its lower bound, whatever the zone's exact size.
    let mm = SimMachine { cpus: 8, ..SimMachine::default() }.boot();
    let add = |nr| {
        mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        mm.hotplug().online(nr, ZoneType::Movable).unwrap();
    };
    add(BLOCK);
    mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(60..64)).unwrap();
    let zone = mm.zone(MOVABLE);
    let (before, updates) = (zone.pcp_limits(), mm.stats().pcp_limit_updates);
    let of_cpus = |limits: PcpLimits| mm.cpus().iter().all(|cpu| cpu.zone(MOVABLE).limits() == limits);
    assert!(of_cpus(before));
    mm.cpus().iter().for_each(|cpu| cpu.zone(MOVABLE).set_limits(PLANTED));
    mm.hotplug().online_pageblocks(BLOCK, PageblockSet::range(60..64)).unwrap();
    assert_eq!((zone.pcp_limits(), mm.stats().pcp_limit_updates), (before, updates));
    assert!(of_cpus(PLANTED), "limits that did not change were written");
    // The next memory block changes them.
    add(SectionNr::new(33));
    assert_ne!(zone.pcp_limits(), before);
    assert_eq!(mm.stats().pcp_limit_updates, updates + 1);
    assert!(of_cpus(zone.pcp_limits()));
    mm.check();
}

/// A list that reaches its limit loses a batch, no page earlier and none later. A refill brings a batch and one page.
#[test]
fn a_list_keeps_less_than_high_and_moves_a_batch() {
    let mm = machine();
    let PcpLimits { high, batch, .. } = mm.zone(MOVABLE).pcp_limits();
    let batch = u32::from(batch);
    let count = || mm.cpus()[0].zone(MOVABLE).count();
    let pages: Vec<Pfn> = (0..=high).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
    mm.drain_pcp(MOVABLE, mm.hotplug().held());
    for (freed, &pfn) in (1..).zip(&pages[..high as usize]) {
        mm.free_pages(pfn, Order::PAGE);
        assert_eq!(count(), if freed < high { freed } else { high - batch });
    }
    mm.drain_pcp(MOVABLE, mm.hotplug().held());
    let again = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    assert_eq!(count(), batch, "one of them is allocated");
    [again, pages[high as usize]].into_iter().for_each(|pfn| mm.free_pages(pfn, Order::PAGE));
    mm.check();
}

/// The two types of a list share its room, the newest of each is used first, and a walk finds all.
#[test]
fn a_list_is_two_stacks_in_one_array() {
    const TYPES: [MigrateType; 2] = [MigrateType::Unmovable, MigrateType::Movable];
    let list = super::PcpList::<8>::new();
    // Five of one type and three of the other, in turns.
    let pushed = [(0, 10), (1, 20), (0, 11), (1, 21), (0, 12), (1, 22), (0, 13), (0, 14)];
    for (count, (mt, pfn)) in (1..).zip(pushed) {
        assert_eq!(list.push(TYPES[mt], Pfn::new(pfn)), count, "blocks of both types");
    }
    let heads: Vec<u32> = list.heads().map(Pfn::get).collect();
    assert_eq!(heads, [10, 11, 12, 13, 14, 20, 21, 22]);
    let list = &list;
    let pop = |mt: usize| core::iter::from_fn(move || list.pop(TYPES[mt])).map(Pfn::get).collect::<Vec<_>>();
    assert_eq!(pop(1), [22, 21, 20]);
    assert_eq!(pop(0), [14, 13, 12, 11, 10]);
}

/// The limit counts the pages of both types, and a flush that one type cannot serve takes from the other.
#[test]
fn a_limit_is_one_of_both_types() {
    let mm = SimMachine::default().boot();
    let take = |gfp| mm.alloc_pages(Order::PAGE, gfp).unwrap();
    let zone = mm.sparse.section(take(Gfp::Kernel).section()).unwrap().zone();
    let PcpLimits { high, batch, .. } = mm.zone(zone).pcp_limits();
    let few = 3;
    let kernel: Vec<Pfn> = (0..few).map(|_| take(Gfp::Kernel)).collect();
    let movable: Vec<Pfn> = (0..high).map(|_| take(Gfp::Movable)).collect();
    let count = || mm.cpus()[0].zone(zone).count();
    mm.drain_pcp(zone, mm.hotplug().held());
    kernel.iter().for_each(|&pfn| mm.free_pages(pfn, Order::PAGE));
    for (freed, &pfn) in (few + 1..).zip(&movable[..(high - few) as usize]) {
        mm.free_pages(pfn, Order::PAGE);
        assert_eq!(count(), if freed < high { freed } else { high - u32::from(batch) }, "of {high}");
    }
    mm.check();
    mm.drain_pcp(zone, mm.hotplug().held());
    assert_eq!(count(), 0);
    mm.check();
}

/// A refill brings the free pages of a range, in which others may be in use, and the lowest is used first. A flush gives
/// back what lies side by side, and what does not.
#[test]
fn a_list_is_refilled_and_flushed_by_ranges() {
    let mm = machine();
    let take = || mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    let pages: Vec<Pfn> = (0..1024).map(|_| take()).collect();
    assert!(pages.chunks(8).all(|refill| refill.is_sorted()), "from the lowest on: {pages:?}");
    mm.drain_pcp(MOVABLE, mm.hotplug().held());
    // Every third page of one pageblock, so no two side by side, and pairs of the next one.
    let (first, second) = pages.split_at(512);
    let given: Vec<Pfn> =
        first.iter().step_by(3).chain(second.iter().filter(|pfn| pfn.get() % 4 < 2)).copied().collect();
    given.iter().for_each(|&pfn| mm.free_pages(pfn, Order::PAGE));
    mm.drain_pcp(MOVABLE, mm.hotplug().held());
    mm.check();
    let again: Vec<Pfn> = given.iter().map(|_| take()).collect();
    // The last refill reaches into the next pageblock.
    let elsewhere = again.iter().filter(|pfn| !given.contains(pfn)).count();
    assert!(elsewhere < 8, "{elsewhere} pages of whole pageblocks come before those of broken ones");
    mm.check();
}

/// A drain gives the zone lock up after 32 batches, so that other CPUs get it in between.
#[test]
fn a_drain_takes_the_zone_lock_for_32_batches_at_a_time() {
    let mm = machine();
    let limits = PcpLimits { high: 10_000, ..mm.zone(MOVABLE).pcp_limits() };
    let batch = u32::from(limits.batch);
    let pages: Vec<Pfn> = (0..300).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
    mm.drain_pcp(MOVABLE, mm.hotplug().held());
    let cpu = &mm.cpus()[0];
    cpu.zone(MOVABLE).set_limits(limits);
    pages.iter().for_each(|&pfn| mm.free_pages(pfn, Order::PAGE));
    let (hotplug, zones) = (mm.hotplug(), mm.zones().as_slice());
    let stopped = mm.stop_pcp(zones, hotplug.held());
    let lists = stopped.lists(MOVABLE).next().unwrap();
    for left in [300 - 32 * batch, 0] {
        assert!(lists.drain_some());
        assert_eq!(lists.count(), left);
    }
    assert!(!lists.drain_some());
}

/// Pages that leave a list are used before others of their order, because they were freed a short time ago.
#[test]
fn flushed_pages_are_used_first() {
    let mm = machine();
    let pages: Vec<Pfn> = (0..6).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
    mm.drain_pcp(MOVABLE, mm.hotplug().held());
    // Not side by side, so that they do not become one buddy block.
    let section = mm.sparse.pages(BLOCK).unwrap();
    mm.lock_zone(MOVABLE, &mm.irq_off()).free_and_merge(section, pages[1], Order::PAGE, Place::Head);
    mm.free_pages(pages[3], Order::PAGE);
    mm.drain_pcp(MOVABLE, mm.hotplug().held());
    let off = mm.irq_off();
    let mut zone = mm.lock_zone(MOVABLE, &off);
    let next = [(); 2].map(|()| zone.rmqueue(Order::PAGE, MigrateType::Movable).unwrap().pfn());
    assert_eq!(
        next,
        [pages[1], pages[3]],
        "both, from the lowest on, before pages that were free all the time"
    );
}

/// A stopped list does not stop allocating or freeing: both go to the buddy, and the list stays as it is.
#[test]
fn a_stopped_list_is_passed_by() {
    let mm = machine();
    let listed = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    mm.free_pages(listed, Order::PAGE);
    let count = mm.pcp_pages(MOVABLE);
    assert!(count > 0);
    let hotplug = mm.hotplug();
    let stopped = mm.stop_pcp(mm.zones().as_slice(), hotplug.held());
    let free = mm.zone(MOVABLE).free();
    let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    assert_ne!(pfn, listed);
    assert_eq!((mm.zone(MOVABLE).free(), mm.pcp_pages(MOVABLE)), (free - 1, count), "exactly one page");
    mm.free_pages(pfn, Order::PAGE);
    assert_eq!((mm.zone(MOVABLE).free(), mm.pcp_pages(MOVABLE)), (free, count));
    drop(stopped);
    assert_eq!(mm.alloc_pages(Order::PAGE, Gfp::Movable), Ok(listed), "the list is in use again");
    mm.free_pages(listed, Order::PAGE);
    drop(hotplug);
    mm.check();
}

/// A machine on which two threads use the lists of one CPU is found out.
#[test]
#[should_panic(expected = "two threads are one CPU")]
fn one_thread_at_a_time_is_a_cpu() {
    let mm = machine();
    let _cpu = mm.own_cpu();
    thread::spawn(|| mm.alloc_pages(Order::PAGE, Gfp::Movable))
        .join()
        .unwrap_or_else(|panic| resume_unwind(panic))
        .unwrap();
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
        let off = mm.irq_off();
        let mut buddy = mm.lock_zone(MOVABLE, &off);
        buddy.split_to_pageblocks(pages, block);
        buddy.move_free(pages, &(block..block + 1), MigrateType::Unmovable);
        pages.section().pageblocks.set_type(block, MigrateType::Unmovable);
    }
    mm.drain_pcp(MOVABLE, mm.hotplug().held());
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
    assert_ne!(before[0], PcpLimits::OFF);
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

/// A machine whose Movable zone has 640 MiB, less the memmaps, all of it free.
fn large_machine() -> &'static Mm<Sim> {
    let mm = SimMachine { sections: 40, ..SimMachine::default() }.boot();
    for nr in (0..5).map(|index| SectionNr::new(BLOCK.get() + index)) {
        mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        mm.hotplug().online(nr, ZoneType::Movable).unwrap();
    }
    mm
}

/// Pageblocks come by halves of the limit, and go by halves when there are more of them than the limit. What is on
/// the lists counts.
#[test]
fn pageblocks_are_kept_too() {
    let mm = large_machine();
    let limits = mm.zone(MOVABLE).pcp_limits();
    assert_eq!((limits.large, limits.large_batch()), (4, 2));
    let count = || mm.cpus()[0].zone(MOVABLE).pageblocks.count();
    let free = || mm.zone(MOVABLE).free() / 512;
    let all = free();
    let blocks: Vec<Pfn> = (0..6).map(|_| mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable).unwrap()).collect();
    assert_eq!((count(), free()), (0, all - 6), "three refills of two");
    for (&block, kept) in blocks.iter().zip([1, 2, 3, 4, 3, 4]) {
        mm.free_pages(block, Order::PAGEBLOCK);
        assert_eq!(count(), kept);
        mm.check();
    }
    assert_eq!(mm.pcp_pages(MOVABLE), 4 * 512);
    assert_eq!(mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable), Ok(blocks[5]), "the last that was freed");
    assert_eq!(mm.stats().zones[2].pcp, 3 * 512);
    drop(mm.zone_pcp_disable(MOVABLE));
    assert_eq!((count(), free()), (0, all - 1));
    mm.free_pages(blocks[5], Order::PAGEBLOCK);
    mm.hotplug().offline(BLOCK).unwrap();
    mm.check();
}

/// A page that a drain left on a list is named, with all pages of its pageblock.
#[test]
fn a_pageblock_on_a_list_is_in_the_way() {
    let mm = large_machine();
    let block = mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable).unwrap();
    mm.free_pages(block, Order::PAGEBLOCK);
    let hotplug = mm.hotplug();
    let pages = mm.sparse.pages(block.section()).unwrap();
    mm.start_isolate(pages, pageblock_of(block)).unwrap();
    let stuck = mm.test_pages_isolated(pages, pageblock_of(block));
    assert_eq!((stuck.pages, stuck.listed), (512, 512));
    mm.undo_isolate(pages, pageblock_of(block));
    drop(hotplug);
    mm.check();
}

/// Before a request is refused, the pageblocks of the CPU's own lists serve it, whatever its order.
#[test]
fn kept_pageblocks_are_not_missing() {
    for order in [0, 3, 9, 10].map(Order::new) {
        let mm = large_machine();
        let mut held = Vec::new();
        while let Ok(pfn) = mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable) {
            held.push(pfn);
        }
        let is_first = |pfn: &&Pfn| pfn.is_aligned(Order::MAX) && held.contains(&pfn.buddy(Order::PAGEBLOCK));
        let first = *held.iter().find(is_first).unwrap();
        for pfn in [first, first.buddy(Order::PAGEBLOCK)] {
            mm.free_pages(pfn, Order::PAGEBLOCK);
        }
        assert_eq!(mm.cpus()[0].zone(MOVABLE).pageblocks.count(), 2);
        mm.alloc_pages(order, Gfp::Movable).unwrap_or_else(|error| panic!("{order:?}: {error}"));
        mm.check();
    }
}

/// A zone that has become too small to keep pageblocks lets those that were kept go, and takes no more.
#[test]
fn pageblocks_are_not_kept_any_more() {
    let mm = large_machine();
    let block = mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable).unwrap();
    let count = || mm.cpus()[0].zone(MOVABLE).pageblocks.count();
    assert_eq!(count(), 1);
    let small = PcpLimits { large: 0, ..mm.zone(MOVABLE).pcp_limits() };
    mm.cpus()[0].zone(MOVABLE).set_limits(small);
    mm.free_pages(block, Order::PAGEBLOCK);
    assert_eq!(count(), 1, "one more is not kept");
    for left in [0, 0] {
        mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable).unwrap();
        assert_eq!(count(), left);
    }
}
