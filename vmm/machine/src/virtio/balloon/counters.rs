//! How much memory drivers reported, and what became of it.
//!
//! The event loop alone writes the counters, other threads read them at any time, and they are not ordered with anything
//! else. So counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use tidevm_abi::Size;

/// Reports of free memory since the VM was first started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportCounts {
    /// Memory that was given back to the host. The same memory may be reported again after it was used.
    pub given_back: Size,
    /// Memory that the host did not take.
    pub failed: Size,
    /// Ranges that were no memory that the guest may use, or not made of pages.
    pub refused: u64,
}

/// The live counters behind [`ReportCounts`].
#[derive(Debug, Default)]
pub(crate) struct ReportCounters {
    given_back: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

impl ReportCounters {
    /// Counts `bytes` that the host took, or did not.
    pub(super) fn count(&self, bytes: u64, taken: bool) {
        let counter = if taken { &self.given_back } else { &self.failed };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a range that was refused.
    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub(crate) fn read(&self) -> ReportCounts {
        ReportCounts {
            given_back: Size(self.given_back.load(Ordering::Relaxed)),
            failed: Size(self.failed.load(Ordering::Relaxed)),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}
