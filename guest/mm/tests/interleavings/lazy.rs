//! `src/page_alloc.rs`, `src/free_lists.rs` on a memmap that is all zero: CPUs take and free neighbouring pages of one
//! buddy block. Only its head was written before.
//!
//! Must hold (S2.13): every page leaves "never initialised" before a CPU owns it, and no page has two owners.
//!
//! Numbers such as S2.13 are those of the claims in `docs/features.toml`.

use shuttle::thread;
use tidevm_mm::{Gfp, InitPolicy, MemoryContent, Mm, Order, Pfn};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::machine::{boot, in_schedule, small};
use crate::schedules::holds;

fn machine() -> SimMachine {
    let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
    SimMachine { options, ..small() }
}

/// The holder of `pfn` looks at its struct page, and marks the page as its own.
fn hold(mm: &Mm<Sim>, pfn: Pfn, cpu: u64) -> Pfn {
    assert_ne!(mm.platform().page_state(pfn), 0, "{pfn:?} is used before it is initialised");
    mm.platform().write(pfn, cpu);
    pfn
}

fn give_back(mm: &Mm<Sim>, pfn: Pfn, order: Order, cpu: u64) {
    assert_eq!(mm.platform().read(pfn), cpu, "two CPUs have {pfn:?}");
    mm.free_pages(pfn, order);
}

/// Each CPU takes pages and gives them back while the other one does the same.
fn neighbours_meet(orders: [Order; 2]) {
    let machine = boot(&machine(), 0);
    in_schedule(&machine, 0, |mm| {
        let run = |cpu: u64| {
            Sim::run_on(cpu as usize, || {
                for order in [orders[cpu as usize], Order::new(1)] {
                    let take = || hold(mm, mm.alloc_pages(order, Gfp::Kernel).expect("there is room"), cpu);
                    let taken = [(); 2].map(|()| take());
                    thread::yield_now();
                    taken.into_iter().for_each(|pfn| give_back(mm, pfn, order, cpu));
                }
            });
        };
        thread::scope(|scope| {
            scope.spawn(|| run(1));
            run(0);
        });
    });
}

/// S2.13: single pages come to each CPU's list by a refill.
#[test]
fn neighbours_of_a_zeroed_buddy_block_are_initialised_once_each() {
    holds(|| neighbours_meet([Order::PAGE; 2]));
}

/// S2.13: a CPU that takes the zone lock next must not take a page that was handed out for a free one, and merge it.
#[test]
fn a_page_is_handed_out_before_the_lock_is_released() {
    holds(|| neighbours_meet([Order::new(1), Order::new(2)]));
}
