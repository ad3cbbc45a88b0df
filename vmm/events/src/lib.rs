//! The lines of `tidevm run --json`, as types: one JSON object per line, for the writer and for every reader.
//!
//! A session is a `start`, a `ready` once the guest is up, a `step` after each step with `sample`s between them, and
//! an `end`. `docs/session.schema.json` says the same to programs in other languages, and tests hold the output of real
//! sessions against it. Sizes are bytes, counters of zones and memmap are pages, times are seconds.
//!
//! A reader ignores keys that it does not know. A change that would mislead a reader raises [`FORMAT_VERSION`].
//!
//! Invariant: what is written can be read back, and is equal.

mod end;
mod read;
mod sampled;
mod start;
mod step;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use end::{End, Exits, Outcome, Vcpu, VcpuDetails};
pub use read::{MAX_LINE, ReadError, Reader, Remedy};
pub use sampled::{Answers, Block, Blocks, Boot, Counters, Device, Guest, Node, Requests, Sampled};
pub use start::{Kvm, Machine, Region, Start};
pub use step::{Ready, Step, StepResult};

/// The version of the format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// A line: what happened, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// Seconds since the session began, on a clock that stands still while the guest or tidevm is stopped.
    pub at_seconds: f64,
    /// The wall clock: milliseconds since 1970.
    pub unix_ms: u64,
}

impl Line {
    /// A line about now, `at` after the start of the session.
    #[must_use]
    pub fn now(at: Duration, event: Event) -> Self {
        // A clock that was never set shows 1970.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Self { event, at_seconds: at.as_secs_f64(), unix_ms }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// tidevm was called. Always the first line.
    Start(Box<Start>),
    /// The guest is up.
    Ready(Box<Ready>),
    /// A step was run.
    Step(Box<Step>),
    /// Something changed within a step. At most ten a second.
    Sample(Box<Sampled>),
    /// The session is over. Always the last line.
    End(Box<End>),
}

#[cfg(test)]
mod tests;
