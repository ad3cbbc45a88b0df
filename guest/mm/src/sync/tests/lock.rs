//! `lock`: a spin lock has one holder at a time, and a holder sees the writes of the holder before it.

use crate::lock::{Rank, SpinLock};
use crate::sync::tests::{fixed, model};
use crate::sync::{AtomicU32, Ordering::Relaxed};

fn add_one(value: &AtomicU32) {
    value.store(value.load(Relaxed) + 1, Relaxed);
}

/// One thread waits for the lock. Another thread tries once and does without it.
#[test]
fn a_lock_excludes_and_publishes() {
    let lock = fixed(SpinLock::new(Rank::Zone, AtomicU32::new(0)));
    model(move || {
        let other = loom::thread::spawn(move || {
            let held = lock.try_lock();
            held.as_ref().map(|value| add_one(value)).is_some()
        });
        add_one(&lock.lock());
        let expected = 1 + u32::from(other.join().expect("it ends"));
        assert_eq!(
            lock.lock().load(Relaxed),
            expected,
            "a holder does not see the writes of the holder before it"
        );
    });
}

/// Two threads wait for the lock.
#[test]
fn waiting_for_a_lock_excludes_and_publishes() {
    let lock = fixed(SpinLock::new(Rank::Zone, AtomicU32::new(0)));
    model(move || {
        let other = loom::thread::spawn(move || add_one(&lock.lock()));
        add_one(&lock.lock());
        other.join().expect("it ends");
        assert_eq!(lock.lock().load(Relaxed), 2, "a holder does not see the writes of the holder before it");
    });
}
