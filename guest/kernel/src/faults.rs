//! Faults that a test makes on purpose: a step that can fail does fail, once, at the attempt that the test has chosen.
//!
//! Mirrors Linux `lib/fault-inject.c`. Differs on purpose: the attempt is counted and not left to chance, so a test fails
//! the same way each time.
//!
//! Invariant: a fault that acts is counted once, and does not act again.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The faults of `N` steps.
pub struct Faults<const N: usize> {
    /// Per step: the number of attempts that succeed before the one that fails, plus one; 0 means that none fails.
    left: [AtomicU32; N],
    acted: AtomicU64,
}

impl<const N: usize> Faults<N> {
    /// No step fails.
    pub const fn new() -> Self {
        Self { left: [const { AtomicU32::new(0) }; N], acted: AtomicU64::new(0) }
    }

    /// Makes the `after`-th attempt of `step` fail; 0 is the next one.
    pub fn inject(&self, step: usize, after: u32) {
        self.left[step].store(after.saturating_add(1), Ordering::Relaxed);
    }

    /// Whether a later attempt of `step` fails.
    pub fn is_due(&self, step: usize) -> bool {
        self.left[step].load(Ordering::Relaxed) != 0
    }

    /// Whether this attempt of `step` fails.
    pub fn acts(&self, step: usize) -> bool {
        let left =
            self.left[step].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let acts = left == Ok(1);
        if acts {
            self.acted.fetch_add(1, Ordering::Relaxed);
        }
        acts
    }

    /// Number of faults that acted, since boot.
    pub fn acted(&self) -> u64 {
        self.acted.load(Ordering::Relaxed)
    }
}
