//! `src/deferred.rs`: CPUs and allocations initialise sections of boot memory.
//!
//! Must hold: no allocation fails while memory is on its way (S1.5), every section is initialised once (S1.9), and no
//! CPU waits for ever (S1.6; a schedule has a limit of steps).
//!
//! Numbers such as S1.5 are those of the claims in `docs/features.toml`.

use shuttle::thread;
use tidevm_mm::hosted::model::{Variant, alone};
use tidevm_mm::{Gfp, InitPolicy, MemoryContent, Mm, Options, Order, Pfn, SECTION_PAGES};
use tidevm_mm_sim::{Machine, Sim, SimMachine};

use crate::machine::in_schedule;
use crate::schedules::{fails, holds};

const FAILED: &str = "an allocation fails while memory is on its way";

/// Sections that are left for later.
const LATER: u32 = 2;

/// Buddy blocks of the largest order that are not in use at boot: in the first section, and in each later one.
const USABLE: [u32; 2] = [6, 5];

/// Buddy blocks of the largest order that an allocation takes: more than the first section has.
const TAKES: usize = 8;

const LAZY: Options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);

/// Memory whose memmap is known to be zero has few pages to write. Most of it is in use, so few allocations are enough.
fn machine(options: Options) -> Machine {
    let in_use = |section| {
        let usable = USABLE[usize::from(section > 0)] * Order::MAX.pages();
        (section * SECTION_PAGES, SECTION_PAGES - usable)
    };
    Machine::boot(&SimMachine {
        sections: 4,
        memory: [(0, (1 + LATER) * SECTION_PAGES)].into(),
        reserved: (0..=LATER).map(in_use).collect(),
        cpus: 3,
        options,
        ..SimMachine::default()
    })
}

fn take(mm: &Mm<Sim>, count: usize) -> Vec<Pfn> {
    let take = || mm.alloc_pages(Order::MAX, Gfp::Kernel).expect(FAILED);
    (0..count).map(|_| take()).collect()
}

fn give_back(mm: &Mm<Sim>, taken: Vec<Pfn>) {
    taken.into_iter().for_each(|pfn| mm.free_pages(pfn, Order::MAX));
}

fn work(mm: &Mm<Sim>) {
    while mm.init_deferred() {}
}

/// Each of `others` runs on a CPU of its own, beside a CPU that allocates.
fn allocation_meets(others: &[fn(&Mm<Sim>)]) {
    allocation_with(LAZY, others);
}

/// The same with other options.
fn allocation_with(options: Options, others: &[fn(&Mm<Sim>)]) {
    let machine = machine(options);
    in_schedule(&machine, 0, |mm| {
        let taken = thread::scope(|scope| {
            for (cpu, other) in (1..).zip(others) {
                scope.spawn(move || Sim::run_on(cpu, || other(mm)));
            }
            take(mm, TAKES)
        });
        alone(|| {
            give_back(mm, taken);
            work(mm);
            assert!(mm.is_all_initialised());
            let initialised: u32 = mm.stats().deferred_sections.iter().flatten().sum();
            assert_eq!(initialised, LATER, "sections that were initialised");
        });
    });
}

/// S1.5, S1.9: claims of deferred sections against an allocation.
#[test]
fn no_allocation_fails_and_no_section_is_initialised_twice() {
    holds(|| allocation_meets(&[work]));
    holds(|| allocation_meets(&[work, work]));
}

/// S1.5, S1.9: two allocations grow the zone.
#[test]
fn growers_share_the_sections() {
    holds(|| {
        allocation_meets(&[|mm| {
            let taken = take(mm, TAKES / 2);
            give_back(mm, taken);
        }]);
    });
}

/// S1.6: `check` stops all claims and waits for sections that are being initialised. No CPU waits for the checker
/// while it holds such a section.
#[test]
fn freezing_neither_deadlocks_nor_fails_allocations() {
    holds(|| {
        allocation_meets(&[|mm| {
            mm.check();
        }]);
    });
}

/// S1.6: `check` finds no section half initialised.
#[test]
fn a_check_waits_for_sections_that_are_being_initialised() {
    holds(|| {
        let machine = machine(LAZY);
        in_schedule(&machine, 0, |mm| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    Sim::run_on(1, || {
                        mm.check();
                    });
                });
                work(mm);
            });
        });
    });
}

/// Two CPUs claim and initialise a section each.
fn workers_meet() {
    let machine = machine(LAZY);
    in_schedule(&machine, 0, |mm| {
        thread::scope(|scope| {
            scope.spawn(|| Sim::run_on(1, || assert!(mm.init_deferred())));
            assert!(mm.init_deferred());
        });
        assert!(mm.is_all_initialised() && !mm.init_deferred());
    });
}

/// S1.9: the next section is chosen under the lock.
#[test]
fn claims_without_the_lock_initialise_twice() {
    holds(workers_meet);
    fails(Variant::ClaimInTwoSteps, &["is not prepared"], workers_meet);
}

/// S1.5: Linux has this window since its workers run with interrupts on.
#[test]
fn growing_that_ends_with_the_workers_start_fails_allocations() {
    fails(None, &[FAILED], || allocation_with(LAZY.with_grow(false), &[work]));
}
