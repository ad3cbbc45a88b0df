//! How a VM is sized, for those who ask.

use std::time::Duration;

use tidevm_abi::{Pressure, Size};
use tidevm_autosize::Bounds;

/// What was decided, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Targets that were larger than the one before.
    pub grows: u64,
    /// Targets that were smaller.
    pub shrinks: u64,
    /// Times that somebody else's target was found.
    pub holds: u64,
    /// Samples of a guest that lacked memory.
    pub pressures: u64,
    /// Questions to the guest.
    pub questions: u64,
}

/// How a VM is sized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The bounds.
    pub bounds: Bounds,
    /// Somebody else's target is in force.
    pub held: bool,
    /// The target, as a total.
    pub target: Size,
    /// Why it was set, as one word; `None` before the first decision.
    pub why: Option<&'static str>,
    /// Boot memory and what is plugged.
    pub size: Size,
    /// The smallest and the largest size since it is sized.
    pub range: (Size, Size),
    /// What the guest said last.
    pub pressure: Option<Pressure>,
    /// What was decided.
    pub counts: Counts,
    /// The time since it is sized.
    pub time: Duration,
    /// The sizes of that time, in bytes times seconds.
    pub byte_seconds: u64,
}
