//! `GET /metrics`: gathers what is told. Never waits for the guest.
//!
//! The guest is asked for its counters at each call, and its answer is told at the next one. At most one question is
//! open, so a guest that does not answer costs nothing.

use std::time::Instant;

use tidevm_abi::{Answer, Op, Stats};
use tidevm_machine::VmHandle;

use super::Running;
use crate::prometheus::{self, Facts};
use crate::response::Response;

/// The guest's counters, as it told them last.
#[derive(Debug, Default)]
pub(super) struct Sample {
    last: Option<(Stats, Instant)>,
    asked: Option<u32>,
}

impl Sample {
    /// Takes the answer to the last question, if it is there, and asks anew. A guest that was reset has told nothing yet.
    fn refresh(&mut self, vm: &VmHandle, now: Instant) {
        if let Some(call) = self.asked
            && let Some(answer) = vm.try_answer(call)
        {
            self.asked = None;
            self.last = match answer {
                Ok(Answer::Stats(stats)) => Some((stats, now)),
                Ok(_) | Err(_) => None,
            };
        }
        if self.asked.is_none() {
            self.asked = vm.try_call(Op::Stats);
        }
    }
}

impl Running {
    pub(super) fn get_metrics(&mut self, now: Instant) -> Response {
        self.sample.refresh(&self.vm, now);
        self.refresh_held(now);
        let text = prometheus::text(&Facts {
            version: self.identity.version,
            state: &self.vm.state(),
            reports: self.vm.reports(),
            exits: &self.vm.exits(),
            held: self.held.as_ref().map(|(_, held)| held.as_slice()),
            requests: &self.vm.mem_requests(),
            disks: &self.vm.disk_requests(),
            auto: self.sizer.status(&self.vm).as_ref(),
            api: &self.requests,
            sample: self.sample.last.as_ref().map(|(stats, at)| (stats, now - *at)),
        });
        Response::text(text, prometheus::CONTENT_TYPE)
    }
}
