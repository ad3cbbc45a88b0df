//! What is known of a virtio-balloon device and of its guest's memory.
//!
//! Mirrors the statistics of virtio 1.3, section 5.5.6.3. A guest chooses which of them it gives.

use std::time::Instant;

/// A virtio-balloon device and the last statistics of its driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStatus {
    /// A driver runs the device (`DRIVER_OK`).
    pub driver: bool,
    /// The driver reports free memory.
    pub reporting: bool,
    /// The driver gives statistics.
    pub statistics: bool,
    /// How often statistics came since the VM was first started.
    pub updates: u64,
    /// The last statistics of the driver that runs the device.
    pub stats: Option<BalloonStats>,
}

impl BalloonStatus {
    /// The device after a reset of the machine, as it was before.
    pub(crate) fn restarted(self) -> Self {
        Self { updates: self.updates, ..Self::default() }
    }
}

/// What a guest says about its memory. Memory is in bytes; the other numbers count from the guest's start. A guest may
/// leave each of them out, and may say anything: nothing here is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonStats {
    /// When they came, on the clock of [`crate::VmHandle::now`].
    pub at: Instant,
    /// Bytes swapped in.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed disk I/O.
    pub major_faults: Option<u64>,
    /// Page faults that needed none.
    pub minor_faults: Option<u64>,
    /// Bytes that are not used for anything (Linux `MemFree`).
    pub free: Option<u64>,
    /// Bytes that the guest has (Linux `MemTotal`).
    pub total: Option<u64>,
    /// Bytes that can be had without swapping (Linux `MemAvailable`).
    pub available: Option<u64>,
    /// Bytes of caches that can be dropped.
    pub caches: Option<u64>,
    /// Huge pages that were allocated.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be allocated.
    pub hugetlb_failures: Option<u64>,
    /// Processes that the guest killed for lack of memory.
    pub oom_kills: Option<u64>,
    /// Allocations that had to wait for memory to be reclaimed.
    pub alloc_stalls: Option<u64>,
    /// Pages scanned by background reclaim.
    pub async_scans: Option<u64>,
    /// Pages scanned by direct reclaim.
    pub direct_scans: Option<u64>,
    /// Pages reclaimed in the background.
    pub async_reclaims: Option<u64>,
    /// Pages reclaimed by the tasks that needed them.
    pub direct_reclaims: Option<u64>,
}

impl BalloonStats {
    /// No statistics, which came at `at`.
    #[must_use]
    pub const fn none(at: Instant) -> Self {
        Self {
            at,
            swap_in: None,
            swap_out: None,
            major_faults: None,
            minor_faults: None,
            free: None,
            total: None,
            available: None,
            caches: None,
            hugetlb_allocations: None,
            hugetlb_failures: None,
            oom_kills: None,
            alloc_stalls: None,
            async_scans: None,
            direct_scans: None,
            async_reclaims: None,
            direct_reclaims: None,
        }
    }
}
