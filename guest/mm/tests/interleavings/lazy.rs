//! `src/page_alloc.rs` and `src/free_lists.rs` on a memmap that is all zero: two CPUs take neighbouring pages
//! of one buddy block. Only its head was written before.
//!
//! Must hold (S2.13): every page leaves "never initialised" once, before a CPU owns it, and no page has two
//! owners.
//!
//! Numbers such as S4.15 are those of the claims in `docs/features.md`.

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::{Witness, breaks, holds};

const TWICE: &str = "a page is initialised twice";
const NEVER: &str = "a page is used before it is initialised";
const SHARED: &str = "two CPUs have one page";
const MERGED: &str = "a page in use is merged into a free buddy block";

const UNINIT: usize = 0;
const TAIL: usize = 1;
const ALLOCATED: usize = 2;
/// The head of a free buddy block, by order.
const FREE: [usize; 2] = [3, 4];

#[derive(Clone, Copy)]
struct Rules {
    /// A buddy block is taken off its list under the zone lock.
    takes_under_lock: bool,
    /// A page's new state is written before the zone lock is released.
    hands_out_under_lock: bool,
}

const CORRECT: Rules = Rules { takes_under_lock: true, hands_out_under_lock: true };

struct Page {
    state: AtomicUsize,
    initialised: AtomicUsize,
    holders: AtomicUsize,
}

/// First frames of free buddy blocks, by order. There are two pages, so one buddy block of order 1 or two of
/// order 0.
struct FreeLists([Vec<usize>; 2]);

struct Mm {
    rules: Rules,
    pages: [Page; 2],
    zone: Mutex<()>,
    buddy: Mutex<FreeLists>,
}

impl Mm {
    /// A machine with the free lists `blocks`. A page in state 0 was never written.
    fn new(rules: Rules, states: [usize; 2], blocks: [Vec<usize>; 2]) -> Arc<Self> {
        let page = |state| Page {
            state: AtomicUsize::new(state),
            initialised: AtomicUsize::new(usize::from(state != UNINIT)),
            holders: AtomicUsize::new(0),
        };
        let buddy = Mutex::new(FreeLists(blocks));
        Arc::new(Self { rules, pages: states.map(page), zone: Mutex::new(()), buddy })
    }

    fn set_state(&self, pfn: usize, state: usize) {
        let page = &self.pages[pfn];
        if page.state.swap(state, Ordering::Release) == UNINIT {
            page.initialised.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `rmqueue_smallest`, `split_to`: takes the smallest buddy block and splits it.
    fn take(&self) -> Option<usize> {
        // The lists are read first and changed later: only the zone lock makes one step of both.
        let found = { self.buddy.lock().unwrap().0.iter().position(|list| !list.is_empty())? };
        let pfn = { *self.buddy.lock().unwrap().0[found].last()? };
        let mut buddy = self.buddy.lock().unwrap();
        buddy.0[found].retain(|&first| first != pfn);
        if found == 1 {
            buddy.0[0].push(pfn + 1);
            self.set_state(pfn + 1, FREE[0]);
        }
        Some(pfn)
    }

    /// `Mm::alloc_buddy_block_in`, `ZoneGuard::allocate`.
    fn alloc(&self) -> Option<usize> {
        let lock = self.rules.takes_under_lock.then(|| self.zone.lock().unwrap());
        let pfn = self.take()?;
        if self.rules.hands_out_under_lock {
            self.set_state(pfn, ALLOCATED);
            drop(lock);
        } else {
            drop(lock);
            self.set_state(pfn, ALLOCATED);
        }
        Some(pfn)
    }

    /// `ZoneGuard::free_and_merge`.
    fn free(&self, pfn: usize, witness: &Witness) {
        let _zone = self.zone.lock().unwrap();
        let mut buddy = self.buddy.lock().unwrap();
        let other = pfn ^ 1;
        if self.pages[other].state.load(Ordering::Acquire) == FREE[0] {
            witness.expect(buddy.0[0].contains(&other), MERGED);
            buddy.0[0].retain(|&first| first != other);
            self.set_state(1, TAIL);
            buddy.0[1].push(0);
            self.set_state(0, FREE[1]);
        } else {
            buddy.0[0].push(pfn);
            self.set_state(pfn, FREE[0]);
        }
    }

    /// The holder of a page reads its state.
    fn hold(&self, pfn: usize, witness: &Witness) {
        let page = &self.pages[pfn];
        witness.expect(page.state.load(Ordering::Acquire) != UNINIT, NEVER);
        witness.expect(page.holders.fetch_add(1, Ordering::Relaxed) == 0, SHARED);
    }
}

fn two_take_neighbours(witness: &Witness, rules: Rules) {
    let mm = Mm::new(rules, [FREE[1], UNINIT], [vec![], vec![0]]);
    let other = thread::spawn({
        let (mm, witness) = (mm.clone(), witness.clone());
        move || mm.alloc().map(|pfn| mm.hold(pfn, &witness))
    });
    let mine = mm.alloc().map(|pfn| mm.hold(pfn, witness));
    let theirs = other.join().unwrap();
    witness.expect(mine.is_some() && theirs.is_some(), "each CPU gets a page");
    for page in &mm.pages {
        witness.expect(page.initialised.load(Ordering::Relaxed) == 1, TWICE);
    }
}

/// S2.13.
#[test]
fn neighbours_of_a_zeroed_buddy_block_are_initialised_once_each() {
    holds("neighbours", |witness| two_take_neighbours(witness, CORRECT));
    const UNLOCKED: Rules = Rules { takes_under_lock: false, ..CORRECT };
    breaks("neighbours without the zone lock", SHARED, |witness| two_take_neighbours(witness, UNLOCKED));
}

/// CPU 0 allocates page 0 while page 1, its buddy, is freed.
fn one_takes_one_frees(witness: &Witness, rules: Rules) {
    let mm = Mm::new(rules, [FREE[0], ALLOCATED], [vec![0], vec![]]);
    let other = thread::spawn({
        let (mm, witness) = (mm.clone(), witness.clone());
        move || mm.free(1, &witness)
    });
    if let Some(pfn) = mm.alloc() {
        mm.hold(pfn, witness);
    }
    other.join().unwrap();
}

/// The rule of `ZoneGuard::allocate`: a CPU that takes the lock next must not take the page for a free one.
#[test]
fn a_page_is_handed_out_before_the_lock_is_released() {
    holds("hand out", |witness| one_takes_one_frees(witness, CORRECT));
    const LATE: Rules = Rules { hands_out_under_lock: false, ..CORRECT };
    breaks("handed out late", MERGED, |witness| one_takes_one_frees(witness, LATE));
}
