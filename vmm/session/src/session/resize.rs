//! `resize`, `plug`, `unplug`: set a target, wait until the guest has come to rest there, and say
//! exactly what is in the way when it has not.

use std::fmt::Write;
use std::time::Duration;

use tidevm_abi::command::{Resize, Target};
use tidevm_abi::{Named, ResizeState, Size};
use tidevm_machine::{MemStatus, WaitError};

use super::{Done, Machine, Observer, RESIZE_DEADLINE, Session, Trouble};

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
            return Err(Trouble::Failed(format!("refused: {refusal}")));
        }
        let at_rest = self.await_rest(resize, target, &before, left);
        match at_rest {
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
            Ok(Rest::Blocked(mem)) => Err(Trouble::Failed(self.why_stopped(resize.device, &mem, target))),
            Err(WaitError::Deadline { .. }) => {
                let why = self.why_stopped(resize.device, &self.mem(resize.device)?, target);
                Err(Trouble::Failed(format!("not within {limit:?}: {why}")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The device, once the guest drives it. One that is up does so, if it ever does.
    fn await_driver(&self, device: usize, limit: Duration) -> Result<MemStatus, Trouble> {
        let limit = if self.machine.state().ready.is_some() { Duration::ZERO } else { limit };
        self.mem(device)?;
        let driven = |mem: &MemStatus| mem.driver.then(|| mem.clone());
        match self.machine.wait(limit, "a driver", |state| driven(state.mem.get(device)?)) {
            Err(WaitError::Deadline { .. }) => Err(Trouble::Failed(driver_absent(device))),
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

    pub(super) fn mem(&self, device: usize) -> Result<MemStatus, Trouble> {
        let missing = || Trouble::Failed(format!("there is no hotplug device {device}"));
        self.machine.state().mem.get(device).cloned().ok_or_else(missing)
    }

    /// Where the guest stopped, how much is missing and what it says about it, if it is there to say.
    fn why_stopped(&self, device: usize, mem: &MemStatus, target: u64) -> String {
        let missing = mem.plugged.abs_diff(target) >> 20;
        let side = if mem.plugged > target { "above" } else { "below" };
        let mut text = format!("stopped at {}, {missing} MiB {side} the target", Size(mem.plugged));
        if !mem.driver {
            return format!("{text}: {}", driver_absent(device));
        }
        let report = mem.report.filter(|report| report.requested == target);
        let Some(state) = report.map(|report| report.state) else {
            text.push_str(": the guest is still at it, and has not said why");
            return text;
        };
        let name_of = |handle| self.workloads.name_of(handle).cloned();
        let _ = write!(text, ": {}", Named::new(&state, &name_of));
        if let (ResizeState::HostBusy, Some(refused)) = (state, &mem.refused) {
            let _ = write!(text, " ({refused})");
        }
        text
    }
}

fn driver_absent(device: usize) -> String {
    format!("driver absent: the guest drives no device {device}")
}

fn target(target: Target, requested: u64) -> Result<u64, Trouble> {
    match target {
        Target::To(size) => Ok(size.0),
        Target::Plug(size) => requested
            .checked_add(size.0)
            .ok_or_else(|| Trouble::Failed(format!("refused: {size} more is no size"))),
        Target::Unplug(size) => requested.checked_sub(size.0).ok_or_else(|| {
            let requested = Size(requested);
            Trouble::Failed(format!("refused: cannot unplug {size}, only {requested} is requested"))
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
