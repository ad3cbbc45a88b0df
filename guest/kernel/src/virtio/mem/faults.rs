//! Faults between a virtio-mem driver and its device that a test makes on purpose, as memory management has its own
//! (`tidevm_mm::FaultStep`).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum DriverFault {
    /// The driver believes that a request was never sent, although the device has served it.
    Answer,
    /// The device is not notified of requests.
    Notify,
    /// The device is reset behind the driver's back, before it is notified of requests.
    Device,
}

/// Per fault: the number of chances that pass before the one that it takes, plus one; 0 means that there is none.
static FAULTS: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
/// Faults that acted.
static INJECTED: AtomicU64 = AtomicU64::new(0);

/// Makes the `after`-th chance of `fault` count; 0 is the next one.
pub fn inject(fault: DriverFault, after: u32) {
    FAULTS[fault as usize].store(after.saturating_add(1), Ordering::Relaxed);
}

/// Whether `fault` acts now.
pub fn acts(fault: DriverFault) -> bool {
    let left = &FAULTS[fault as usize];
    let acts = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) == Ok(1);
    INJECTED.fetch_add(acts.into(), Ordering::Relaxed);
    acts
}

/// Number of faults that acted, since boot.
pub fn injected() -> u64 {
    INJECTED.load(Ordering::Relaxed)
}
