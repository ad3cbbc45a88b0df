//! The grace period: a memmap is unmapped after its last reader.
//!
//! The section, its look-up and the grace period are this crate's. The readers take their steps as the guest's job loop
//! does (`guest/kernel/src/job.rs`). Pitfall 13 of `docs/pitfalls.md`.
//!
//! Invariant: the memmap is a cell of loom's. So a read and the unmapping must be ordered in every execution, and it is
//! not enough that the read comes first.

use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use loom::cell::UnsafeCell;

use crate::addr::SectionNr;
use crate::grace::Passes;
use crate::lock::Locks;
use crate::sparse::{SectionOwner, SectionState, Sparse};
use crate::sync::tests::{fixed, machine, model};
use crate::sync::yield_now;

const NR: SectionNr = SectionNr::new(1);

struct Owner;

impl SectionOwner for Owner {
    const LOCKS: Locks = Locks::ANY;
}

/// A section that one CPU removes while others look its pages up.
struct Machine {
    sparse: &'static Sparse,
    /// By CPU.
    passes: [Passes; 2],
}

impl Machine {
    fn new() -> &'static Self {
        let sparse = &machine().sparse;
        sparse.set_state(NR, SectionState::Present, &Owner);
        sparse.set_state(NR, SectionState::Initialised, &Owner);
        fixed(Self { sparse, passes: [const { Passes::new() }; 2] })
    }

    /// CPU 0 removes the section.
    fn remove(&self, memmap: &UnsafeCell<()>, synchronizes: bool) {
        self.sparse.set_state(NR, SectionState::Absent, &Owner);
        if synchronizes {
            let others = self.passes.iter().enumerate().skip(1);
            Passes::synchronize(others, |_, done| {
                while !done() {
                    yield_now();
                }
            });
        }
        memmap.with_mut(|_| ());
    }

    /// One step of a CPU.
    fn look(&self, memmap: &UnsafeCell<()>) {
        if self.sparse.pages(NR).is_some() {
            memmap.with(|_| ());
        }
    }

    /// CPU 1 takes two steps one after the other, and sleeps.
    fn read(&self, memmap: &UnsafeCell<()>) {
        for _ in 0..2 {
            self.passes[1].pass();
            self.look(memmap);
        }
        self.passes[1].sleep();
    }

    /// CPU 1 takes a step, sleeps, wakes for another step, and sleeps.
    fn read_and_sleep(&self, memmap: &UnsafeCell<()>) {
        for _ in 0..2 {
            self.passes[1].wake();
            self.passes[1].pass();
            self.look(memmap);
            self.passes[1].sleep();
        }
    }
}

type Reader = fn(&Machine, &UnsafeCell<()>);
const READERS: [Reader; 2] = [Machine::read, Machine::read_and_sleep];

/// Removes the section in every execution, beside `read`.
fn a_section_is_removed(read: Reader, synchronizes: bool) {
    let machine = Machine::new();
    model(move || {
        // Loom runs all threads of a model on one thread of the host.
        let memmap = Rc::new(UnsafeCell::new(()));
        let read_memmap = memmap.clone();
        let reader = loom::thread::spawn(move || read(machine, &read_memmap));
        machine.remove(&memmap, synchronizes);
        reader.join().expect("it ends");
    });
}

#[test]
fn a_section_is_unmapped_after_its_last_reader() {
    READERS.into_iter().for_each(|read| a_section_is_removed(read, true));
}

#[test]
fn without_a_grace_period_a_reader_is_met() {
    for read in READERS {
        let found = catch_unwind(AssertUnwindSafe(|| a_section_is_removed(read, false)));
        let text = found.expect_err("no execution shows a page that is read and not mapped");
        let text: Box<String> = text.downcast().expect("a text");
        assert!(text.contains("Causality violation"), "{text}");
    }
}
