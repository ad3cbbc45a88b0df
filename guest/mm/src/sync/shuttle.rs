//! Atomics of core's, each access of which is a point where shuttle's scheduler may choose another thread.
//!
//! Shuttle runs its threads one at a time, so it explores sequentially consistent executions only: the memory
//! orderings count for nothing here. Differs from shuttle's own atomics on purpose: those do not lie in plain
//! memory, as the memmap's must.
//!
//! Invariant: outside of [`scheduled`] nothing here calls shuttle.

use core::sync::atomic::{self as core_atomic, Ordering};
use std::cell::Cell;

std::thread_local! {
    /// Whether accesses are points. Shuttle runs all threads of an execution on one thread of the host.
    static SCHEDULED: Cell<bool> = const { Cell::new(false) };
}

/// Makes accesses points while `body` runs. An earlier call that ended in a panic may have left them so; other
/// threads' accesses in `body` are points too.
pub(crate) fn scheduled<R>(body: impl FnOnce() -> R) -> R {
    SCHEDULED.set(true);
    let result = body();
    SCHEDULED.set(false);
    result
}

/// Makes accesses silent again after a schedule that ended in a panic.
pub(crate) fn reset() {
    SCHEDULED.set(false);
}

/// Lets the scheduler choose. Silent during a panic: the scheduler cannot be called then.
fn point() {
    if SCHEDULED.get() && !std::thread::panicking() {
        shuttle::thread::sleep(core::time::Duration::ZERO);
    }
}

pub(crate) use shuttle::thread_local;

/// Runs `body`, which waits for nothing, as one step: its accesses are one point, before the first of them.
pub(crate) fn one_step<R>(body: impl FnOnce() -> R) -> R {
    point();
    alone(body)
}

/// Runs `body` while no other thread of the model is left, or none may run: no access is a point.
pub(crate) fn alone<R>(body: impl FnOnce() -> R) -> R {
    let scheduled = SCHEDULED.replace(false);
    let result = body();
    SCHEDULED.set(scheduled);
    result
}

/// A fence. Shuttle's executions are sequentially consistent, so it orders nothing more, and is no point.
pub(crate) fn fence(order: Ordering) {
    core_atomic::fence(order);
}

/// One turn of waiting: another thread should run.
pub(crate) fn spin_loop() {
    if SCHEDULED.get() && !std::thread::panicking() {
        shuttle::thread::yield_now();
    }
}

pub(crate) use spin_loop as yield_now;

macro_rules! atomics {
    ($($name:ident $value:ty: $($operation:ident)*;)*) => { $(
        #[repr(transparent)]
        pub(crate) struct $name(core_atomic::$name);

        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                Self(core_atomic::$name::new(value))
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $value {
                point();
                self.0.load(order)
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                point();
                self.0.store(value, order);
            }

            $(atomics! { @ $operation $value })*
        }
    )* };
    (@ compare_exchange $value:ty) => {
        pub(crate) fn compare_exchange(
            &self, now: $value, then: $value, success: Ordering, failure: Ordering,
        ) -> Result<$value, $value> {
            point();
            self.0.compare_exchange(now, then, success, failure)
        }

        pub(crate) fn compare_exchange_weak(
            &self, now: $value, then: $value, success: Ordering, failure: Ordering,
        ) -> Result<$value, $value> {
            self.compare_exchange(now, then, success, failure)
        }
    };
    (@ fetch_update $value:ty) => {
        pub(crate) fn fetch_update(
            &self, success: Ordering, failure: Ordering, mut update: impl FnMut($value) -> Option<$value>,
        ) -> Result<$value, $value> {
            let mut now = self.load(failure);
            while let Some(then) = update(now) {
                point();
                match self.0.compare_exchange(now, then, success, failure) {
                    Ok(before) => return Ok(before),
                    Err(other) => now = other,
                }
            }
            Err(now)
        }
    };
    (@ $operation:ident $value:ty) => {
        pub(crate) fn $operation(&self, value: $value, order: Ordering) -> $value {
            point();
            self.0.$operation(value, order)
        }
    };
}

atomics! {
    AtomicBool bool: swap;
    AtomicU8 u8: fetch_max;
    AtomicU32 u32: fetch_add fetch_sub fetch_max fetch_update;
    AtomicU64 u64: fetch_add fetch_sub fetch_max fetch_or fetch_update compare_exchange;
}
