//! `resize`, `plug`, `unplug`: set a target, wait until the guest has come to rest there, and say
//! exactly what is in the way when it has not.

use std::fmt::Write;
use std::time::Duration;

use tidevm_abi::command::{Resize, Target};
use tidevm_abi::{Named, ResizeState, Size};
use tidevm_machine::{MemStatus, WaitError};

use super::failure::{Done, StepError, StepFailure, Stopped};
use super::{Machine, Observer, RESIZE_DEADLINE, Session};

/// How long what the guest said of a target stands, when the same target is set again: it may be
/// about to get further because pages were freed since.
const AFTERTHOUGHT: Duration = Duration::from_secs(3);

/// How a resize came to rest.
enum Rest {
    Reached,
    Blocked(MemStatus),
}

impl<M: Machine, O: Observer> Session<'_, M, O> {
    pub(super) fn resize(&mut self, resize: &Resize) -> Done {
        let start = self.machine.now();
        let resets = self.machine.state().resets;
        let limit = resize.within.unwrap_or(RESIZE_DEADLINE);
        let before = self.await_driver(resize.device, limit)?;
        let target = target(resize.target, before.requested)?;
        let left = limit.saturating_sub(self.machine.now() - start);
        if let Err(refusal) = self.machine.resize(resize.device, target) {
            return Err(StepError::Failed(StepFailure::SizeRefused(refusal)));
        }
        match self.await_rest(resize, target, &before, left) {
            Ok(Rest::Reached) => {
                // With a reset in it, it is not known what was moved, and the time is not that of a move.
                if self.machine.state().resets == resets {
                    let took = self.machine.now() - start;
                    let (from, to) = (before.plugged, target);
                    self.summary.plug.add_move(to.saturating_sub(from), took);
                    self.summary.unplug.add_move(from.saturating_sub(to), took);
                }
                Ok(None)
            }
            Ok(Rest::Blocked(mem)) => Err(self.stopped(resize.device, &mem, target, None)),
            Err(WaitError::Deadline { .. }) => {
                Err(self.stopped(resize.device, &self.mem(resize.device)?, target, Some(limit)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The device, once the guest drives it. One that is up does so, if it ever does.
    fn await_driver(&self, device: usize, limit: Duration) -> Result<MemStatus, StepError> {
        let limit = if self.machine.state().ready.is_some() { Duration::ZERO } else { limit };
        self.mem(device)?;
        let driven = |mem: &MemStatus| mem.driver.then(|| mem.clone());
        match self.machine.wait(limit, "a driver", |state| driven(state.mem.get(device)?)) {
            Err(WaitError::Deadline { .. }) => Err(StepError::Failed(StepFailure::NoDriver(device))),
            result => Ok(result?),
        }
    }

    fn await_rest(
        &self,
        resize: &Resize,
        target: u64,
        before: &MemStatus,
        limit: Duration,
    ) -> Result<Rest, WaitError> {
        let patient = resize.within.is_some();
        let reports = self.machine.has_agent();
        let rested =
            |mem: &MemStatus| if reports { rest(mem, target, patient) } else { arrived(mem, target) };
        if !patient && before.requested == target && matches!(rested(before), Some(Rest::Blocked(_))) {
            // The guest hears nothing new. It is given time to say that it has got further.
            let news = |mem: &MemStatus| (mem != before).then_some(());
            let look = self.machine.wait(AFTERTHOUGHT, "news", |state| news(state.mem.get(resize.device)?));
            if let Err(error) = look
                && !matches!(error, WaitError::Deadline { .. })
            {
                return Err(error);
            }
        }
        self.machine.wait(limit, "the resize", |state| rested(state.mem.get(resize.device)?))
    }

    pub(super) fn mem(&self, device: usize) -> Result<MemStatus, StepError> {
        let missing = || StepError::Failed(StepFailure::NoDevice(device));
        self.machine.state().mem.get(device).cloned().ok_or_else(missing)
    }

    /// The failure of a resize that is at `mem` instead of `target`. `within` is the deadline, if it passed.
    fn stopped(&self, device: usize, mem: &MemStatus, target: u64, within: Option<Duration>) -> StepError {
        let report = mem.report.filter(|report| mem.driver && report.requested == target);
        let state = report.map(|report| report.state);
        let name_of = |handle| self.workloads.name_of(handle).cloned();
        let mut why = match &state {
            _ if !mem.driver => StepFailure::NoDriver(device).to_string(),
            None => "the guest is still at it, and has not said why".to_owned(),
            Some(state) => Named::new(state, &name_of).to_string(),
        };
        if let (Some(ResizeState::HostBusy), Some(refused)) = (state, &mem.refused) {
            let _ = write!(why, " ({refused})");
        }
        let (plugged, target) = (Size(mem.plugged), Size(target));
        StepError::Failed(StepFailure::Stopped(Stopped { within, plugged, target, state, why }))
    }
}

fn target(target: Target, requested: u64) -> Result<u64, StepError> {
    match target {
        Target::To(size) => Ok(size.0),
        Target::Plug(size) => {
            requested.checked_add(size.0).ok_or(StepError::Failed(StepFailure::SizeTooLarge(size)))
        }
        Target::Unplug(size) => requested.checked_sub(size.0).ok_or_else(|| {
            let requested = Size(requested);
            StepError::Failed(StepFailure::SizeNegative { size, requested })
        }),
    }
}

/// Whether the target is reached, as far as the device can tell: all that there is of a guest that
/// does not report.
fn arrived(mem: &MemStatus, target: u64) -> Option<Rest> {
    (mem.plugged == target && mem.requested == target).then_some(Rest::Reached)
}

/// Whether the driver rests, for this target. HostBusy and DeviceError are no rest: the driver goes on
/// by itself. With `patient`, what blocks it is waited out.
fn rest(mem: &MemStatus, target: u64, patient: bool) -> Option<Rest> {
    match mem.stopped(target)? {
        ResizeState::Reached => Some(Rest::Reached),
        ResizeState::Unmovable { .. } | ResizeState::NoRoom | ResizeState::NoMemory if !patient => {
            Some(Rest::Blocked(mem.clone()))
        }
        _ => None,
    }
}
