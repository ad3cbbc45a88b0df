//! The sample after a step: the VM as it is seen from outside, and its guest's counters.
//!
//! Invariant: a sample that needs the guest waits for it at most as long as a boot takes.

use std::time::Duration;

use tidevm_abi::{Answer, Op, Stats};
use tidevm_machine::WaitError;

use super::failure::{StepError, StepFailure, unfit};
use super::{DeviceSample, Observer, Sample, Session, VmControl};

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    /// The state of the VM that can be seen without its guest.
    pub(super) fn outside(&self) -> Sample {
        let state = self.vm.state();
        let held = self.vm.held().ok();
        let devices = state.mem.iter().enumerate().map(|(index, mem)| DeviceSample {
            region_size: mem.region_size,
            requested: mem.requested,
            plugged: mem.plugged,
            held: held.as_ref().and_then(|held| held.get(index).copied()),
        });
        Sample { devices: devices.collect(), guest: None }
    }

    /// The guest's counters for a sample, which the guest may take `limit` to tell. A guest that resets meanwhile is
    /// asked again after it has booted.
    pub(super) fn inside(&self, limit: Duration) -> Result<Stats, StepError> {
        let deadline = self.vm.now() + self.boot_deadline();
        loop {
            self.await_ready(deadline.saturating_duration_since(self.vm.now()))?;
            match self.guest_stats(limit) {
                Err(StepError::Fatal(StepFailure::Ended(WaitError::Reset))) if self.vm.now() < deadline => {}
                result => return result,
            }
        }
    }

    pub(super) fn guest_stats(&self, limit: Duration) -> Result<Stats, StepError> {
        match self.ask(Op::Stats, limit)? {
            Answer::Stats(stats) => Ok(stats),
            other => Err(unfit(other)),
        }
    }
}
