//! `GET /stats`: asks the guest for its counters. The wait has a limit, because a guest may not answer.

use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Op};

use super::Running;
use crate::backend::{Reply, Waiter};
use crate::draft::not_supported;
use crate::guest;
use crate::response::Response;

/// How long the guest may take.
const STATS_LIMIT: Duration = Duration::from_secs(5);

impl Running {
    pub(super) fn get_stats(&mut self, now: Instant) -> Reply {
        let fault = |text: &str| Reply::Now(Response::fault(text));
        if !self.vm.has_agent() {
            return fault(&not_supported("only a guest with an agent tells its counters"));
        }
        if !self.vm.takes_calls() {
            return fault("Internal VMM error: the guest is not running, and cannot tell its counters");
        }
        match self.vm.call(Op::Stats) {
            Ok(call) => self.begin(Waiter::Stats { call, until: now + STATS_LIMIT }, now),
            Err(error) => fault(&format!("Internal VMM error: {error}")),
        }
    }

    /// The answer to `call`, if it is there, or will not come any more.
    pub(super) fn poll_stats(&mut self, call: u32, over: bool) -> Option<Response> {
        let fault = |text: &str| Some(Response::fault(&format!("Internal VMM error: {text}")));
        match self.vm.try_answer(call) {
            Some(Ok(Answer::Stats(stats))) => Some(Response::json(&guest::stats(&stats))),
            Some(Ok(_)) => fault("the guest gave an answer to another question"),
            Some(Err(error)) => fault(&error.to_string()),
            None if over => {
                self.vm.forget(call);
                fault("the guest did not tell its counters in time")
            }
            None => None,
        }
    }
}
