//! `hog`, `churn`, `verify`, `release`, `wait`: the guest's workloads under the names of the script.
//!
//! A handle is used for one workload and never again, so a page that a report names by its handle
//! can be named by its script name even after the workload is gone.

use std::time::{Duration, Instant};

use tidevm_abi::command::{Churn, Hog};
use tidevm_abi::{Answer, Failure, Handle, Name, Op};

use super::failure::{Done, StepError, StepFailure, unfit};
use super::{ANSWER_DEADLINE, Machine, Observer, Session};

/// Most that a page of a workload may add to the time of an answer: filling or checking every word
/// of it on a host that emulates each instruction, several times over.
const TIME_PER_PAGE: Duration = Duration::from_millis(2);

/// Everything that was ever started, the handle being the index.
#[derive(Default)]
pub(super) struct Workloads(Vec<Workload>);

struct Workload {
    name: Name,
    now: Now,
}

#[derive(Clone, Copy)]
enum Now {
    Hog {
        pages: u64,
    },
    /// A hog for which the guest had no memory at all: it does not know the handle.
    Nothing,
    Churn {
        call: u32,
        until: Instant,
    },
    Gone,
    /// The guest was reset.
    Lost,
}

impl Workloads {
    /// The name of the workload with this handle, gone or not.
    pub(super) fn name_of(&self, handle: Handle) -> Option<&Name> {
        self.0.get(handle as usize).map(|workload| &workload.name)
    }

    /// A churn that nobody has awaited, the oldest first.
    pub(super) fn running_churn(&self) -> Option<Name> {
        let running = |workload: &&Workload| matches!(workload.now, Now::Churn { .. });
        self.0.iter().find(running).map(|workload| workload.name.clone())
    }

    fn next_handle(&self) -> Handle {
        self.0.len() as Handle
    }

    fn start(&mut self, name: &Name, now: Now) {
        self.0.push(Workload { name: name.clone(), now });
    }

    fn end(&mut self, handle: Handle) {
        self.0[handle as usize].now = Now::Gone;
    }

    /// The guest was reset: its hogs live no more. Of its churns, whoever awaits them hears.
    pub(super) fn lose(&mut self) {
        for workload in &mut self.0 {
            if matches!(workload.now, Now::Hog { .. } | Now::Nothing) {
                workload.now = Now::Lost;
            }
        }
    }

    /// The living workload of this name. Scripts are checked for names before they run.
    fn find(&self, name: &Name) -> Result<(Handle, Now), StepError> {
        let lives =
            |(_, workload): &(usize, &Workload)| workload.name == *name && !matches!(workload.now, Now::Gone);
        match self.0.iter().enumerate().find(lives) {
            Some((_, Workload { now: Now::Lost, .. })) => {
                Err(StepError::Fatal(StepFailure::WorkloadReset(name.clone())))
            }
            Some((index, workload)) => Ok((index as Handle, workload.now)),
            None => Err(StepError::Fatal(StepFailure::UnknownName(name.clone()))),
        }
    }
}

impl<M: Machine, O: Observer> Session<'_, M, O> {
    pub(super) fn hog(&mut self, hog: &Hog) -> Done {
        self.hold(hog.size.pages(), &hog.name, |handle| hog.op(handle))
    }

    /// Has the guest take pages of whatever kind, and fill them.
    pub(super) fn hold(&mut self, wanted: u64, name: &Name, op: impl FnOnce(Handle) -> Op) -> Done {
        let handle = self.workloads.next_handle();
        let (now, pages) = match self.ask(op(handle), patience(wanted))? {
            Answer::Hogged { pages } => (Now::Hog { pages }, pages),
            Answer::Failed(Failure::NoMemory) => (Now::Nothing, 0),
            Answer::Failed(failure @ Failure::Pmem(_)) => return Err(self.pmem_refused(failure)),
            other => return Err(unfit(other)),
        };
        self.workloads.start(name, now);
        Ok((pages != wanted).then(|| format!("{pages} of {wanted} pages fitted")))
    }

    pub(super) fn churn(&mut self, churn: &Churn) -> Done {
        let call = self.call(churn.op(self.workloads.next_handle()))?;
        let until = self.machine.now() + churn.time;
        self.workloads.start(&churn.name, Now::Churn { call, until });
        Ok(None)
    }

    pub(super) fn verify(&mut self, name: &Name) -> Done {
        let (handle, pages) = match self.workloads.find(name)? {
            (handle, Now::Hog { pages }) => (handle, pages),
            _ => return Ok(Some(format!("`{name}` holds no pages"))),
        };
        match self.ask(Op::Verify { handle }, patience(pages))? {
            answer @ Answer::Verified { pages: seen, corrupt: 0, .. } if seen == pages => {
                Ok(Some(answer.to_string()))
            }
            Answer::Verified { pages: seen, corrupt: 0, .. } => Err(lost(name, pages, seen)),
            Answer::Verified { pages: seen, corrupt, first_corrupt } => {
                let (name, pages, first) = (name.clone(), seen, first_corrupt);
                Err(StepError::Fatal(StepFailure::Corrupt { name, pages, corrupt, first }))
            }
            other => Err(unfit(other)),
        }
    }

    pub(super) fn release(&mut self, name: &Name) -> Done {
        let (handle, pages) = match self.workloads.find(name)? {
            (handle, Now::Hog { pages }) => (handle, pages),
            (_, Now::Churn { .. }) => return self.await_churn(name),
            (handle, Now::Nothing | Now::Gone | Now::Lost) => {
                self.workloads.end(handle);
                return Ok(Some(format!("`{name}` held no pages")));
            }
        };
        let answer = self.ask(Op::Release { handle }, patience(pages))?;
        self.workloads.end(handle);
        match answer {
            Answer::Released { pages: back } if back == pages => Ok(Some(answer.to_string())),
            Answer::Released { pages: back } => Err(lost(name, pages, back)),
            other => Err(unfit(other)),
        }
    }

    pub(super) fn race(&self, cycles: u32) -> Done {
        let limit = ANSWER_DEADLINE + TIME_PER_CYCLE.saturating_mul(cycles);
        match self.ask(Op::Race { cycles }, limit)? {
            answer @ Answer::Raced { failures: 0, stranded: 0, .. } => Ok(Some(answer.to_string())),
            Answer::Raced { cycles, failures, stranded } => {
                Err(StepError::Failed(StepFailure::RaceLost { cycles, failures, stranded }))
            }
            other => Err(unfit(other)),
        }
    }

    pub(super) fn await_churn(&mut self, name: &Name) -> Done {
        let (handle, Now::Churn { call, until }) = self.workloads.find(name)? else {
            return Err(StepError::Fatal(StepFailure::Endless(name.clone())));
        };
        let limit = until.saturating_duration_since(self.machine.now()) + ANSWER_DEADLINE;
        // Whatever comes of it, it is not awaited twice.
        self.workloads.end(handle);
        match self.machine.answer(call, limit, "the end of the churn")? {
            answer @ Answer::Churned { .. } => Ok(Some(answer.to_string())),
            Answer::Failed(failure @ Failure::NoMemory) => Err(StepError::refused(failure)),
            other => Err(unfit(other)),
        }
    }
}

/// Most that a cycle of a race may take, several times over: on the slowest host known, with more vCPUs
/// than CPUs, it takes some 50 ms.
const TIME_PER_CYCLE: Duration = Duration::from_millis(500);

pub(super) fn patience(pages: u64) -> Duration {
    ANSWER_DEADLINE + TIME_PER_PAGE.saturating_mul(u32::try_from(pages).unwrap_or(u32::MAX))
}

fn lost(name: &Name, held: u64, seen: u64) -> StepError {
    StepError::Fatal(StepFailure::PagesLost { name: name.clone(), held, seen })
}
