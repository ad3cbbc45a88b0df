//! How much memory the guest has left, and when it says so by itself, as records.
//!
//! Takes the place of Linux's pressure stall information, with its triggers. Differs on purpose: the VMM sets the levels,
//! because they follow from the size that it means the guest to have, and each level is told once. So a guest whose memory
//! stays between the levels says nothing, and an idle one stays idle.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::Size;

/// What the guest shall watch, until the next [`Op::Watch`](crate::Op::Watch).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Tell once when less than this is available, or an allocation that memory of a device could serve has failed since.
    pub below: Size,
    /// Tell once when this or more is available; `None` never.
    pub above: Option<Size>,
    /// How long an allocation of a workload waits for memory, in milliseconds, before it fails. Only allocations wait that
    /// memory of a device could serve.
    pub patience_millis: u32,
    /// The most memory that the guest can get, boot memory included: a workload may ask for as much.
    pub most: Size,
}

impl Watch {
    /// Nothing is told, and nothing waits.
    pub const NOTHING: Self = Self { below: Size(0), above: None, patience_millis: 0, most: Size(0) };
}

/// How much memory the guest has left: the answer to [`Op::Watch`](crate::Op::Watch), and
/// [`Report::Pressure`](crate::Report::Pressure).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Memory that movable pages can take before a zone is at its high watermark and its reserve.
    pub available: Size,
    /// That is less than [`Watch::below`], or an allocation has failed since.
    pub short: bool,
    /// Workloads that wait for memory now.
    pub waiting: u32,
    /// Allocations that had to wait, since boot.
    pub waited: u64,
    /// Those of them that found no memory in time.
    pub gave_up: u64,
    /// The longest wait since boot, in microseconds.
    pub longest_micros: u64,
    /// Requests for movable pages that no zone could serve, since boot. Each wait begins with one.
    pub failed: u64,
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { available, waiting, waited, longest_micros, .. } = self;
        write!(
            f,
            "{available} available, {waiting} wait for memory; {waited} have waited, at most {longest_micros} us"
        )
    }
}
