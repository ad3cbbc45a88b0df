//! `src/page.rs`, `Mm::split_page_to`: the holder of a buddy block splits it while another CPU walks over it.
//!
//! Must hold: a walk by heads, which takes the zone lock and not the holder's, finds every buddy block whole or split,
//! and never a tail where a head must be.

use shuttle::thread;
use tidevm_mm::sim::Sim;
use tidevm_mm::{Gfp, Mm, OfflineError, Order};

use crate::machine::{BLOCK, boot, in_schedule, small};
use crate::schedules::holds_in;

fn split_meets(groups: u64, walk: impl Fn(&Mm<Sim>) + Send + Sync + 'static + Copy) {
    for to in [Order::PAGEBLOCK, Order::new(7)] {
        holds_in(groups, move || {
            let machine = boot(&small(), 1);
            let block = machine.alloc_pages(Order::MAX, Gfp::Movable).expect("there is room");
            in_schedule(&machine, u64::from(Order::MAX.pages()), |mm| {
                thread::scope(|scope| {
                    scope.spawn(|| Sim::run_on(1, || mm.split_page_to(block, Order::MAX, to)));
                    walk(mm);
                });
                for part in (0..Order::MAX.pages()).step_by(to.pages() as usize) {
                    mm.free_pages(block.add(part), to);
                }
            });
        });
    }
}

/// Isolation walks from pageblock to pageblock. It counts every page of the buddy block, whole or split, once.
#[test]
fn isolation_meets_a_split() {
    split_meets(5, |mm| match mm.hotplug().offline(BLOCK) {
        Err(OfflineError::Unmovable(stuck)) => assert_eq!(stuck.pages, Order::MAX.pages(), "{stuck}"),
        other => panic!("{other:?}"),
    });
}

/// `check` walks over all buddy blocks.
#[test]
fn a_check_meets_a_split() {
    split_meets(2, |mm| {
        mm.check();
    });
}
