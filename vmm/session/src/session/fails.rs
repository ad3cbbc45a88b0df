//! `fails`: whether a command failed as it was expected to.
//!
//! Invariant: a session never goes on after the end of its guest, or with a guest that ignores its calls, whatever
//! was expected.

use tidevm_abi::command::Fails;
use tidevm_machine::WaitError;

use super::failure::{Done, StepError, StepFailure};

/// The result of the step whose command ended with `result`. `silent` says that the guest ignores its calls.
pub(super) fn expected_failure(fails: &Fails, result: Done, silent: bool) -> Done {
    let error = match result {
        Ok(_) => return Err(StepError::Fatal(StepFailure::DidNotFail)),
        Err(error) if silent || has_ended(error.failure()) => return Err(error),
        // A person did it, and the command may yet fail.
        Err(error @ StepError::Failed(StepFailure::Cancelled)) => return Err(error),
        Err(error) => error,
    };
    let failure = error.failure().clone();
    let text = failure.to_string();
    if text.contains(&fails.because) {
        return Ok(Some(text));
    }
    let (because, failure) = (fails.because.clone(), Box::new(failure));
    Err(StepError::Fatal(StepFailure::FailedOtherwise { because, failure }))
}

/// Whether there is no guest to go on with.
fn has_ended(failure: &StepFailure) -> bool {
    match failure {
        StepFailure::Ended(WaitError::Reset) => false,
        StepFailure::Ended(_) => true,
        StepFailure::WithReset(failure) => has_ended(failure),
        _ => false,
    }
}
