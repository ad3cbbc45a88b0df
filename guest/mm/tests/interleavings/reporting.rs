//! `src/page_reporting.rs`: blocks are lent to the host and put back while other CPUs allocate, free, and take the memory
//! offline.
//!
//! These must hold:
//! - a page that is lent is in no other hands: neither allocated, nor migrated to, nor offline;
//! - a page that was used after its report is reported again;
//! - no page is lost.

use shuttle::thread;
use tidevm_mm::hosted::model::alone;
use tidevm_mm::{Gfp, Holder, Lent, Mm, OfflineError, Order, Pfn};
use tidevm_mm_sim::Sim;

use crate::machine::{BLOCK, Tenant, boot, in_schedule, online, small, step_on};
use crate::schedules::holds;

/// What the host finds in the first page of a block that it has taken back.
const TAKEN: u64 = 0x7a6e;

/// Reports all that can be lent at once.
fn report(mm: &Mm<Sim>) {
    let mut lent = Lent::default();
    mm.platform().step(|| mm.lend_unreported(&mut lent));
    let heads: Vec<Pfn> = lent.ranges().map(|range| range.start()).collect();
    for &pfn in &heads {
        mm.platform().write(pfn, TAKEN);
    }
    thread::yield_now();
    for &pfn in &heads {
        assert_eq!(mm.platform().read(pfn), TAKEN, "{pfn:?} was written while it was lent");
    }
    mm.platform().step(|| mm.put_back(&mut lent, true));
}

/// Uses a block for a moment.
fn use_block(mm: &Mm<Sim>, order: Order) {
    let Ok(pfn) = mm.platform().step(|| mm.alloc_pages(order, Gfp::Movable)) else { return };
    mm.platform().write(pfn, 1);
    thread::yield_now();
    assert_eq!(mm.platform().read(pfn), 1, "{pfn:?} of {order:?} is in use, and was lent");
    mm.platform().step(|| mm.free_pages(pfn, order));
}

#[test]
fn a_report_meets_allocations() {
    for order in [Order::MAX, Order::PAGEBLOCK, Order::PAGE] {
        holds(move || {
            let machine = boot(&small(), 1);
            in_schedule(&machine, 0, |mm| {
                thread::scope(|scope| {
                    scope.spawn(|| Sim::run_on(1, || use_block(mm, order)));
                    scope.spawn(|| Sim::run_on(2, || use_block(mm, Order::MAX)));
                    report(mm);
                });
                alone(|| report(mm));
            });
        });
    }
}

/// The memory block stays online only if one of its pages was lent, or was just being freed, when it was looked at.
#[test]
fn a_report_meets_offline() {
    holds(|| {
        let machine = boot(&small(), 1);
        let tenant = Tenant::new(&machine);
        in_schedule(&machine, 2, |mm| {
            let done = thread::scope(|scope| {
                scope.spawn(|| Sim::run_on(1, || report(mm)));
                scope.spawn(|| Sim::run_on(2, || tenant.release(mm, 0)));
                match step_on(mm, 0, || mm.hotplug().offline(BLOCK)) {
                    Ok(()) => true,
                    Err(OfflineError::Unmovable(stuck)) => {
                        // A page that its holder frees just now does not move either.
                        let known = |holder| matches!(holder, Holder::Lent | Holder::Owned { .. });
                        assert!(stuck.first.iter().flatten().all(|(_, holder)| known(*holder)), "{stuck}");
                        false
                    }
                    Err(OfflineError::NoRoom(_)) => false,
                    Err(other) => panic!("{other}"),
                }
            });
            alone(|| {
                tenant.release(mm, 1);
                assert!(
                    done || mm.hotplug().offline(BLOCK).is_ok(),
                    "nothing is lent, and the memory block stays"
                );
                online(mm, BLOCK);
                report(mm);
            });
        });
    });
}
