//! How often vCPUs left the guest, and for which reasons.

use std::iter::Sum;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often a vCPU left the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// Port reads and writes.
    pub io: u64,
    /// Reads and writes of device registers in memory space.
    pub mmio: u64,
    /// Accesses to addresses without a device.
    pub stray: u64,
    /// Interruptions by a signal.
    pub interrupted: u64,
    /// All other exits.
    pub other: u64,
}

/// The exits of all vCPUs together.
impl Sum for ExitCounts {
    fn sum<I: Iterator<Item = Self>>(vcpus: I) -> Self {
        vcpus.fold(Self::default(), |sum, vcpu| Self {
            io: sum.io + vcpu.io,
            mmio: sum.mmio + vcpu.mmio,
            stray: sum.stray + vcpu.stray,
            interrupted: sum.interrupted + vcpu.interrupted,
            other: sum.other + vcpu.other,
        })
    }
}

/// The live counters behind [`ExitCounts`]. Only the vCPU's own thread writes them. Other threads may read
/// them at any time; the counters are not ordered with anything else.
#[derive(Debug, Default)]
pub(super) struct ExitCounters {
    pub(super) io: AtomicU64,
    pub(super) mmio: AtomicU64,
    pub(super) stray: AtomicU64,
    pub(super) interrupted: AtomicU64,
    pub(super) other: AtomicU64,
}

impl ExitCounters {
    /// The counts now.
    pub(super) fn read(&self) -> ExitCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitCounts {
            io: read(&self.io),
            mmio: read(&self.mmio),
            stray: read(&self.stray),
            interrupted: read(&self.interrupted),
            other: read(&self.other),
        }
    }
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
