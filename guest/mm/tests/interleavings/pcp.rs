//! `src/pcplist.rs` and the files below it: pages are freed, and taken by refills, while their memory goes away.
//!
//! These must hold:
//! - I1: while lists are disabled, every list is empty;
//! - I2: once a pageblock is isolated, none of its pages can be allocated (`take_isolated` finds each one free);
//! - I3: no page is lost;
//! - I4: after the last page in use was freed, the memory block goes offline.
//!
//! Numbers such as S3.1 are those of the claims in `docs/features.toml`.

use shuttle::thread;
use tidevm_mm::hosted::model::{Variant, alone};
use tidevm_mm::{
    Gfp, InitPolicy, MemoryContent, Mm, NodeId, OfflineError, Order, PageblockSet, PcpPolicy, Pfn, SectionNr,
};
use tidevm_mm_sim::{Machine, Sim, SimMachine};

use crate::machine::{
    BLOCK, BLOCKS, MOVABLE, Tenant, add, boot, in_schedule, movable_page, online, scheduled, small, step_on,
};
use crate::schedules::{fails, holds};

const HIDES: &str = "a page hides on a per-CPU list";

/// I1. The lists of `MOVABLE` are disabled.
fn assert_disabled(mm: &Mm<Sim>) {
    for (cpu, lists) in mm.pcp_info(MOVABLE).enumerate() {
        assert_eq!(lists.count, 0, "{HIDES}, of CPU {cpu}");
        assert_eq!((lists.high, lists.batch), (0, 1), "limits of CPU {cpu} are not those of a disabled list");
    }
}

/// Disables the lists, and looks at them now and later.
fn disable_for_a_while(mm: &Mm<Sim>) {
    let disabled = mm.zone_pcp_disable(MOVABLE);
    assert_disabled(mm);
    thread::yield_now();
    assert_disabled(mm);
    drop(disabled);
}

/// The limits of every CPU are those of the zone.
fn assert_enabled(mm: &Mm<Sim>) {
    let limits: Vec<_> = mm.pcp_info(MOVABLE).map(|lists| (lists.high, lists.batch)).collect();
    assert!(
        limits[0].0 > 1 && limits.iter().all(|of| *of == limits[0]),
        "limits after the lists are enabled: {limits:?}"
    );
}

/// Takes `BLOCK` offline. It may fail only because a page is still in use.
fn offline(mm: &Mm<Sim>) -> bool {
    match step_on(mm, 0, || mm.hotplug().offline(BLOCK)) {
        Ok(()) => true,
        Err(OfflineError::Unmovable(stuck)) => {
            assert_eq!(stuck.listed, 0, "{HIDES}: {stuck}");
            false
        }
        Err(other) => panic!("{other}"),
    }
}

/// As `offline`, and tries again after `others` have ended. Puts the memory block online again.
fn offline_with(mm: &Mm<Sim>, others: &[&(dyn Fn() + Sync)]) {
    let done = thread::scope(|scope| {
        for (cpu, other) in (1..).zip(others) {
            scope.spawn(move || Sim::run_on(cpu, other));
        }
        offline(mm)
    });
    alone(|| {
        assert!(done || offline(mm), "every page is free, and the memory block stays online");
        online(mm, BLOCK);
        assert_enabled(mm);
    });
}

fn free(mm: &Mm<Sim>, page: Pfn) {
    mm.platform().step(|| mm.free_pages(page, Order::PAGE));
}

fn with_policy(pcp: PcpPolicy) -> SimMachine {
    SimMachine { options: SimMachine::OPTIONS.with_pcp(pcp), ..small() }
}

/// A machine that does not disable lists, and drains them in each round.
fn drained_again() -> SimMachine {
    with_policy(PcpPolicy::DrainAgain)
}

/// Two CPUs free a page each while its memory block goes offline.
fn meets_frees(machine: &SimMachine) {
    let machine = boot(machine, 1);
    let [one, other] = [(); 2].map(|()| movable_page(&machine));
    in_schedule(&machine, 2, |mm| offline_with(mm, &[&|| free(mm, one), &|| free(mm, other)]));
}

/// A CPU whose list is empty allocates a page, and frees it. Other pages are on no list.
fn meets_a_refill(machine: &SimMachine) {
    let machine = boot(machine, 1);
    let refill = |mm: &Mm<Sim>| {
        let page = mm.platform().step(|| mm.alloc_pages(Order::PAGE, Gfp::Movable));
        free(mm, page.expect("there is room"));
    };
    in_schedule(&machine, 0, |mm| offline_with(mm, &[&|| refill(mm)]));
}

/// Lists are disabled while a CPU allocates from an empty list.
fn disable_meets_a_refill() {
    let machine = boot(&small(), 1);
    in_schedule(&machine, 0, |mm| {
        thread::scope(|scope| {
            let other = scope.spawn(|| Sim::run_on(1, || movable_page(mm)));
            let disabled = mm.zone_pcp_disable(MOVABLE);
            assert_disabled(mm);
            let page = other.join().expect("it ends");
            assert_disabled(mm);
            mm.free_pages(page, Order::PAGE);
            assert_disabled(mm);
            drop(disabled);
            assert_enabled(mm);
        });
    });
}

/// Lists are disabled while CPUs free pages, each in a step of its job loop.
fn disable_meets_frees() {
    disable_meets(free);
}

/// As `disable_meets_frees`, where nothing but the use of the lists keeps a grace period waiting.
fn disable_meets_bare_frees() {
    disable_meets(|mm, page| mm.free_pages(page, Order::PAGE));
}

fn disable_meets(free: impl Fn(&Mm<Sim>, Pfn) + Copy + Send) {
    let machine = boot(&small(), 1);
    let [one, other] = [(); 2].map(|()| movable_page(&machine));
    in_schedule(&machine, 2, |mm| {
        thread::scope(|scope| {
            scope.spawn(move || Sim::run_on(1, || free(mm, one)));
            // The last CPU has done nothing before.
            scope.spawn(move || Sim::run_on(2, || free(mm, other)));
            disable_for_a_while(mm);
        });
        assert_enabled(mm);
    });
}

/// V3, S3.1, S3.13: offline against frees on other CPUs.
#[test]
fn v3_offline_meets_frees() {
    holds(|| meets_frees(&small()));
}

/// V3, S3.6: offline against a refill.
#[test]
fn v3_offline_meets_a_refill() {
    holds(|| meets_a_refill(&small()));
}

/// S3.6: refill against disable.
#[test]
fn v3_disable_meets_a_refill() {
    holds(disable_meets_a_refill);
}

/// S3.1.
#[test]
fn v3_disable_meets_frees() {
    holds(disable_meets_frees);
}

/// V0: drain once and isolate, as before 2020.
#[test]
fn v0_a_single_drain_leaves_a_page_behind() {
    fails(None, &[HIDES], || {
        meets_frees(&with_policy(PcpPolicy::DrainOnce));
    });
}

/// V3: lists that are not disabled are drained after the isolation.
#[test]
fn v3_draining_again_meets_frees() {
    holds(|| meets_frees(&drained_again()));
}

/// V1, S3.6: no grace period for lists that look empty.
#[test]
fn v1_a_list_that_looks_empty_is_not() {
    fails(Variant::NoGraceIfEmpty, &[HIDES], disable_meets_a_refill);
}

/// V2, pitfall 3 of `docs/pitfalls.md`: the count is read before the grace period, while a refill runs.
#[test]
fn v2_a_count_read_before_the_grace_period_misses_a_refill() {
    fails(Variant::DrainCountsBefore, &[HIDES], disable_meets_a_refill);
    fails(Variant::DrainCountsBefore, &[HIDES], || meets_a_refill(&small()));
}

/// V4: a flush uses the type that the free read. The page is on a list of an isolated pageblock's neighbours then,
/// and can be allocated. The offline that takes it off the isolated list does not find it there.
#[test]
fn v4_a_stale_type_puts_a_page_back_into_use() {
    fails(Variant::FlushStaleType, &["on the free list of", "free pages are", "on a free list"], || {
        meets_frees(&drained_again())
    });
}

/// What is seen when two CPUs are at one list.
const TORN: [&str; 4] = [HIDES, "on a per-CPU list", "subtract with overflow", "some are lost"];

/// Without a grace period, or with one that ends before the limits are published, an owner meets the drain.
#[test]
fn a_drain_that_does_not_wait_meets_the_owner() {
    fails(Variant::NoGrace, &TORN, disable_meets_frees);
    for variant in [Variant::NoGrace, Variant::LimitsAfterGrace] {
        fails(variant, &TORN, disable_meets_bare_frees);
    }
}

/// An owner that reads its limits before a grace period would wait for it goes by those of before.
#[test]
fn limits_that_are_read_early_leave_a_page_behind() {
    fails(Variant::LimitsReadEarly, &TORN, disable_meets_bare_frees);
}

/// An owner that finds its list stopped, and uses it.
#[test]
fn a_stopped_list_that_is_used_keeps_a_page() {
    fails(Variant::StoppedListKeepsPages, &TORN, disable_meets_frees);
    fails(Variant::StoppedListKeepsPages, &TORN, || meets_frees(&small()));
}

/// S3.1: only the use of the list is a step.
#[test]
fn v3_disable_meets_bare_frees() {
    holds(disable_meets_bare_frees);
}

/// The mistake of claim S3.1: a page that is freed between the drain and the new limits stays.
#[test]
fn limits_published_after_the_drain_leave_a_page_behind() {
    fails(Variant::LimitsAfterDrain, &[HIDES], disable_meets_frees);
    fails(Variant::LimitsAfterDrain, &[HIDES], || meets_frees(&small()));
}

/// S3.15: the limits of a CPU that has not run yet are published too.
#[test]
fn a_cpu_that_starts_meanwhile_has_no_limits() {
    fails(Variant::LimitsSkipLastCpu, &["CPU 2"], disable_meets_frees);
}

/// S3.9: two CPUs disable lists, one after the other.
#[test]
fn disablers_are_one_after_the_other() {
    holds(|| {
        let machine = boot(&small(), 1);
        let pages = [(); 2].map(|()| movable_page(&machine));
        in_schedule(&machine, 2, |mm| {
            thread::scope(|scope| {
                for (cpu, page) in pages.into_iter().enumerate() {
                    scope.spawn(move || {
                        Sim::run_on(cpu, || {
                            let _disabled = mm.zone_pcp_disable(MOVABLE);
                            assert_disabled(mm);
                            mm.free_pages(page, Order::PAGE);
                            assert_disabled(mm);
                        });
                    });
                }
            });
            assert_enabled(mm);
        });
    });
}

/// S3.9: limits do not change while lists are disabled. They change here because more memory comes.
#[test]
fn limits_are_not_updated_while_disabled() {
    holds(|| {
        let machine = boot(&small(), 1);
        add(&machine, BLOCKS[1]);
        let page = movable_page(&machine);
        let updates = machine.stats().pcp_limit_updates;
        scheduled(&machine, |mm| {
            thread::scope(|scope| {
                scope.spawn(|| Sim::run_on(1, || online(mm, BLOCKS[1])));
                let disabled = mm.zone_pcp_disable(MOVABLE);
                assert_disabled(mm);
                mm.free_pages(page, Order::PAGE);
                thread::yield_now();
                assert_disabled(mm);
                drop(disabled);
            });
        });
        assert_enabled(&machine);
        assert!(machine.stats().pcp_limit_updates > updates, "the limits did not change");
        machine.check();
    });
}

/// Two CPUs take memory away: different memory blocks, or the same one.
#[test]
fn two_offliners_are_one_after_the_other() {
    for second in BLOCKS {
        holds(move || {
            let machine = boot(&small(), 2);
            in_schedule(&machine, 0, |mm| {
                let results = thread::scope(|scope| {
                    let other = scope.spawn(|| step_on(mm, 1, || mm.hotplug().offline(second)));
                    let mine = mm.hotplug().offline(BLOCK);
                    [mine, other.join().expect("it ends")]
                });
                let both = second != BLOCK;
                match results {
                    [Ok(()), Ok(())] => assert!(both, "one memory block went offline twice"),
                    [Ok(()), Err(OfflineError::NotOnline)] | [Err(OfflineError::NotOnline), Ok(())] => {
                        assert!(!both)
                    }
                    _ => panic!("{results:?}"),
                }
                alone(|| {
                    online(mm, BLOCK);
                    if both {
                        online(mm, second);
                    }
                });
            });
        });
    }
}

/// Pages of an owner move away while the owner frees them.
#[test]
fn offline_meets_an_owner_that_lets_go() {
    holds(|| {
        let machine = boot(&small(), 1);
        let tenant = Tenant::new(&machine);
        in_schedule(&machine, 2, |mm| {
            offline_with(mm, &[&|| tenant.release(mm, 0), &|| tenant.release(mm, 1)]);
        });
    });
}

/// Two CPUs, and a Movable zone that is large enough for them to keep pageblocks. Its memmaps are all zero, so that it
/// is made in little time.
fn boot_with_pageblocks() -> Machine {
    const SECTIONS: u32 = 9;
    let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
    let machine = Machine::boot(&SimMachine { sections: 1 + SECTIONS, cpus: 2, options, ..small() });
    for nr in (1..=SECTIONS).map(SectionNr::new) {
        machine
            .hotplug()
            .add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Zero)
            .expect("it is added");
        online(&machine, nr);
    }
    machine
}

/// Lists are disabled while a CPU frees a pageblock, and takes others by a refill.
fn disable_meets_pageblocks() {
    let machine = boot_with_pageblocks();
    let take = |mm: &Mm<Sim>| mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable).expect("there is room");
    let held = Sim::run_on(1, || take(&machine));
    in_schedule(&machine, 512, |mm| {
        thread::scope(|scope| {
            scope.spawn(|| {
                Sim::run_on(1, || {
                    mm.free_pages(held, Order::PAGEBLOCK);
                    let [one, other] = [(); 2].map(|()| take(mm));
                    [one, other].into_iter().for_each(|pfn| mm.free_pages(pfn, Order::PAGEBLOCK));
                });
            });
            disable_for_a_while(mm);
        });
        assert_enabled(mm);
    });
}

/// S3.1, of pageblocks.
#[test]
fn v3_disable_meets_pageblocks() {
    holds(disable_meets_pageblocks);
}

/// Limits that are published after the drain leave a pageblock behind too.
#[test]
fn a_pageblock_that_is_freed_after_the_drain_is_left_behind() {
    fails(Variant::LimitsAfterDrain, &TORN, disable_meets_pageblocks);
}
