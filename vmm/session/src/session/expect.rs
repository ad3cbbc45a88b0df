//! `expect`: compares a number of the VM or of its guest with the expected one, now or within a time.

use tidevm_abi::Metric;
use tidevm_abi::command::Expect;
use tidevm_abi::metric::VmmMetric;

use super::failure::{Done, StepError, StepFailure};
use super::{ANSWER_DEADLINE, Observer, POLL, Session, VmControl};

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    pub(super) fn expect(&mut self, expect: &Expect) -> Done {
        let deadline = self.vm.now() + expect.within.unwrap_or_default();
        loop {
            let value = self.metric(expect.metric, expect.device)?;
            if expect.comparison.holds(value, expect.value) {
                return Ok(None);
            }
            let left = deadline.saturating_duration_since(self.vm.now());
            if left.is_zero() {
                let failure = StepFailure::Unexpected { metric: expect.metric, value };
                return Err(StepError::Fatal(failure));
            }
            self.pause(left.min(POLL))?;
        }
    }

    fn metric(&self, metric: Metric, device: usize) -> Result<u64, StepError> {
        match metric {
            Metric::Vmm(VmmMetric::Plugged) => Ok(self.mem(device)?.plugged.0),
            Metric::Vmm(VmmMetric::Requested) => Ok(self.mem(device)?.requested.0),
            Metric::Vmm(VmmMetric::Resets) => Ok(self.vm.state().resets),
            Metric::Vmm(VmmMetric::HostHeld) => {
                // The device exists, or this fails.
                self.mem(device)?;
                let silent = |error: String| StepError::Fatal(StepFailure::HostSilent(error));
                let held = self.vm.held().map_err(|error| silent(error.to_string()))?;
                held.get(device).map(|size| size.0).ok_or_else(|| silent("no such device".to_owned()))
            }
            Metric::Guest(metric) => Ok(metric.read(&self.guest_stats(ANSWER_DEADLINE)?)),
        }
    }
}
