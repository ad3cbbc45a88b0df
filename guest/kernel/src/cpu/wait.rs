//! Waiting for other CPUs: with a deadline, and counted.
//!
//! Mirrors Linux `smp_cond_load_acquire` in `smp_call_function`. It differs on purpose: each wait has a deadline,
//! and its end is a panic that says what did not happen.
//!
//! Invariant: the count of a CPU rises while it waits here, and at no other time. So a CPU that is held (see
//! `cpu/window.rs`) sees that another one waits for it.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::cpu;
use crate::cpu::time::Instant;

/// Waits until `done` is true, which other CPUs make so.
///
/// # Panics
/// With `what`, when it is not true within `millis` milliseconds. A host that shares its CPUs, or that is suspended,
/// may keep a CPU from running for long.
pub fn until(millis: u64, what: fmt::Arguments<'_>, done: impl Fn() -> bool) {
    let rounds = &cpu::area(cpu::this()).waited;
    let deadline = Instant::in_millis(millis);
    while !done() {
        assert!(!deadline.has_passed(), "{what} within {millis} ms");
        rounds.fetch_add(1, Ordering::SeqCst);
        core::hint::spin_loop();
    }
}

/// Rounds that CPU `index` has waited since boot.
pub fn rounds(index: usize) -> u64 {
    cpu::area(index).waited.load(Ordering::SeqCst)
}
