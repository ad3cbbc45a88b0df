//! `resize`, `plug`, `unplug`: set a target, wait until the guest has settled, and tell exactly what is in
//! the way if it is not at the target.

use std::time::Duration;

use tidevm_abi::Size;
use tidevm_abi::command::{Resize, Target};
use tidevm_machine::{MemStatus, Obstacle, Settled, State, WaitError};

use super::failure::{Done, StepError, StepFailure, Stopped};
use super::{Observer, Session, VmControl, resize_deadline};

/// How long the guest may take to stop where it is. A request of eight memory blocks is done by then on the slowest known
/// host; otherwise it goes on while the next command runs.
const HALT_DEADLINE: Duration = Duration::from_secs(10);

/// How the wait of a resize ended, with the device as the wait saw it last.
enum Waited {
    AtTarget,
    /// The guest is blocked.
    Blocked(MemStatus),
    /// The deadline passed.
    Late(MemStatus),
    /// A person cancelled the resize.
    Cancelled,
}

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    pub(super) fn resize(&mut self, resize: &Resize) -> Done {
        let (began, resets) = (self.vm.now(), self.vm.state().resets);
        let found = self.mem(resize.device)?;
        let limit = resize.within.unwrap_or_else(|| patience(resize.target, &found));
        let before = self.await_driver(resize.device, limit)?;
        let target = resize
            .target
            .of(before.requested)
            .map_err(|error| StepError::Failed(StepFailure::NoTarget(error)))?;
        // The rate begins here: a guest without a driver moves nothing.
        let start = self.vm.now();
        let left = limit.saturating_sub(start - began);
        if let Err(refusal) = self.vm.resize(resize.device, target) {
            return Err(StepError::Failed(StepFailure::SizeRefused(refusal)));
        }
        match self.await_settled(resize, target, left) {
            Ok(Waited::AtTarget) => {
                // After a reset it is not known how much was moved, and the time includes a boot.
                if self.vm.state().resets == resets {
                    let took = self.vm.now() - start;
                    let (from, to) = (before.plugged, target);
                    self.summary.plug.add_move(to.saturating_sub(from), took);
                    self.summary.unplug.add_move(from.saturating_sub(to), took);
                }
                Ok(None)
            }
            Ok(Waited::Blocked(mem)) => Err(self.stopped(resize.device, &mem, target, None)),
            Ok(Waited::Late(mem)) => Err(self.stopped(resize.device, &mem, target, Some(limit))),
            Ok(Waited::Cancelled) => Err(self.halt(resize.device)?),
            Err(error) => Err(error.into()),
        }
    }

    /// The device, once the guest drives it. A guest that reports has bound its drivers before it says that it is up, so that
    /// there is nothing to wait for. In Linux a driver may be a module that comes later than the agent.
    fn await_driver(&self, device: usize, limit: Duration) -> Result<MemStatus, StepError> {
        let bound = self.vm.reports() && self.vm.state().ready.is_some();
        let limit = if bound { Duration::ZERO } else { limit };
        let driven = |mem: &MemStatus| mem.driver.then(|| mem.clone());
        match self.wait(limit, "a driver", |state| driven(state.mem.get(device)?)) {
            Err(WaitError::Deadline { .. }) => Err(StepError::Failed(StepFailure::NoDriver(device))),
            result => Ok(result?),
        }
    }

    /// Waits for the guest to settle for `target`, which is the device's current target. What the guest said about
    /// earlier targets does not count, even if they were of the same size.
    fn await_settled(&self, resize: &Resize, target: Size, limit: Duration) -> Result<Waited, WaitError> {
        let patient = resize.within.is_some();
        let reports = self.vm.reports();
        // The failure tells what this wait saw last. A later look might find the guest at the target.
        let mut last = MemStatus::default();
        let settled = self.wait(limit, "the resize", |state| {
            last = state.mem.get(resize.device)?.clone();
            let cancelled = state.interrupts != self.interrupts;
            last.settled(target, reports, patient).map(Some).or(cancelled.then_some(None))
        });
        match settled {
            Ok(None) => Ok(Waited::Cancelled),
            Ok(Some(Settled::AtTarget)) => Ok(Waited::AtTarget),
            Ok(Some(Settled::Blocked)) => Ok(Waited::Blocked(last)),
            Err(WaitError::Deadline { .. }) => Ok(Waited::Late(last)),
            Err(error) => Err(error),
        }
    }

    /// Has the device stop where it is: that becomes its target. A guest that is at work on a request goes past it, and
    /// comes back.
    fn halt(&self, device: usize) -> Result<StepError, StepError> {
        let (here, reports) = (self.mem(device)?.plugged, self.vm.reports());
        if let Err(refusal) = self.vm.resize(device, here) {
            return Err(StepError::Failed(StepFailure::SizeRefused(refusal)));
        }
        let settled = |state: &State| state.mem.get(device)?.settled(here, reports, false);
        match self.vm.wait(HALT_DEADLINE, "the end of a resize that was cancelled", settled) {
            Ok(_) | Err(WaitError::Deadline { .. }) => Ok(StepError::Failed(StepFailure::Cancelled)),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn mem(&self, device: usize) -> Result<MemStatus, StepError> {
        let missing = || StepError::Failed(StepFailure::NoDevice(device));
        self.vm.state().mem.get(device).cloned().ok_or_else(missing)
    }

    /// The failure of a resize that is at `mem` instead of `target`. `within` is the deadline, if it passed.
    fn stopped(&self, device: usize, mem: &MemStatus, target: Size, within: Option<Duration>) -> StepError {
        let obstacle = mem.obstacle(target);
        let why = match &obstacle {
            Obstacle::NoDriver => StepFailure::NoDriver(device).to_string(),
            obstacle => obstacle.told(|state| self.workloads.text_of(state)),
        };
        let state = obstacle.state();
        let stopped = Stopped { within, plugged: mem.plugged, target, state, why };
        StepError::Failed(StepFailure::Stopped(Box::new(stopped)))
    }
}

/// How long a resize may take that does not say it, of a device that was found so. It may have plugged less or more than
/// it requests.
fn patience(wanted: Target, found: &MemStatus) -> Duration {
    // A target that cannot be is refused before the wait.
    let to = wanted.of(found.requested).unwrap_or_default().min(found.region_size);
    [found.requested, found.plugged]
        .map(|from| resize_deadline(from, to))
        .into_iter()
        .max()
        .unwrap_or_default()
}
