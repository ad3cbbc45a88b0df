//! The sample after a step: the VM as it is seen from outside, and its guest's counters.
//!
//! Invariants: a sample has a bounded size. A sample that needs the guest waits for it at most as long as a boot takes.

use std::time::Duration;

use tidevm_abi::{Answer, Op, Stats};
use tidevm_machine::WaitError;

use super::failure::{StepError, StepFailure, unfit};
use super::{Blocks, DeviceSample, Observer, Sample, Session, VmControl};

/// Most entries of a sample about memory blocks. A guest has more only if it is fragmented.
const MAX_SAMPLED_RUNS: usize = 64;

/// What a guest tells of itself.
pub(super) type Inside = (Stats, Option<Blocks>);

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    /// The state of the VM that can be seen without its guest.
    pub(super) fn outside(&self) -> Sample {
        let state = self.vm.state();
        let held = self.vm.held().ok();
        let requests = self.vm.mem_requests();
        let devices = state.mem.iter().enumerate().map(|(index, mem)| DeviceSample {
            region: mem.region,
            region_size: mem.region_size,
            requested: mem.requested,
            plugged: mem.plugged,
            guest_usable: mem.report.map(|report| report.plugged),
            held: held.as_ref().and_then(|held| held.get(index).copied()),
            requests: requests.get(index).copied().unwrap_or_default(),
        });
        Sample { devices: devices.collect(), resets: state.resets, guest: None, blocks: None }
    }

    /// The guest's counters for a sample, and its memory blocks for an observer that follows the VM. The guest may take
    /// `limit` for each answer. A guest that resets meanwhile is asked again after it has booted.
    pub(super) fn inside(&self, limit: Duration) -> Result<Inside, StepError> {
        self.watch.sampling(|| self.ask_for_sample(limit))
    }

    fn ask_for_sample(&self, limit: Duration) -> Result<Inside, StepError> {
        let deadline = self.vm.now() + self.boot_deadline();
        loop {
            self.await_ready(deadline.saturating_duration_since(self.vm.now()))?;
            match self.guest_stats(limit).and_then(|stats| Ok((stats, self.first_blocks(limit)?))) {
                Err(StepError::Fatal(StepFailure::Ended(WaitError::Reset))) if self.vm.now() < deadline => {}
                result => return result,
            }
        }
    }

    /// The guest's memory blocks, for an observer that follows the VM.
    fn first_blocks(&self, limit: Duration) -> Result<Option<Blocks>, StepError> {
        if !self.watch.follows() || self.vm.state().mem.is_empty() {
            return Ok(None);
        }
        self.list_blocks(limit, MAX_SAMPLED_RUNS).map(Some)
    }

    pub(super) fn guest_stats(&self, limit: Duration) -> Result<Stats, StepError> {
        match self.ask(Op::Stats, limit)? {
            Answer::Stats(stats) => Ok(stats),
            other => Err(unfit(other)),
        }
    }
}
