//! Spin locks, and the order in which they may be taken.
//!
//! Mirrors Linux `spinlock_t` as far as this kernel needs it. A lock saves no interrupt flags: `irq` does, before it is
//! taken. Differs from Linux on purpose: the lock of memory hotplug, a mutex in Linux, spins too, because there is nothing to switch to. A CPU that
//! waits for it calls [`Platform::relax`](crate::Platform::relax).
//!
//! `sync/tests/lock.rs` is its model.
//!
//! Invariant: a CPU takes locks in ascending [`Rank`]. Hosted builds check the order on every
//! lock operation, and check a [`Locks`] wherever one is stated. They know whether interrupts of the CPU are off too.
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
    /// The memory that is deferred and no CPU has claimed (Linux `pgdat_resize_lock`).
    Deferred,
    /// The free lists, pageblock types and counters of one zone (Linux `zone->lock`).
    Zone,
    /// The table of owners of movable pages.
    Owners,
}

/// The locks that a function may be called with. It is stated where the code cannot show it by a guard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Locks {
    /// The CPU holds a lock of this rank.
    must: Option<Rank>,
    /// It holds no lock of a higher rank; `None` when it holds no lock at all.
    highest: Option<Rank>,
}

impl Locks {
    /// No lock is held.
    pub(crate) const NONE: Self = Self { must: None, highest: None };
    /// Any locks are held.
    pub(crate) const ANY: Self = Self::up_to(Rank::Owners);

    /// Any locks up to `highest`.
    pub(crate) const fn up_to(highest: Rank) -> Self {
        Self { must: None, highest: Some(highest) }
    }

    /// A lock of rank `must`, and any others up to `highest`.
    pub(crate) const fn with(must: Rank, highest: Rank) -> Self {
        Self { must: Some(must), highest: Some(highest) }
    }

    /// Checks in hosted builds that this CPU holds such locks; `call` is what it calls.
    #[inline]
    #[track_caller]
    pub(crate) fn assert(self, call: &str) {
        order::assert_held(self, call);
    }
}

#[cfg(test)]
pub(crate) use order::irqs_are_off;
pub(crate) use order::{assert_irq_off, irq_restored, irq_saved};

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
#[cfg(any(test, feature = "hosted"))]
mod order {
    use super::{Locks, Rank};
    use std::cell::{Cell, RefCell};
    use std::vec::Vec;

    crate::sync::thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    // How often interrupts were turned off and not on again.
    crate::sync::thread_local! {
        static IRQ_OFF: Cell<u32> = const { Cell::new(0) };
    }

    pub(crate) fn irq_saved() {
        IRQ_OFF.with(|depth| depth.set(depth.get() + 1));
    }

    pub(crate) fn irq_restored() {
        if is_unwinding() {
            return;
        }
        let depth = IRQ_OFF.with(Cell::get);
        IRQ_OFF.with(|cell| cell.set(depth.checked_sub(1).expect("only what was turned off is turned on")));
    }

    /// Whether interrupts of this CPU are off.
    pub(crate) fn irqs_are_off() -> bool {
        IRQ_OFF.with(Cell::get) > 0
    }

    /// Checks that interrupts of this CPU are off; `what` is what it uses.
    #[track_caller]
    pub(crate) fn assert_irq_off(what: &str) {
        assert!(is_unwinding() || irqs_are_off(), "{what} is used with interrupts on");
    }

    pub(super) fn check(wanted: Rank) {
        HELD.with(|held| {
            if let Some(&highest) = held.borrow().iter().max() {
                assert!(highest < wanted, "lock order: takes {wanted:?} while it holds {highest:?}");
            }
        });
    }

    #[track_caller]
    pub(super) fn assert_held(locks: Locks, call: &str) {
        // See `pop`.
        if is_unwinding() {
            return;
        }
        HELD.with(|held| {
            let held = held.borrow();
            let is_held = locks.must.is_none_or(|must| held.contains(&must));
            assert!(is_held, "{call} needs {:?}, and the locks held are {held:?}", locks.must);
            // `None` is below every rank.
            let is_low = held.iter().max() <= locks.highest.as_ref();
            assert!(is_low, "{call} allows locks up to {:?}, and the locks held are {held:?}", locks.highest);
        });
    }

    /// A model checker has no threads any more when it ends a run that panicked.
    fn is_unwinding() -> bool {
        cfg!(any(feature = "shuttle", feature = "loom")) && std::thread::panicking()
    }

    pub(super) fn push(rank: Rank) {
        HELD.with(|held| held.borrow_mut().push(rank));
    }

    pub(super) fn pop(rank: Rank) {
        if is_unwinding() {
            return;
        }
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            let at = held.iter().rposition(|&r| r == rank).expect("only a lock that is held is released");
            held.remove(at);
        });
    }
}

#[cfg(not(any(test, feature = "hosted")))]
mod order {
    use super::{Locks, Rank};

    #[inline(always)]
    pub(super) fn check(_: Rank) {}
    #[inline(always)]
    pub(super) fn assert_held(Locks { must, highest }: Locks, _: &str) {
        _ = (must, highest);
    }
    #[inline(always)]
    pub(super) fn push(_: Rank) {}
    #[inline(always)]
    pub(super) fn pop(_: Rank) {}
    #[inline(always)]
    pub(crate) fn irq_saved() {}
    #[inline(always)]
    pub(crate) fn irq_restored() {}
    #[inline(always)]
    pub(crate) fn assert_irq_off(_: &str) {}
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::string::String;

    use super::{Locks, Rank, SpinLock};

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
    #[should_panic(expected = "lock order: takes Deferred while it holds Zone")]
    fn pitfall_16_the_order_is_checked() {
        let (zone, deferred) = (SpinLock::new(Rank::Zone, ()), SpinLock::new(Rank::Deferred, ()));
        let _zone = zone.lock();
        let _deferred = deferred.lock();
    }

    #[test]
    fn the_locks_of_a_call_are_checked() {
        let refused = |locks: Locks| {
            let panic = catch_unwind(|| locks.assert("a call")).err()?;
            panic.downcast_ref::<String>().cloned()
        };
        let (hotplug, zone) = (SpinLock::new(Rank::Hotplug, ()), SpinLock::new(Rank::Zone, ()));
        let only_hotplug = Locks::with(Rank::Hotplug, Rank::Hotplug);
        assert_eq!([Locks::NONE, Locks::ANY, Locks::up_to(Rank::Hotplug)].map(refused), [None, None, None]);
        let none = "a call needs Some(Hotplug), and the locks held are []";
        assert_eq!(refused(only_hotplug).as_deref(), Some(none));
        let held = hotplug.lock();
        assert_eq!([only_hotplug, Locks::ANY, Locks::up_to(Rank::Hotplug)].map(refused), [None, None, None]);
        let one = "a call allows locks up to None, and the locks held are [Hotplug]";
        assert_eq!(refused(Locks::NONE).as_deref(), Some(one));
        let _zone = zone.lock();
        let two = "a call allows locks up to Some(Hotplug), and the locks held are [Hotplug, Zone]";
        assert_eq!(refused(only_hotplug).as_deref(), Some(two));
        assert_eq!(refused(Locks::with(Rank::Hotplug, Rank::Zone)), None);
        drop(held);
        let lost = "a call needs Some(Hotplug), and the locks held are [Zone]";
        assert_eq!(refused(Locks::with(Rank::Hotplug, Rank::Zone)).as_deref(), Some(lost));
    }
}
