//! The grace period: a memmap is unmapped after its last reader.
//!
//! The section and its look-up are this crate's. The wait is the guest's `job::synchronize`, and the reader's passes are
//! those of `job::run`: both are repeated here step by step, because the kernel cannot run on a host. A change of those
//! needs the same change here. Pitfall 13 of `docs/pitfalls.md`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::atomic::fence;

use crate::addr::SectionNr;
use crate::lock::Locks;
use crate::sparse::{SectionOwner, SectionState, Sparse};
use crate::sync::Ordering::{Relaxed, SeqCst};
use crate::sync::tests::{fixed, in_every_execution, machine};
use crate::sync::{AtomicBool, AtomicU32, yield_now};

const NR: SectionNr = SectionNr::new(1);
const PASSES: usize = 2;

struct Owner;

impl SectionOwner for Owner {
    const LOCKS: Locks = Locks::ANY;
}

/// The steps of the guest that this relies on.
#[derive(Clone, Copy)]
struct Rules {
    synchronizes: bool,
    /// Both sides of `synchronize` have a fence.
    fences: bool,
}

/// The reading CPU.
struct Reader {
    passes: AtomicU32,
    /// Whether it has no more passes to do.
    idle: AtomicBool,
}

fn remove(sparse: &Sparse, mapped: &AtomicBool, reader: &Reader, rules: Rules) {
    sparse.set_state(NR, SectionState::Absent, &Owner);
    if rules.synchronizes {
        if rules.fences {
            fence(SeqCst);
        }
        let seen = reader.passes.load(SeqCst);
        while !reader.idle.load(SeqCst) && reader.passes.load(SeqCst) == seen {
            yield_now();
        }
    }
    mapped.store(false, Relaxed);
}

fn read(sparse: &Sparse, mapped: &AtomicBool, reader: &Reader, rules: Rules) {
    for _ in 0..PASSES {
        reader.passes.fetch_add(1, SeqCst);
        if rules.fences {
            fence(SeqCst);
        }
        if sparse.pages(NR).is_some() {
            assert!(mapped.load(Relaxed), "a page is read that is not mapped");
        }
    }
    reader.idle.store(true, SeqCst);
}

fn a_section_is_removed(rules: Rules) {
    let sparse = &machine().sparse;
    sparse.set_state(NR, SectionState::Present, &Owner);
    sparse.set_state(NR, SectionState::Initialised, &Owner);
    let mapped = fixed(AtomicBool::new(true));
    let reader = fixed(Reader { passes: AtomicU32::new(0), idle: AtomicBool::new(false) });
    in_every_execution(
        move || read(sparse, mapped, reader, rules),
        move || remove(sparse, mapped, reader, rules),
    );
}

#[test]
fn a_section_is_unmapped_after_its_last_reader() {
    a_section_is_removed(Rules { synchronizes: true, fences: true });
}

#[test]
fn without_the_wait_or_its_fences_a_reader_is_met() {
    for rules in [Rules { synchronizes: false, fences: true }, Rules { synchronizes: true, fences: false }] {
        let found = catch_unwind(AssertUnwindSafe(|| a_section_is_removed(rules)));
        assert!(found.is_err(), "no execution shows a page that is read and not mapped");
    }
}
