//! `src/deferred.rs`: workers and allocations that initialise sections of boot memory.
//!
//! There are two sections of one page each, both left for later, and two allocations of one page. The two
//! allocations want all memory. Must hold: no allocation fails (S1.5), every section is initialised once
//! (S1.9), and no CPU waits for ever (S1.6; loom finds it).
//!
//! Numbers such as S4.15 are those of the claims in `docs/features.md`.

use loom::sync::{Arc, Mutex};
use std::collections::BTreeSet;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use crate::{Witness, breaks, explore, holds};

const FAILED: &str = "an allocation fails while another CPU initialises memory";
const TWICE: &str = "a section is initialised twice";
const SECTIONS: usize = 2;

/// The rules that the proof relies on; `CORRECT` is `deferred.rs`.
#[derive(Clone, Copy)]
struct Rules {
    /// The number of the next section is read and written under one hold of the lock.
    claims_under_lock: bool,
    /// Growing goes on while workers run (in Linux it does not).
    grows_to_the_end: bool,
    /// The memory orders of reading and of counting down the sections that are left.
    left: (Ordering, Ordering),
}

const CORRECT: Rules =
    Rules { claims_under_lock: true, grows_to_the_end: true, left: (Ordering::Acquire, Ordering::AcqRel) };

struct Mm {
    rules: Rules,
    /// The first section that is not claimed.
    next: AtomicUsize,
    claims: Mutex<()>,
    left: AtomicUsize,
    grow: AtomicBool,
    /// `FreeLists`, and the copy of its count that is read without the lock.
    buddy: Mutex<usize>,
    free: AtomicUsize,
    initialised: [AtomicUsize; SECTIONS],
}

impl Mm {
    fn new(rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            rules,
            next: AtomicUsize::new(0),
            claims: Mutex::new(()),
            left: AtomicUsize::new(SECTIONS),
            grow: AtomicBool::new(true),
            buddy: Mutex::new(0),
            free: AtomicUsize::new(0),
            initialised: [const { 0 }; SECTIONS].map(AtomicUsize::new),
        })
    }

    fn claim(&self) -> Option<usize> {
        let lock = self.rules.claims_under_lock.then(|| self.claims.lock().unwrap());
        let next = self.next.load(Ordering::Relaxed);
        if next == SECTIONS {
            return None;
        }
        self.next.store(next + 1, Ordering::Relaxed);
        drop(lock);
        Some(next)
    }

    /// `free_boot_section`, `done`.
    fn init_claimed(&self, nr: usize, witness: &Witness) {
        witness.expect(self.initialised[nr].fetch_add(1, Ordering::Relaxed) == 0, TWICE);
        {
            let mut buddy = self.buddy.lock().unwrap();
            *buddy += 1;
            self.free.store(*buddy, Ordering::Relaxed);
        }
        self.left.fetch_sub(1, self.rules.left.1);
    }

    fn left(&self) -> usize {
        self.left.load(self.rules.left.0)
    }

    /// `init_deferred`.
    fn claim_one(&self, witness: &Witness) {
        if let Some(nr) = self.claim() {
            self.init_claimed(nr, witness);
        }
    }

    /// A worker: calls `init_deferred` until it returns that no section is left.
    fn work(&self, witness: &Witness) {
        if !self.rules.grows_to_the_end {
            self.grow.store(false, Ordering::Relaxed);
        }
        while let Some(nr) = self.claim() {
            self.init_claimed(nr, witness);
        }
    }

    fn grow_zone(&self, before: usize, witness: &Witness) -> bool {
        if before == 0 || !self.grow.load(Ordering::Relaxed) {
            return false;
        }
        while self.left() == before {
            match self.claim() {
                Some(nr) => self.init_claimed(nr, witness),
                None => thread::yield_now(),
            }
        }
        true
    }

    /// `alloc_buddy_block_in`: checks the watermark without the lock, then takes a buddy block.
    fn alloc_in(&self) -> bool {
        if self.free.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut buddy = self.buddy.lock().unwrap();
        if *buddy == 0 {
            return false;
        }
        *buddy -= 1;
        self.free.store(*buddy, Ordering::Relaxed);
        true
    }

    /// `alloc_from_zones`.
    fn alloc(&self, witness: &Witness) {
        loop {
            let left = self.left();
            if self.alloc_in() {
                return;
            }
            if !self.grow_zone(left, witness) {
                witness.expect(false, FAILED);
                return;
            }
        }
    }

    /// `freeze`: no CPU claims, and no section is being initialised.
    fn freeze(&self) {
        let _claims = self.claims.lock().unwrap();
        while self.left() != SECTIONS - self.next.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    }
}

fn alloc_twice(mm: &Mm, witness: &Witness) {
    mm.alloc(witness);
    mm.alloc(witness);
}

/// The other CPUs run `others`, and this CPU runs `mine`.
fn with_others(witness: &Witness, rules: Rules, others: &[fn(&Mm, &Witness)], mine: fn(&Mm, &Witness)) {
    let mm = Mm::new(rules);
    let spawn = |&run: &fn(&Mm, &Witness)| {
        let (mm, witness) = (mm.clone(), witness.clone());
        thread::spawn(move || run(&mm, &witness))
    };
    let others: Vec<_> = others.iter().map(spawn).collect();
    mine(&mm, witness);
    others.into_iter().for_each(|other| other.join().unwrap());
}

fn worker_and_allocations(witness: &Witness, rules: Rules) {
    with_others(witness, rules, &[Mm::work], alloc_twice);
}

/// S1.5, S1.9.
#[test]
fn no_allocation_fails_and_no_section_is_initialised_twice() {
    holds("worker, allocations", |witness| worker_and_allocations(witness, CORRECT));
    holds("growers", |witness| with_others(witness, CORRECT, &[Mm::alloc], Mm::alloc));
    let three = |witness: &Witness| with_others(witness, CORRECT, &[Mm::work, Mm::alloc], Mm::alloc);
    assert_eq!(explore("worker, growers", 1, true, three), BTreeSet::new());
}

/// S1.9: the next section is chosen under the lock.
#[test]
fn claims_without_the_lock_initialise_twice() {
    const UNLOCKED: Rules = Rules { claims_under_lock: false, ..CORRECT };
    breaks("claims without the lock", TWICE, |witness| {
        with_others(witness, UNLOCKED, &[Mm::claim_one], Mm::claim_one);
    });
}

/// S1.5: Linux has this window since its workers run with interrupts on.
#[test]
fn growing_that_ends_with_the_workers_start_fails_allocations() {
    const WINDOW: Rules = Rules { grows_to_the_end: false, ..CORRECT };
    breaks("growing ends early", FAILED, |witness| worker_and_allocations(witness, WINDOW));
}

/// A CPU that sees the count of deferred sections fall must find the new pages.
#[test]
fn a_count_without_order_fails_allocations() {
    const RELAXED: Rules = Rules { left: (Ordering::Relaxed, Ordering::Relaxed), ..CORRECT };
    breaks("sections counted relaxed", FAILED, |witness| worker_and_allocations(witness, RELAXED));
}

/// S1.6: `check` stops all claims and waits for sections being initialised. No CPU waits for the checker while
/// it holds such a section.
#[test]
fn freezing_neither_deadlocks_nor_fails_allocations() {
    holds("freeze", |witness| {
        with_others(witness, CORRECT, &[alloc_twice], |mm, _| mm.freeze());
    });
}
