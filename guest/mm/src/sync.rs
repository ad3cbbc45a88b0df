//! Atomics, and waiting for another CPU: the only place where this crate depends on the machine's memory model.
//!
//! In a kernel, and in ordinary tests, this is `core::sync::atomic` and nothing else. Two model checkers can take its
//! place, each by a feature:
//!
//! | feature | an access | finds |
//! |---|---|---|
//! | `shuttle` | lets the scheduler choose the next thread, then goes to memory (`sync/shuttle.rs`) | orders of the steps of whole operations |
//! | `loom` | reads or writes loom's own copy of the word (`sync/loom.rs`) | orders of the memory accesses of a few steps, weak ones included |
//!
//! Both are silent until a model begins, so that a machine boots at full speed. The models are `tests/interleavings`
//! (shuttle) and `sync/tests` (loom).
//!
//! Invariant: an atomic has the layout of core's, and any bits that are valid there are valid here. So a memmap can be
//! zeroed memory, whatever the feature.

#[cfg(all(feature = "shuttle", feature = "loom"))]
compile_error!("one model checker at a time: feature shuttle or feature loom");

#[cfg(feature = "loom")]
pub(crate) mod loom;
#[cfg(feature = "shuttle")]
pub(crate) mod shuttle;
#[cfg(any(test, feature = "hosted"))]
pub(crate) mod written;

pub(crate) use core::sync::atomic::Ordering;

#[cfg(feature = "loom")]
pub(crate) use loom::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence, spin_loop, thread_local, yield_now,
};
#[cfg(feature = "shuttle")]
pub(crate) use shuttle::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence, one_step, spin_loop, thread_local, yield_now,
};

/// Runs `body`. A model checker of whole operations takes its accesses for one step, because there are very many of them
/// and no other CPU may depend on one of them alone.
#[cfg(not(feature = "shuttle"))]
#[inline(always)]
pub(crate) fn one_step<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// A word that no model checker sees. It is for arrays that are too large for one, whose user another word that is seen
/// decides.
pub(crate) use core::sync::atomic::AtomicU32 as UnseenU32;

#[cfg(not(any(feature = "shuttle", feature = "loom")))]
pub(crate) use core::hint::spin_loop;
#[cfg(not(any(feature = "shuttle", feature = "loom")))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};
#[cfg(all(any(test, feature = "hosted"), not(any(feature = "shuttle", feature = "loom"))))]
pub(crate) use std::{thread::yield_now, thread_local};

#[cfg(all(test, feature = "loom"))]
mod tests;
