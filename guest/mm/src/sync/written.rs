//! Which pageblocks had a page's state written, so that `check` need not look at all their tails again.
//!
//! Mirrors nothing of Linux. In hosted builds `check` looks at every page, and tests call it after each operation.
//! Most pages did not change in between. A table counts the writes to the struct pages of each pageblock. `check`
//! notes the count at which it found a pageblock right, and looks at its tails again when the count has changed.
//!
//! Pageblocks share the elements of the table. A write to one then only makes `check` look at the others too. No
//! model checker sees the table, because it belongs to the tests and not to the code that they prove.
//!
//! Invariant: whatever writes states of pages, of any machine of the process, calls [`made`] after the write. So a
//! pageblock with the count that was read before it was looked at is as it was, once the writers are done.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::boxed::Box;

/// Elements of the table: a machine for tests has fewer pageblocks.
const ELEMENTS: usize = 4096;
/// Bytes of the struct pages of a pageblock, which are aligned to them.
const BYTES: usize = 32 << 10;

static WRITES: [AtomicU64; ELEMENTS] = [const { AtomicU64::new(0) }; ELEMENTS];

std::thread_local! {
    static SEEN: Box<[Cell<Seen>]> = (0..ELEMENTS).map(|_| Cell::new(Seen::NOTHING)).collect();
}

/// What was right about a pageblock: its place, the writes until then, and as what it was right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The address of its first struct page.
    place: usize,
    writes: u64,
    meaning: u32,
}

impl Seen {
    const NOTHING: Self = Self { place: 0, writes: 0, meaning: 0 };

    /// The pageblock whose first struct page is `first`, as it is now. It is to be looked at with `meaning`.
    pub fn now<T>(first: &T, meaning: u32) -> Self {
        let place = core::ptr::from_ref(first).addr();
        Self { place, writes: WRITES[element(place)].load(SeqCst), meaning }
    }

    /// Whether this thread has noted the same before.
    pub fn is_known(self) -> bool {
        SEEN.with(|seen| seen[element(self.place)].get() == self)
    }

    /// Notes that the pageblock was right.
    pub fn note(self) {
        SEEN.with(|seen| seen[element(self.place)].set(self));
    }
}

/// The element of the pageblock with the struct page at `place`.
fn element(place: usize) -> usize {
    place / BYTES % ELEMENTS
}

/// States of struct pages of the pageblock of `page` were written.
pub fn made<T>(page: &T) {
    WRITES[element(core::ptr::from_ref(page).addr())].fetch_add(1, SeqCst);
}
