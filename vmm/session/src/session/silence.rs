//! A guest that does not answer: which failures say so, and the look at its vCPUs that follows.

use tidevm_machine::VcpuReport;

use super::VmControl;
use super::failure::{StepError, StepFailure};

/// Whether a wait for the guest reached its deadline.
pub(super) fn is_silent(error: &StepError) -> bool {
    is_silence(error.failure())
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
        StepFailure::TooLate { .. } | StepFailure::CallsUnread(_) => true,
        StepFailure::Stopped(stopped) => stopped.within.is_some() && stopped.state.is_none(),
        StepFailure::WithReset(failure) => is_silence(failure),
        _ => false,
    }
}
