//! What answers requests: a machine that is configured, or one that runs.
//!
//! The server knows nothing of machines, and a backend knows nothing of sockets; they meet here.

use std::time::Instant;

use crate::http::Request;
use crate::response::Response;
use crate::route::{Action, MemoryQuery};
use tidevm_abi::BlockRun;

/// The answer to a request.
#[derive(Debug)]
pub enum Reply {
    /// This one.
    Now(Response),
    /// Asked for again when the state changed, and in time.
    Later(Waiter),
    /// Events, line by line, until the VM ends.
    Stream,
    /// The machine starts. The answer depends on that.
    Start,
}

/// A request whose answer is not there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiter {
    /// Regions have to converge, or the time to pass.
    Converge {
        /// What was asked.
        query: MemoryQuery,
        /// The end of the wait.
        until: Instant,
        /// The region and the number of its target, of a wait for a target that this request set.
        goal: Option<(usize, u64)>,
    },
    /// The guest has to tell its memory blocks.
    Blocks {
        /// What was asked.
        query: MemoryQuery,
        /// The call that the guest has to answer.
        call: u32,
        /// What it has told.
        runs: Vec<BlockRun>,
        /// The end of the wait.
        until: Instant,
    },
    /// The guest has to tell its counters.
    Stats {
        /// The call that the guest has to answer.
        call: u32,
        /// The end of the wait.
        until: Instant,
    },
    /// The vCPUs have to leave the guest.
    Pause {
        /// The end of the wait.
        until: Instant,
        /// When to look again: nothing tells of it.
        next: Instant,
    },
}

impl Waiter {
    /// When to ask again at the latest.
    #[must_use]
    pub fn due(&self) -> Instant {
        match self {
            Self::Converge { until, .. } | Self::Blocks { until, .. } | Self::Stats { until, .. } => *until,
            Self::Pause { next, .. } => *next,
        }
    }
}

/// Answers requests.
pub trait Backend {
    /// Carries out `action`. Never waits.
    fn answer(&mut self, action: Action, now: Instant) -> Reply;

    /// The answer of a request that waited, if it is there. With `over` it is the last time.
    fn poll(&mut self, waiter: &mut Waiter, now: Instant, over: bool) -> Option<Response>;

    /// The client of `waiter` is gone.
    fn forget(&mut self, waiter: &Waiter);

    /// The lines of events since the last call.
    fn events(&mut self) -> Vec<String>;

    /// A request was answered with `status`.
    fn count(&mut self, request: &Request, status: u16);

    /// When [`Backend::tick`] is due.
    fn due(&self) -> Option<Instant>;

    /// Does what is due.
    fn tick(&mut self, now: Instant);
}
