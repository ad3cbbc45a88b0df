//! `expect`: compares a number of the VM or of its guest with the expected one, now or within a time.

use tidevm_abi::command::Expect;
use tidevm_abi::metric::VmmMetric;
use tidevm_abi::{Metric, Size};
use tidevm_machine::MemStatus;

use super::failure::{Done, StepError, StepFailure};
use super::{ANSWER_DEADLINE, Observer, POLL, Session, VmControl};

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    pub(super) fn expect(&mut self, expect: &Expect) -> Done {
        let deadline = self.vm.now() + expect.within.unwrap_or_default();
        loop {
            let value = self.metric(expect)?;
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

    fn metric(&self, expect: &Expect) -> Result<u64, StepError> {
        match expect.metric {
            Metric::Vmm(VmmMetric::Plugged) => self.of_devices(expect.device, |mem| mem.plugged),
            Metric::Vmm(VmmMetric::Requested) => self.of_devices(expect.device, |mem| mem.requested),
            Metric::Vmm(VmmMetric::Resets) => Ok(self.vm.state().resets),
            Metric::Vmm(VmmMetric::HostHeld) => {
                let silent = |error: String| StepError::Fatal(StepFailure::HostSilent(error));
                let held = self.vm.held().map_err(|error| silent(error.to_string()))?;
                one_or_all(&held, expect.device)
            }
            Metric::Guest(metric) => {
                let stats = self.guest_stats(ANSWER_DEADLINE)?;
                metric.read(&stats).ok_or(StepError::Fatal(StepFailure::NoMetric(expect.metric)))
            }
        }
    }

    /// What `read` finds in the state of one device or of all.
    fn of_devices(&self, device: Option<usize>, read: fn(&MemStatus) -> Size) -> Result<u64, StepError> {
        let sizes: Vec<Size> = self.vm.state().mem.iter().map(read).collect();
        one_or_all(&sizes, device)
    }
}

/// The size of one device, or the sum over all, of which there has to be one.
fn one_or_all(sizes: &[Size], device: Option<usize>) -> Result<u64, StepError> {
    let size = match device {
        Some(device) => sizes.get(device).copied(),
        None => (!sizes.is_empty()).then(|| sizes.iter().copied().sum()),
    };
    let missing = || StepError::Fatal(StepFailure::NoDevice(device.unwrap_or(0)));
    size.map(|Size(bytes)| bytes).ok_or_else(missing)
}
