//! Faults between a virtio-mem driver and its device that a test makes on purpose, as memory management has its own
//! (`tidevm_mm::FaultStep`).

use crate::faults::Faults;

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

static FAULTS: Faults<3> = Faults::new();

/// Makes the `after`-th chance of `fault` count; 0 is the next one.
pub fn inject(fault: DriverFault, after: u32) {
    FAULTS.inject(fault as usize, after);
}

/// Whether `fault` acts now.
pub fn acts(fault: DriverFault) -> bool {
    FAULTS.acts(fault as usize)
}

/// Number of faults that acted, since boot.
pub fn injected() -> u64 {
    FAULTS.acted()
}
