//! `hog`, `churn`, `verify`, `corrupt`, `release`, `wait`, `race`: the guest's workloads under the names of the
//! script.
//!
//! Invariant: a handle is used for one workload and never again. So a page that the guest reports by a handle
//! can be shown with the script's name even after the workload has ended.

use std::fmt::Display;
use std::time::{Duration, Instant};

use tidevm_abi::command::{Churn, Corrupt, Hog, Race};
use tidevm_abi::{Answer, CorruptPart, Counted, Failure, Handle, Name, Named, Op, Size};
use tidevm_machine::State;

use super::failure::{Done, StepError, StepFailure, unfit};
use super::{ANSWER_DEADLINE, FOREVER, Observer, Session, VmControl, Work, deadline};
use crate::remembered::{Remembered, State as Saved};

/// Added to the deadline of a race per cycle: several times the 50 ms that it takes on the slowest known host
/// with more vCPUs than CPUs.
const TIME_PER_CYCLE: Duration = Duration::from_millis(500);

/// All workloads of the session, ended ones included. The handle is the index.
#[derive(Default)]
pub(super) struct Workloads(Vec<Workload>);

struct Workload {
    name: Name,
    state: WorkloadState,
}

#[derive(Clone, Copy)]
enum WorkloadState {
    Hog {
        pages: u64,
        /// What was asked for. Deadlines follow from it: how many pages there are, the guest says.
        size: Size,
    },
    /// A partial hog for which the guest had no memory at all. The guest does not know the handle.
    Empty,
    Churn {
        call: u32,
        until: Instant,
    },
    /// Released or awaited.
    Ended,
    /// Gone with a reset of the guest.
    Lost,
}

impl Workloads {
    /// The workloads of the session that saved the machine, at the time `now`.
    pub(super) fn recall(remembered: Remembered, now: Instant) -> Self {
        let recall = |(name, state)| {
            let state = match state {
                Saved::Hog { pages, size } => WorkloadState::Hog { pages, size: Size(size) },
                Saved::Empty => WorkloadState::Empty,
                Saved::Churn { call, left } => WorkloadState::Churn { call, until: now + left.min(FOREVER) },
                Saved::Ended => WorkloadState::Ended,
                Saved::Lost => WorkloadState::Lost,
            };
            Workload { name, state }
        };
        Self(remembered.0.into_iter().map(recall).collect())
    }

    /// The workloads, for the session that restores the machine.
    pub(super) fn remember(&self, now: Instant) -> Remembered {
        let remember = |workload: &Workload| {
            let state = match workload.state {
                WorkloadState::Hog { pages, size } => Saved::Hog { pages, size: size.0 },
                WorkloadState::Empty => Saved::Empty,
                WorkloadState::Churn { call, until } => {
                    Saved::Churn { call, left: until.saturating_duration_since(now) }
                }
                WorkloadState::Ended => Saved::Ended,
                WorkloadState::Lost => Saved::Lost,
            };
            (workload.name.clone(), state)
        };
        Remembered(self.0.iter().map(remember).collect())
    }

    /// The name of the workload with this handle, whether it has ended or not.
    fn name_of(&self, handle: Handle) -> Option<&Name> {
        self.0.get(handle as usize).map(|workload| &workload.name)
    }

    /// The text of a value of the guest, with the names of workloads.
    pub(super) fn text_of<T>(&self, value: &T) -> String
    where
        for<'n> Named<'n, T>: Display,
    {
        Named::new(value, &|handle| self.name_of(handle).cloned()).to_string()
    }

    /// The oldest churn that was not awaited.
    pub(super) fn running_churn(&self) -> Option<Name> {
        let running = |workload: &&Workload| matches!(workload.state, WorkloadState::Churn { .. });
        self.0.iter().find(running).map(|workload| workload.name.clone())
    }

    /// The handle of a workload that is about to start. It is in use even if the start fails: the guest may know it.
    fn add(&mut self, name: &Name) -> Handle {
        self.0.push(Workload { name: name.clone(), state: WorkloadState::Ended });
        (self.0.len() - 1) as Handle
    }

    fn end(&mut self, handle: Handle) {
        self.set(handle, WorkloadState::Ended);
    }

    fn set(&mut self, handle: Handle, state: WorkloadState) {
        self.0[handle as usize].state = state;
    }

    /// Whether a workload of this name has neither ended nor gone with a reset.
    pub(super) fn lives(&self, name: &Name) -> bool {
        let last = self.0.iter().rev().find(|workload| workload.name == *name);
        last.is_some_and(|workload| !matches!(workload.state, WorkloadState::Ended | WorkloadState::Lost))
    }

    /// The guest was reset: its hogs are lost. A churn stays, because the wait for its answer tells of the
    /// reset.
    pub(super) fn lose(&mut self) {
        for workload in &mut self.0 {
            if matches!(workload.state, WorkloadState::Hog { .. } | WorkloadState::Empty) {
                workload.state = WorkloadState::Lost;
            }
        }
    }

    /// The script asked for a reset: its churns are lost, and nothing will await them. Returns their calls.
    pub(super) fn lose_churns(&mut self) -> Vec<u32> {
        let lose = |workload: &mut Workload| {
            let WorkloadState::Churn { call, .. } = workload.state else { return None };
            workload.state = WorkloadState::Lost;
            Some(call)
        };
        self.0.iter_mut().filter_map(lose).collect()
    }

    /// The workload of this name that has not ended. Scripts are checked for unknown names before they run. The name
    /// of a workload that a reset ended may have been used again.
    fn find(&self, name: &Name) -> Result<(Handle, WorkloadState), StepError> {
        let lives = |(_, workload): &(usize, &Workload)| {
            workload.name == *name && !matches!(workload.state, WorkloadState::Ended)
        };
        match self.0.iter().enumerate().rev().find(lives) {
            Some((_, Workload { state: WorkloadState::Lost, .. })) => {
                Err(StepError::Fatal(StepFailure::WorkloadReset(name.clone())))
            }
            Some((index, workload)) => Ok((index as Handle, workload.state)),
            None => Err(StepError::Fatal(StepFailure::UnknownName(name.clone()))),
        }
    }
}

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    /// How long the guest may take to do `work` on memory of `size`.
    pub(super) fn limit_of(&self, work: Work, size: Size) -> Duration {
        deadline::answer(work, self.most_of(size))
    }

    pub(super) fn hog(&mut self, hog: &Hog) -> Done {
        self.hold(hog.size, hog.partial, &hog.name, |handle| hog.op(handle))
    }

    /// Lets the guest take and fill pages of `size` by the call that `op` makes of the new handle: all of them, unless
    /// it is `partial`.
    pub(super) fn hold(
        &mut self,
        size: Size,
        partial: bool,
        name: &Name,
        op: impl FnOnce(Handle) -> Op,
    ) -> Done {
        let (handle, wanted) = (self.workloads.add(name), size.pages());
        let limit = self.limit_of(Work::Fill, size);
        let (state, pages) = match self.ask(op(handle), limit)? {
            Answer::Hogged { pages } if pages == wanted || partial && pages < wanted => {
                (WorkloadState::Hog { pages, size }, pages)
            }
            Answer::Failed(Failure::NoMemory) if partial => (WorkloadState::Empty, 0),
            Answer::Failed(failure) if does_not_fit(failure, wanted) && !partial => {
                return Err(StepError::refused(failure));
            }
            Answer::Failed(failure @ Failure::Pmem(_)) => return Err(self.pmem_refused(failure)),
            other => return Err(unfit(other)),
        };
        self.workloads.set(handle, state);
        Ok((pages != wanted).then(|| format!("{pages} of {} fitted", Counted(wanted, "page"))))
    }

    /// The error for a range of device memory with which the guest did nothing. The failure may name a workload
    /// that uses the range.
    pub(super) fn pmem_refused(&self, failure: Failure) -> StepError {
        StepError::Failed(StepFailure::Refused { failure, text: self.workloads.text_of(&failure) })
    }

    pub(super) fn churn(&mut self, churn: &Churn) -> Done {
        let handle = self.workloads.add(&churn.name);
        let call = self.call(churn.op(handle))?;
        let until = self.vm.now() + churn.time;
        self.workloads.set(handle, WorkloadState::Churn { call, until });
        Ok(None)
    }

    pub(super) fn verify(&mut self, name: &Name) -> Done {
        let (handle, pages, size) = match self.workloads.find(name)? {
            (handle, WorkloadState::Hog { pages, size }) => (handle, pages, size),
            _ => return Ok(Some(format!("`{name}` holds no pages"))),
        };
        match self.ask(Op::Verify { handle }, self.limit_of(Work::Fill, size))? {
            answer @ Answer::Verified { pages: seen, corrupt: 0, .. } if seen == pages => {
                Ok(Some(answer.to_string()))
            }
            Answer::Verified { pages: seen, corrupt: 0, .. } => Err(lost(name, pages, seen)),
            Answer::Verified { pages, corrupt, first } if corrupt <= pages => {
                Err(StepError::Fatal(StepFailure::Corrupt { name: name.clone(), pages, corrupt, first }))
            }
            other => Err(unfit(other)),
        }
    }

    pub(super) fn corrupt(&mut self, corrupt: &Corrupt) -> Done {
        let (handle, size) = match self.workloads.find(&corrupt.name)? {
            (handle, WorkloadState::Hog { size, .. }) => (handle, size),
            _ => return Err(StepError::refused(Failure::NoSuchPage)),
        };
        match (self.ask(corrupt.op(handle), self.limit_of(Work::Move, size))?, corrupt.part) {
            (Answer::Corrupted(word), CorruptPart::Content) if word.page == u64::from(corrupt.page) => {
                Ok(Some(word.to_string()))
            }
            (Answer::Done, CorruptPart::Memmap) => Ok(None),
            // The guest had no memory for all pages of the hog.
            (Answer::Failed(failure @ Failure::NoSuchPage), _) => Err(StepError::refused(failure)),
            (other, _) => Err(unfit(other)),
        }
    }

    pub(super) fn release(&mut self, name: &Name) -> Done {
        let (handle, pages, size) = match self.workloads.find(name)? {
            (handle, WorkloadState::Hog { pages, size }) => (handle, pages, size),
            (_, WorkloadState::Churn { .. }) => return self.await_churn(name),
            (handle, WorkloadState::Empty | WorkloadState::Ended | WorkloadState::Lost) => {
                self.workloads.end(handle);
                return Ok(Some(format!("`{name}` held no pages")));
            }
        };
        let answer = self.ask(Op::Release { handle }, self.limit_of(Work::Move, size))?;
        self.workloads.end(handle);
        match answer {
            Answer::Released { pages: back } if back == pages => Ok(Some(answer.to_string())),
            Answer::Released { pages: back } => Err(lost(name, pages, back)),
            other => Err(unfit(other)),
        }
    }

    pub(super) fn race(&self, Race { cycles, held }: Race) -> Done {
        let limit = ANSWER_DEADLINE + TIME_PER_CYCLE.saturating_mul(cycles);
        match self.ask(Op::Race { cycles, held }, limit)? {
            answer @ Answer::Raced { cycles: run, failures, .. } if run != cycles || failures > run => {
                Err(unfit(answer))
            }
            answer @ Answer::Raced { failures: 0, stranded: 0, .. } => Ok(Some(answer.to_string())),
            Answer::Raced { cycles, failures, stranded } => {
                Err(StepError::Failed(StepFailure::RaceLost { cycles, failures, stranded }))
            }
            other => Err(unfit(other)),
        }
    }

    pub(super) fn await_churn(&mut self, name: &Name) -> Done {
        let (handle, WorkloadState::Churn { call, until }) = self.workloads.find(name)? else {
            return Err(StepError::Fatal(StepFailure::Endless(name.clone())));
        };
        let limit = until.saturating_duration_since(self.vm.now()) + ANSWER_DEADLINE;
        // Ended before the wait, so that a wait that fails is not repeated at the end of the session.
        self.workloads.end(handle);
        let cancelled = |state: &State| state.interrupts != self.interrupts;
        let answer = self.vm.answer_unless(call, limit, "the end of the churn", cancelled)?;
        let Some(answer) = answer else {
            // It goes on.
            self.workloads.set(handle, WorkloadState::Churn { call, until });
            return Err(StepError::Failed(StepFailure::Cancelled));
        };
        match answer {
            answer @ Answer::Churned { .. } => Ok(Some(answer.to_string())),
            Answer::Failed(failure @ Failure::NoMemory) => Err(StepError::refused(failure)),
            other => Err(unfit(other)),
        }
    }
}

/// Whether a guest may say so of a workload that wants so many pages.
fn does_not_fit(failure: Failure, wanted: u64) -> bool {
    match failure {
        Failure::NoMemory => true,
        Failure::DoesNotFit { pages } => pages < wanted,
        _ => false,
    }
}

fn lost(name: &Name, held: u64, seen: u64) -> StepError {
    StepError::Fatal(StepFailure::PagesLost { name: name.clone(), held, seen })
}
