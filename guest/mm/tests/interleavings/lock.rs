//! `src/lock.rs`: a spin lock has one holder at a time, and a holder sees the writes of the holder before it.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use crate::{Witness, breaks, holds};

const LOST: &str = "a holder does not see the writes of the holder before it";

struct SpinLock {
    locked: AtomicBool,
    /// Stands for the cell: one holder at a time, so relaxed accesses are enough for it.
    value: AtomicUsize,
    /// The memory orders of `try_lock`'s swap and of the store in `Guard::drop`.
    orders: (Ordering, Ordering),
}

impl SpinLock {
    /// The code's swap on a taken lock rewrites the same value. The model writes nothing there, because loom
    /// could let a later swap read that write as if it followed the unlock.
    fn try_lock(&self) -> bool {
        self.locked.compare_exchange(false, true, self.orders.0, Ordering::Relaxed).is_ok()
    }

    fn unlock(&self) {
        self.locked.store(false, self.orders.1);
    }

    fn lock(&self) {
        // The code waits on a plain load in between. That load decides nothing.
        while !self.try_lock() {
            thread::yield_now();
        }
    }

    fn add_one(&self) {
        let value = self.value.load(Ordering::Relaxed);
        self.value.store(value + 1, Ordering::Relaxed);
    }
}

/// One CPU waits for the lock. Another CPU tries once and does without it.
fn two_holders(witness: &Witness, orders: (Ordering, Ordering)) {
    let lock = Arc::new(SpinLock { locked: AtomicBool::new(false), value: AtomicUsize::new(0), orders });
    let other = {
        let lock = lock.clone();
        thread::spawn(move || {
            let won = lock.try_lock();
            if won {
                lock.add_one();
                lock.unlock();
            }
            usize::from(won)
        })
    };
    lock.lock();
    lock.add_one();
    lock.unlock();
    let expected = 1 + other.join().expect("no panic");
    lock.lock();
    witness.expect(lock.value.load(Ordering::Relaxed) == expected, LOST);
}

#[test]
fn a_lock_excludes() {
    holds("spin lock", |witness| two_holders(witness, (Ordering::Acquire, Ordering::Release)));
}

#[test]
fn a_lock_without_acquire_or_release_loses_updates() {
    breaks("no Release", LOST, |witness| two_holders(witness, (Ordering::Acquire, Ordering::Relaxed)));
    breaks("no Acquire", LOST, |witness| two_holders(witness, (Ordering::Relaxed, Ordering::Release)));
}
