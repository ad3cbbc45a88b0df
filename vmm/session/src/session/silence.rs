//! A guest that does not answer: which failures say so, the look at its vCPUs that follows, and how long the guest is
//! waited for from then on.
//!
//! Invariant: a silent guest costs one wait. A guest that left a call unanswered is neither asked again nor waited for
//! at the end. A guest that said nothing about a resize may still answer calls, but gets only what is left of the
//! usual time, and at least [`LAST_CHANCE`].

use std::time::Duration;

use tidevm_machine::{VcpuReport, WaitError};

use super::failure::{Done, StepError, StepFailure};
use super::sample::Inside;
use super::{ANSWER_DEADLINE, Observer, POWER_OFF_DEADLINE, Session, VmControl};

/// The time for an answer of a guest whose driver was silent for a whole step. A guest that works powers off in this
/// time, so it can answer, too.
const LAST_CHANCE: Duration = POWER_OFF_DEADLINE;

/// Whether a wait for the guest reached its deadline.
pub(super) fn is_silent(error: &StepError) -> bool {
    is_silence(error.failure())
}

/// Whether `error` says that the guest left a call unanswered or unread, or never reported.
fn ignores_calls(error: &StepError) -> bool {
    matches!(error.failure(), StepFailure::TooLate { .. } | StepFailure::CallsUnread(_))
}

/// How long the guest may take to tell its counters after a step that took `took`, and failed by `error` if there is
/// one. `None` for a guest that has ended or ignores calls.
fn limit_of_counters(error: Option<&StepError>, took: Duration) -> Option<Duration> {
    match error {
        Some(error) if matches!(error.failure(), StepFailure::Ended(_)) || ignores_calls(error) => None,
        Some(error) if is_silent(error) => Some(ANSWER_DEADLINE.saturating_sub(took).max(LAST_CHANCE)),
        _ => Some(ANSWER_DEADLINE),
    }
}

/// How long the guest may take to power off at the end of a session, which `error` ended if there is one. `silent`
/// says that the guest left a call unanswered in a step.
pub(super) fn limit_of_end(silent: bool, error: Option<&StepError>) -> Duration {
    if silent || error.is_some_and(ignores_calls) { Duration::ZERO } else { POWER_OFF_DEADLINE }
}

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    /// What the guest tells of itself after a step that took `took`. A guest that does not tell it makes a failure of
    /// `result`, and a failure that is there becomes the last one, because each later step would wait for that guest
    /// again. `vcpus` are then those of the silent guest.
    pub(super) fn counters_after(
        &mut self,
        took: Duration,
        result: &mut Done,
        vcpus: &mut Vec<VcpuReport>,
    ) -> Option<Inside> {
        if !self.vm.has_agent() {
            return None;
        }
        let error = result.as_ref().err();
        self.silent |= error.is_some_and(ignores_calls);
        let error = match self.inside(limit_of_counters(error, took)?) {
            Ok(inside) => return Some(inside),
            Err(error) => error,
        };
        if vcpus.is_empty() {
            *vcpus = look_at_silent(&self.vm, Some(&error));
        }
        let silent = ignores_calls(&error);
        self.silent |= silent;
        *result = match std::mem::replace(result, Ok(None)) {
            Ok(_) => Err(error),
            Err(first) => Err(if silent { first.into_fatal() } else { first }),
        };
        None
    }
}

/// Every vCPU, if `error` says that the guest did not answer. A guest that is not up has not said that it has no
/// driver.
pub(super) fn look_at_silent(vm: &impl VmControl, error: Option<&StepError>) -> Vec<VcpuReport> {
    let Some(error) = error else { return Vec::new() };
    let no_driver = matches!(error.failure(), StepFailure::NoDriver(_)) && vm.state().ready.is_none();
    if is_silent(error) || no_driver { vm.vcpus() } else { Vec::new() }
}

/// A guest that says why a resize stopped has answered.
fn is_silence(failure: &StepFailure) -> bool {
    match failure {
        StepFailure::TooLate { .. }
        | StepFailure::CallsUnread(_)
        | StepFailure::Ended(WaitError::TimedOut { .. }) => true,
        StepFailure::Stopped(stopped) => stopped.within.is_some() && stopped.state.is_none(),
        StepFailure::WithReset(failure) | StepFailure::Alarmed { failure: Some(failure), .. } => {
            is_silence(failure)
        }
        _ => false,
    }
}
