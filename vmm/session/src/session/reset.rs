//! `reset`: the VMM resets the machine, and the step waits until its guest is up again.
//!
//! Mirrors QEMU's `system_reset`, which returns at once. The step waits, because no later step makes sense before: a
//! guest is up when it has sent its first report, if it has an agent, and drives each device that was driven before.
//! What the driver then plugs is not waited for: `expect plugged == SIZE within DURATION` is for that.
//!
//! Invariant: after the step no workload of before is alive, and no call of before is open.

use std::time::Duration;

use tidevm_machine::{MemStatus, State, WaitError};

use super::failure::{Done, StepError, StepFailure};
use super::{Observer, Session, VmControl};

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    pub(super) fn reset(&mut self, within: Option<Duration>) -> Done {
        let limit = within.unwrap_or_else(|| self.boot_deadline());
        let before = self.vm.state();
        let refused = |refusal| StepError::Failed(StepFailure::ResetRefused(refusal));
        let request = self.vm.reset().map_err(refused)?;
        let reports = self.vm.has_agent();
        let mut missing = String::new();
        let up = self.wait(limit, "the reset", |state| {
            let found = missing_after_reset(request, &before, state, reports);
            found.map_or(Some(()), |what| {
                missing = what;
                None
            })
        });
        // The reset of this step may have come in time, even if the guest does not come up.
        if self.vm.state().reset_request >= request {
            self.resets += 1;
            self.forget_workloads();
            self.skip_console();
        }
        match up {
            Ok(()) => Ok(None),
            // A later look might find something else missing.
            Err(WaitError::Deadline { .. }) => {
                Err(StepError::Fatal(StepFailure::TooLate { what: missing, after: limit }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The workloads went with a reset that the script asked for.
    fn forget_workloads(&mut self) {
        self.workloads.lose();
        for call in self.workloads.lose_churns() {
            // The answer is that the guest was reset.
            drop(self.vm.answer(call, Duration::ZERO, "the end of a churn before the reset"));
        }
    }
}

/// The next thing that a machine in `state` lacks after the reset with number `request`, in words. `before` is its state
/// before, and `reports` tells whether its guest reports. A reset that the guest made before is not the one that was
/// asked for: that one is still to come, and would take away whatever the next steps make.
fn missing_after_reset(request: u64, before: &State, state: &State, reports: bool) -> Option<String> {
    if state.reset_request < request {
        return Some("the reset of the machine".to_owned());
    }
    if reports && state.ready.is_none() {
        return Some("the first report of the guest after the reset".to_owned());
    }
    let undriven = |(before, now): (&MemStatus, &MemStatus)| before.driver && !now.driver;
    let device = before.mem.iter().zip(&state.mem).position(undriven)?;
    Some(format!("the driver of hotplug device {device} after the reset"))
}
