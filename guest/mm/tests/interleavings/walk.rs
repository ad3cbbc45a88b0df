//! `src/page.rs`, `Mm::split_page_to`: the holder of a buddy block splits it while another CPU walks over it.
//!
//! Must hold: a walk by heads, which takes the zone lock and not the holder's, finds every buddy block whole or split,
//! and never a tail where a head must be.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use shuttle::thread;
use tidevm_mm::hosted::model::alone;
use tidevm_mm::{Gfp, Mm, OfflineError, Order, Pfn};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::machine::{BLOCK, boot, in_schedule, small};
use crate::schedules::holds;

fn free_parts(mm: &Mm<Sim>, block: Pfn, order: Order) {
    for part in (0..Order::MAX.pages()).step_by(order.pages() as usize) {
        mm.free_pages(block.add(part), order);
    }
}

fn split_meets(walk: impl Fn(&Mm<Sim>) + Send + Sync + 'static + Copy) {
    for to in [Order::PAGEBLOCK, Order::new(7)] {
        holds(move || {
            let machine = boot(&small(), 1);
            let block = machine.alloc_pages(Order::MAX, Gfp::Movable).expect("there is room");
            in_schedule(&machine, u64::from(Order::MAX.pages()), |mm| {
                thread::scope(|scope| {
                    scope.spawn(|| Sim::run_on(1, || mm.split_page_to(block, Order::MAX, to)));
                    walk(mm);
                });
                alone(|| free_parts(mm, block, to));
            });
        });
    }
}

/// Walks over the buddy block from pageblock to pageblock, until it is split.
#[test]
fn a_walk_finds_a_head_in_front_of_every_part() {
    for to in [Order::PAGEBLOCK, Order::new(7)] {
        holds(move || {
            let machine = boot(&SimMachine { cpus: 2, ..small() }, 1);
            let block = machine.alloc_pages(Order::MAX, Gfp::Movable).expect("there is room");
            let pageblocks = block.pageblock()..block.pageblock() + 2;
            let is_split = AtomicBool::new(false);
            in_schedule(&machine, u64::from(Order::MAX.pages()), |mm| {
                thread::scope(|scope| {
                    scope.spawn(|| {
                        Sim::run_on(1, || mm.split_page_to(block, Order::MAX, to));
                        is_split.store(true, SeqCst);
                    });
                    while !is_split.load(SeqCst) {
                        for (pfn, is_head) in mm.walk(BLOCK, &pageblocks) {
                            assert!(is_head, "{pfn:?}, where a part of {block:?} begins, is a tail");
                        }
                        thread::yield_now();
                    }
                });
                alone(|| free_parts(mm, block, to));
            });
        });
    }
}

/// Isolation walks from pageblock to pageblock. It counts every page of the buddy block, whole or split, once.
#[test]
fn isolation_meets_a_split() {
    split_meets(|mm| match mm.hotplug().offline(BLOCK) {
        Err(OfflineError::Unmovable(stuck)) => assert_eq!(stuck.pages, Order::MAX.pages(), "{stuck}"),
        other => panic!("{other:?}"),
    });
}

/// `check` walks over all buddy blocks.
#[test]
fn a_check_meets_a_split() {
    split_meets(|mm| {
        mm.check();
    });
}
