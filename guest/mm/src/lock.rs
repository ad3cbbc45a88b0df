//! Spin locks, and the order in which they may be taken.
//!
//! Mirrors Linux `spinlock_t` as far as this kernel needs it: code that calls `mm` is never
//! preempted and interrupt handlers never call it, so no lock saves interrupt flags. Differs from Linux on
//! purpose: locks that Linux makes mutexes (memory hotplug, pcp disable) spin too, because there is
//! nothing to switch to. A CPU that waits for them calls [`Platform::relax`](crate::Platform::relax).
//!
//! `sync/tests/lock.rs` is its model.
//!
//! Invariant: a CPU takes locks in ascending [`Rank`]. Hosted builds (`sim`) check the order on every
//! lock operation.
#![expect(unsafe_code, reason = "a lock is the cell that turns exclusion into &mut")]

use crate::sync::{AtomicBool, Ordering, spin_loop};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// The lock order: a CPU that holds a lock may only take locks of higher rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Rank {
    /// The life cycle of memory blocks (Linux `mem_hotplug_lock`).
    Hotplug,
    /// The limits of per-CPU lists (Linux `pcp_batch_high_lock`).
    PcpDisable,
    /// The sections of boot memory that no CPU has claimed (Linux `pgdat_resize_lock`).
    Deferred,
    /// The lists of one CPU for one zone (Linux `pcp->lock`).
    Pcp,
    /// The free lists, pageblock types and counters of one zone (Linux `zone->lock`).
    Zone,
    /// The table of owners of movable pages.
    Owners,
}

/// A value behind a spin lock.
pub(crate) struct SpinLock<T> {
    locked: AtomicBool,
    rank: Rank,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is only reached through a `Guard`, and `locked` lets one guard exist at a time
// (the Acquire swap in `try_lock` pairs with the Release store in `Guard::drop`), so sharing
// the lock moves `T` between CPUs but never shares it.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub(crate) const fn new(rank: Rank, value: T) -> Self {
        Self { locked: AtomicBool::new(false), rank, value: UnsafeCell::new(value) }
    }

    /// Waits for the lock.
    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.lock_with(spin_loop)
    }

    /// Waits for the lock and calls `relax` in every turn.
    #[inline]
    pub(crate) fn lock_with(&self, relax: impl Fn()) -> Guard<'_, T> {
        order::check(self.rank);
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            // A plain load does not take the cache line away from the CPU that holds the lock.
            while self.locked.load(Ordering::Relaxed) {
                relax();
            }
        }
    }

    /// Waits for the lock while other locks of the same rank are held. Only one function may do so, and it
    /// takes them in one order.
    pub(crate) fn lock_next(&self) -> Guard<'_, T> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            spin_loop();
        }
    }

    /// Reads the value without the lock, as only broken variants of the code do.
    #[cfg(feature = "shuttle")]
    pub(crate) fn peek<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        // SAFETY: shuttle runs one thread at a time and switches only at accesses to atomics. `read` makes
        // none, so it does not meet a `&mut T` that is being written through.
        read(unsafe { &*self.value.get() })
    }

    /// Takes the lock if it is free.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        // Pairs with the Release store in `Guard::drop`.
        if self.locked.swap(true, Ordering::Acquire) {
            return None;
        }
        order::push(self.rank);
        Some(Guard { lock: self })
    }
}

/// The right to the value of a [`SpinLock`]. The lock is released when the guard is dropped.
pub(crate) struct Guard<'l, T> {
    lock: &'l SpinLock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard exists, so `try_lock` set `locked` and nothing has cleared it since. No other
        // guard exists, so every `&mut T` is borrowed from this guard.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` excludes references borrowed from this guard.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        order::pop(self.lock.rank);
        // Pairs with the Acquire swap in `try_lock`.
        self.lock.locked.store(false, Ordering::Release);
    }
}

/// Checks the lock order where threads stand for CPUs.
#[cfg(any(test, feature = "sim"))]
mod order {
    use super::Rank;
    use std::cell::RefCell;
    use std::vec::Vec;

    crate::sync::thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn check(wanted: Rank) {
        HELD.with(|held| {
            if let Some(&highest) = held.borrow().iter().max() {
                assert!(highest < wanted, "lock order: takes {wanted:?} while it holds {highest:?}");
            }
        });
    }

    pub(super) fn push(rank: Rank) {
        HELD.with(|held| held.borrow_mut().push(rank));
    }

    pub(super) fn pop(rank: Rank) {
        // A model checker has no threads any more when it ends a run that panicked.
        if cfg!(any(feature = "shuttle", feature = "loom")) && std::thread::panicking() {
            return;
        }
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            let at = held.iter().rposition(|&r| r == rank).expect("only a lock that is held is released");
            held.remove(at);
        });
    }
}

#[cfg(not(any(test, feature = "sim")))]
mod order {
    use super::Rank;

    #[inline(always)]
    pub(super) fn check(_: Rank) {}
    #[inline(always)]
    pub(super) fn push(_: Rank) {}
    #[inline(always)]
    pub(super) fn pop(_: Rank) {}
}

#[cfg(test)]
mod tests {
    use super::{Rank, SpinLock};

    #[test]
    fn excludes() {
        let lock = SpinLock::new(Rank::Zone, 0u32);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..10_000).for_each(|_| *lock.lock() += 1));
            }
        });
        assert_eq!(*lock.lock(), 20_000);
        let _held = lock.lock();
        assert!(lock.try_lock().is_none());
    }

    #[test]
    #[should_panic(expected = "lock order: takes Pcp while it holds Zone")]
    fn pitfall_16_the_order_is_checked() {
        let (zone, pcp) = (SpinLock::new(Rank::Zone, ()), SpinLock::new(Rank::Pcp, ()));
        let _zone = zone.lock();
        let _pcp = pcp.lock();
    }
}
