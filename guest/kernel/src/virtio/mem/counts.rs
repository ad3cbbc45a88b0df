//! What the virtio-mem drivers count since boot, all devices together: the numbers of `stats`.
//!
//! Linux's driver logs such events at best.

use core::sync::atomic::{AtomicU64, Ordering};

/// A number that rises.
pub struct Count(AtomicU64);

/// See [`tidevm_abi::Stats::driver_mismatches`].
pub static MISMATCHES: Count = Count(AtomicU64::new(0));
/// See [`tidevm_abi::Stats::driver_errors`].
pub static ERRORS: Count = Count(AtomicU64::new(0));
/// See [`tidevm_abi::Stats::driver_overdue`].
pub static OVERDUE: Count = Count(AtomicU64::new(0));
/// See [`tidevm_abi::Stats::driver_resets`].
pub static RESETS: Count = Count(AtomicU64::new(0));

impl Count {
    /// Counts `more` events.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The number of events so far.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
