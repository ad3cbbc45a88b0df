//! The end of a session: the VM is saved or stopped, and the observer is told how it went.
//!
//! A machine that is to be saved is saved in place of its end, if the session came to its end: all steps were run, a person typed
//! the last line, or a signal ended a session without steps. A step that failed on the way does not keep it from being saved. If
//! the save fails, the guest is powered off, and the session has failed.

use std::io;
use std::time::Duration;

use tidevm_machine::{Death, DeathKind, End, Saved, WaitError};

use super::failure::{SessionError, StepError, StepFailure};
use super::silence::{self, look_at_silent};
use super::{Ended, Observer, Session, Summary, VmControl};

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    pub(super) fn end(self, result: Result<(), SessionError>) -> io::Result<Summary> {
        let Session { vm, watch, mut summary, silent, start, workloads, .. } = self;
        let observer = watch.into_observer();
        summary.total = vm.now() - start;
        summary.exits = vm.exits().into_iter().sum();
        let state = vm.state();
        (summary.stray_accesses, summary.bad_records) = (state.stray_accesses, state.bad_records);
        summary.resets = state.resets;
        let error = if let Err(SessionError::Step(error)) = &result { Some(error) } else { None };
        // A step has told of its vCPUs itself.
        let vcpus = if summary.steps == 0 { look_at_silent(&vm, error) } else { Vec::new() };
        let remember = (result.is_ok() && vm.saves()).then(|| workloads.remember(vm.now()).to_bytes());
        let limit = silence::limit_of_end(silent, error);
        let (saved, mut end) = save_or_stop(vm, remember.as_deref(), limit);
        summary.vcpus = match &mut end {
            Some(End::Forced { vcpus, .. }) if !error.is_some_and(silence::is_silent) => {
                std::mem::take(vcpus)
            }
            _ => vcpus,
        };
        let (ended, output) = ended(result, summary.failed);
        summary.ended = match (ended, end) {
            (ended @ (Ended::Died(_) | Ended::TimedOut { .. }), _) => ended,
            (_, Some(End::Died(death))) => died(death),
            (Ended::Done, Some(End::Forced { asked: true, .. })) => {
                let reason = "the guest did not power off when asked, and was ended".to_owned();
                Ended::Failed { reason: Some(reason) }
            }
            (ended, _) => ended,
        };
        match (saved, &mut summary.ended) {
            (None, _) => {}
            (Some(Ok(saved)), _) => summary.saved = Some(saved),
            // A session that would be saved has neither ended early nor by a signal. Its guest may have died since.
            (Some(Err(why)), ended @ (Ended::Done | Ended::Failed { .. })) => {
                *ended = Ended::Failed { reason: Some(why) };
            }
            (Some(Err(_)), _) => {}
        }
        // The end is told also when something before it could not be.
        let told = observer.end(&summary);
        output.and(told)?;
        Ok(summary)
    }
}

/// Saves `vm` if there is something to remember, and stops it if not, or if that fails. Returns what was saved or why it was not,
/// and how a VM that was stopped ended.
fn save_or_stop<V: VmControl>(
    vm: V,
    remember: Option<&[u8]>,
    limit: Duration,
) -> (Option<Result<Saved, String>>, Option<End>) {
    let Some(remember) = remember else { return (None, Some(vm.stop(limit))) };
    match vm.end_saved(remember) {
        Ok(saved) => (Some(Ok(saved)), None),
        Err(failed) => {
            let (vm, error) = *failed;
            let why = format!("the machine was not saved: {error}");
            (Some(Err(why)), Some(vm.stop(limit)))
        }
    }
}

/// How a session with this result and so many failed steps ended, and the error of its observer.
fn ended(result: Result<(), SessionError>, failed: u64) -> (Ended, io::Result<()>) {
    let ended = match result {
        Ok(()) if failed == 0 => Ended::Done,
        Ok(()) => Ended::Failed { reason: None },
        Err(SessionError::Output(error)) => {
            let reason = Some(error.to_string());
            return (Ended::Failed { reason }, Err(error));
        }
        Err(SessionError::Script(errors)) => Ended::Misread(errors),
        Err(SessionError::Step(error)) => of_step(&error),
    };
    (ended, Ok(()))
}

/// The end of a session whose guest ended by `death`, which may be its own will.
fn died(death: Death) -> Ended {
    match death.kind {
        DeathKind::ReportedFailure => Ended::Failed { reason: Some(death.kind.to_string()) },
        _ => Ended::Died(death),
    }
}

fn of_step(error: &StepError) -> Ended {
    match error.failure() {
        StepFailure::Ended(WaitError::Died(death)) => died(death.clone()),
        StepFailure::Ended(error @ WaitError::TimedOut { .. }) => {
            Ended::TimedOut { reason: error.to_string() }
        }
        StepFailure::Ended(WaitError::Signal(signal)) => Ended::Signal { signal: *signal },
        failure => Ended::Failed { reason: Some(failure.to_string()) },
    }
}
