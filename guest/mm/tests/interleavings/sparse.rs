//! `src/sparse.rs`: a section's pages are read only while its memmap is mapped and initialised.
//!
//! One CPU initialises the pages of a memory block and removes them again (`online`, `remove_memory`). Another
//! CPU looks up a page in each pass of its job loop, as `migrate_range` and `pfn_to_page` do (pitfall 13 of
//! `docs/pitfalls.md`). The wait in between is the guest's `job::synchronize`. Must hold: a CPU that reads
//! `Initialised` reads initialised pages (for device memory too: a reader never finds only a part of them), and
//! no page is unmapped while a CPU reads it.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::thread;

use crate::{Witness, breaks, holds};

const GARBAGE: &str = "a page is read that is not initialised";
const FAULT: &str = "a page is read that is not mapped";

const PRESENT: usize = 1;
const INITIALISED: usize = 2;
const PASSES: usize = 2;

#[derive(Clone, Copy)]
struct Rules {
    /// The state is written with Release, after the pages.
    publishes_last: bool,
    synchronizes: bool,
    /// Both sides of `synchronize` have a fence.
    fences: bool,
}

const CORRECT: Rules = Rules { publishes_last: true, synchronizes: true, fences: true };

struct Model {
    rules: Rules,
    state: AtomicUsize,
    pages: [AtomicUsize; 2],
    mapped: AtomicBool,
    /// The passes of the reading CPU.
    passes: AtomicUsize,
    /// Whether the reading CPU has no more passes to do.
    idle: AtomicBool,
}

impl Model {
    fn new(rules: Rules, state: usize) -> Arc<Self> {
        let page = if state == INITIALISED { 1 } else { 0 };
        Arc::new(Self {
            rules,
            state: AtomicUsize::new(state),
            pages: [page; 2].map(AtomicUsize::new),
            mapped: AtomicBool::new(true),
            passes: AtomicUsize::new(0),
            idle: AtomicBool::new(false),
        })
    }

    /// `init_section`, `set_state`.
    fn initialise(&self) {
        if self.rules.publishes_last {
            self.pages.iter().for_each(|page| page.store(1, Ordering::Relaxed));
            self.state.store(INITIALISED, Ordering::Release);
        } else {
            self.state.store(INITIALISED, Ordering::Release);
            self.pages.iter().for_each(|page| page.store(1, Ordering::Relaxed));
        }
    }

    /// `remove_memory`.
    fn remove(&self) {
        self.state.store(PRESENT, Ordering::Release);
        if self.rules.synchronizes {
            self.synchronize();
        }
        self.mapped.store(false, Ordering::Release);
    }

    /// `job::synchronize`.
    fn synchronize(&self) {
        if self.rules.fences {
            fence(Ordering::SeqCst);
        }
        let seen = self.passes.load(Ordering::SeqCst);
        while !self.idle.load(Ordering::SeqCst) && self.passes.load(Ordering::SeqCst) == seen {
            thread::yield_now();
        }
    }

    /// `job::run`: a few passes, then no more work.
    fn run(&self, witness: &Witness) {
        for _ in 0..PASSES {
            self.passes.fetch_add(1, Ordering::SeqCst);
            if self.rules.fences {
                fence(Ordering::SeqCst);
            }
            self.look(witness);
        }
        self.idle.store(true, Ordering::SeqCst);
    }

    /// `Sparse::page`, and a caller that reads the page.
    fn look(&self, witness: &Witness) {
        if self.state.load(Ordering::Acquire) < INITIALISED {
            return;
        }
        for page in &self.pages {
            witness.expect(page.load(Ordering::Relaxed) == 1, GARBAGE);
        }
        witness.expect(self.mapped.load(Ordering::Relaxed), FAULT);
    }
}

fn with_a_reader(witness: &Witness, model: &Arc<Model>, writer: fn(&Model)) {
    let reader = thread::spawn({
        let (model, witness) = (model.clone(), witness.clone());
        move || model.run(&witness)
    });
    writer(model);
    reader.join().unwrap();
}

fn a_section_is_published(witness: &Witness, rules: Rules) {
    with_a_reader(witness, &Model::new(rules, PRESENT), Model::initialise);
}

fn a_section_is_removed(witness: &Witness, rules: Rules) {
    with_a_reader(witness, &Model::new(rules, INITIALISED), Model::remove);
}

/// Published last: pitfall 17, S5.8, S5.15.
#[test]
fn a_section_is_published_with_its_pages() {
    holds("publish", |witness| a_section_is_published(witness, CORRECT));
    const EARLY: Rules = Rules { publishes_last: false, ..CORRECT };
    breaks("published first", GARBAGE, |witness| a_section_is_published(witness, EARLY));
}

/// Pitfall 13.
#[test]
fn a_section_is_unmapped_after_its_last_reader() {
    holds("unpublish", |witness| a_section_is_removed(witness, CORRECT));
    const AT_ONCE: Rules = Rules { synchronizes: false, ..CORRECT };
    breaks("unmapped at once", FAULT, |witness| a_section_is_removed(witness, AT_ONCE));
    const NO_FENCE: Rules = Rules { fences: false, ..CORRECT };
    breaks("no fences", FAULT, |witness| a_section_is_removed(witness, NO_FENCE));
}
