//! The ends of a wait that are no success.

use std::time::Duration;

use tidevm_abi::ShowDuration;

use crate::death::Death;

/// Why a wait ended without success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// It took too long.
    #[error("{what}: not within {}", ShowDuration(*.after))]
    Deadline {
        /// The awaited event, in words.
        what: String,
        /// The limit.
        after: Duration,
    },
    /// The time for everything is over: [`Config::timeout`](crate::Config::timeout).
    #[error("the time of {} is over; it waited for {what}", ShowDuration(*.limit))]
    TimedOut {
        /// The awaited event, in words.
        what: String,
        /// The time for everything.
        limit: Duration,
    },
    /// The guest died meanwhile.
    #[error("{0}")]
    Died(Death),
    /// The guest powered off meanwhile.
    #[error("the guest powered off")]
    PoweredOff,
    /// The guest was reset, so the call will not be answered.
    #[error("the guest was reset before it answered")]
    Reset,
    /// A termination signal came meanwhile.
    #[error("ended by signal {0}")]
    Signal(i32),
}
