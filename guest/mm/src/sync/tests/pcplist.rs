//! Per-CPU lists: a CPU at its own, while another CPU stops them, empties them, and lets them go on.
//!
//! The limits, the lists and the grace period are this crate's. The owner takes its steps as the guest's job loop does
//! (`guest/kernel/src/job.rs`). Whole operations are in `tests/interleavings/pcp.rs`.
//!
//! Invariant: the right to the lists is a cell of loom's. So two uses of it must be ordered in every execution, and it is
//! not enough that one of them comes first.

use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::string::String;

use loom::cell::UnsafeCell;

use crate::addr::{Order, Pfn, SectionNr};
use crate::grace::Passes;
use crate::lock::Locks;
use crate::pageblock::MigrateType;
use crate::pcplist::{ListOf, PcpZone};
use crate::sparse::{SectionOwner, SectionState, Sparse};
use crate::sync::tests::{fixed, machine, model};
use crate::sync::yield_now;
use crate::zone::PcpLimits;

const NR: SectionNr = SectionNr::new(1);
const ON: PcpLimits = PcpLimits { high: 100, batch: 7, large: 0 };
const LIST: ListOf = ListOf { order: Order::PAGE, mt: MigrateType::Movable };

struct Owner;

impl SectionOwner for Owner {
    const LOCKS: Locks = Locks::ANY;
}

/// CPU 1 has lists, and CPU 0 needs them empty.
struct Machine {
    sparse: &'static Sparse,
    /// By CPU.
    passes: [Passes; 2],
    lists: PcpZone,
}

/// A step that CPU 0 leaves out, or takes too early.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    NoGrace,
    LimitsAfterGrace,
    /// The owner's: it reads the limits of both steps in the first one.
    LimitsReadOnce,
}

impl Machine {
    fn new() -> &'static Self {
        let sparse = &machine().sparse;
        sparse.set_state(NR, SectionState::Present, &Owner);
        sparse.set_state(NR, SectionState::Initialised, &Owner);
        let lists = PcpZone::new();
        lists.set_limits(ON);
        fixed(Self { sparse, passes: [const { Passes::new() }; 2], lists })
    }

    fn take_all(&self) -> u32 {
        let mut taken = 0;
        while self.lists.pop(self.sparse, LIST).is_some() {
            taken += 1;
        }
        assert_eq!(self.lists.count(), 0, "pages on an empty list");
        taken
    }

    fn synchronize(&self) {
        Passes::synchronize(self.passes.iter().enumerate().skip(1), |_, done| {
            while !done() {
                yield_now();
            }
        });
    }

    /// CPU 0 stops the lists, takes the pages, and lets the lists go on. Returns the number of pages.
    fn drain(&self, right: &UnsafeCell<()>, mistake: Mistake) -> u32 {
        match mistake {
            Mistake::LimitsAfterGrace => {
                self.synchronize();
                self.lists.set_limits(PcpLimits::OFF);
            }
            Mistake::NoGrace => self.lists.set_limits(PcpLimits::OFF),
            Mistake::None | Mistake::LimitsReadOnce => {
                self.lists.set_limits(PcpLimits::OFF);
                self.synchronize();
            }
        }
        let taken = right.with_mut(|_| self.take_all());
        self.lists.set_limits(ON);
        taken
    }

    /// CPU 1 frees a page in each of two steps, then sleeps. Returns the number of pages that it put on its list.
    fn free(&self, right: &UnsafeCell<()>, mistake: Mistake) -> u32 {
        let mut freed = 0;
        let mut before = None;
        for page in [7, 9] {
            self.passes[1].pass();
            let limits = before.unwrap_or_else(|| self.lists.limits());
            before = (mistake == Mistake::LimitsReadOnce).then_some(limits);
            if limits.high > 0 {
                let pfn: Pfn = NR.start().add(page);
                right.with_mut(|_| self.lists.push(self.sparse.page(pfn), pfn, LIST));
                freed += 1;
            }
        }
        self.passes[1].sleep();
        freed
    }
}

fn lists_are_drained(mistake: Mistake) {
    let machine = Machine::new();
    model(move || {
        // Loom runs all threads of a model on one thread of the host.
        let right = Rc::new(UnsafeCell::new(()));
        let of_owner = right.clone();
        let owner = loom::thread::spawn(move || machine.free(&of_owner, mistake));
        let drained = machine.drain(&right, mistake);
        let freed = owner.join().expect("it ends");
        assert_eq!(drained + machine.take_all(), freed, "pages that were taken, pages that were freed");
    });
}

/// `limits`, `set_limits`, `push`, `pop`: each CPU finds what the other one left, and no page twice.
#[test]
fn a_list_is_drained_between_two_uses_of_its_owner() {
    lists_are_drained(Mistake::None);
}

#[test]
fn a_list_that_is_not_stopped_is_met() {
    for mistake in [Mistake::NoGrace, Mistake::LimitsAfterGrace, Mistake::LimitsReadOnce] {
        let found = catch_unwind(AssertUnwindSafe(|| lists_are_drained(mistake)));
        let text = found.expect_err("no execution shows two CPUs at one list");
        let text: Box<String> = text.downcast().expect("a text");
        assert!(text.contains("Causality violation"), "{text}");
    }
}
