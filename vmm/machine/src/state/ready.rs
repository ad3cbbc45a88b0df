//! What the guest says when it is up.

use std::time::Duration;

/// The guest's message that it is up: all its CPUs run and all its drivers are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// CPUs that run.
    pub cpus: u32,
    /// virtio-mem devices that the guest found.
    pub mem_devices: u32,
    /// Time from [`crate::Vm::start`] or from the last reset to the message.
    pub after: Duration,
}
