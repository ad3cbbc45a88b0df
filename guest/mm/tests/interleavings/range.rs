//! `src/memory_block/range.rs` and `src/deferred.rs`: plugged memory leaves while other CPUs want it.
//!
//! Must hold: a memory block leaves as deferred memory or as initialised memory, and nothing is lost on the way; an
//! allocation that gets a page of it keeps it there.

use shuttle::thread;
use tidevm_mm::hosted::model::{Variant, alone};
use tidevm_mm::{
    Gfp, InitPolicy, MemoryContent, Mm, NodeId, OfflineError, Order, RemovedPart, SECTION_PAGES, SectionNr,
    SectionRange, ZoneType,
};
use tidevm_mm_sim::{Machine, Sim, SimMachine};

use crate::machine::{BLOCKS, in_schedule, scheduled, small, step_on};
use crate::schedules::{fails, holds};

/// What a removal says of a memory block that is neither deferred nor online: it was looked at half-way.
const HALF_WAY: &str = "a memory block on its way is not waited for";

/// Both memory blocks.
fn range() -> SectionRange {
    SectionRange::new(BLOCKS[0], BLOCKS.len() as u32).expect("two sections")
}

fn plug(mm: &Mm<Sim>, range: SectionRange) {
    let added = mm.hotplug().add_and_online_memory(
        NodeId::FIRST,
        range,
        1,
        ZoneType::Movable,
        MemoryContent::Zero,
        || unreachable!("all of it is deferred"),
    );
    assert_eq!(added, Ok(range.end()));
}

/// A machine with both memory blocks deferred.
fn machine() -> Machine {
    let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
    let machine = Machine::boot(&SimMachine { options, ..small() });
    plug(&machine, range());
    machine
}

/// Removes what leaves of the range. Returns the first section that left.
fn remove(mm: &Mm<Sim>) -> SectionNr {
    match mm.hotplug().offline_and_remove_from_end(range(), || true) {
        Ok(()) => range().first(),
        Err(RemovedPart { first, error }) => {
            assert_ne!(error, Some(OfflineError::NotOnline), "{HALF_WAY}");
            first
        }
    }
}

/// Takes a page, and gives it back if it may.
fn use_a_page(mm: &Mm<Sim>) {
    let page = mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("there is room");
    mm.platform().write(page, 7);
    thread::yield_now();
    assert_eq!(mm.platform().read(page), 7, "{page:?} left while it was in use");
    mm.free_pages(page, Order::PAGE);
}

/// One CPU removes the range while `others` run, and plugs again what left.
fn removal_meets(others: &[fn(&Mm<Sim>)]) {
    let machine = machine();
    in_schedule(&machine, 0, |mm| {
        let first = thread::scope(|scope| {
            for (cpu, other) in (1..).zip(others) {
                scope.spawn(move || step_on(mm, cpu, || other(mm)));
            }
            remove(mm)
        });
        alone(|| {
            mm.check();
            let left = range().end().get() - first.get();
            if let Some(range) = SectionRange::new(first, left).filter(|range| !range.is_empty()) {
                plug(mm, range);
            }
        });
    });
}

/// An allocation claims a memory block that is on its way out.
#[test]
fn a_range_leaves_beside_an_allocation() {
    holds(|| removal_meets(&[use_a_page]));
}

/// The same with two CPUs, one of which claims for nobody.
#[test]
fn a_range_leaves_beside_claims() {
    holds(|| {
        removal_meets(&[use_a_page, |mm| {
            mm.init_deferred();
        }]);
    });
}

/// A range comes while another CPU claims what it finds: it can be claimed only when all counters know of it.
#[test]
fn a_range_comes_beside_claims() {
    holds(|| {
        let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
        let machine = Machine::boot(&SimMachine { options, ..small() });
        scheduled(&machine, |mm| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    step_on(mm, 1, || {
                        mm.init_deferred();
                        mm.init_deferred();
                    });
                });
                plug(mm, range());
            });
        });
        machine.check();
        let stats = machine.stats();
        let zone = &stats.zones[2];
        assert_eq!((zone.managed, zone.present), (zone.all_free(), 2 * u64::from(SECTION_PAGES)));
    });
}

/// An operation on a memory block meets the CPU that initialises it.
#[test]
fn an_operation_on_a_memory_block_waits_for_a_claim() {
    holds(|| {
        let machine = machine();
        scheduled(&machine, |mm| {
            thread::scope(|scope| {
                scope.spawn(|| step_on(mm, 1, || mm.init_deferred()));
                mm.hotplug().offline(BLOCKS[0]).expect(HALF_WAY);
            });
        });
        machine.check();
        machine.hotplug().remove_memory(BLOCKS[0]).expect("it is offline");
    });
}

/// A removal that does not wait for a claim finds a memory block that is neither deferred nor online.
#[test]
fn a_removal_that_waits_for_no_claim_meets_one() {
    fails(
        Variant::FreezeDoesNotWait,
        &[HALF_WAY, "left, unclaimed", "the span's first section is ours"],
        || removal_meets(&[use_a_page]),
    );
}
