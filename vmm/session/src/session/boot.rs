//! The boot of the guest, and `wait boot`.
//!
//! tidevm's own guest reports that it is up, and so does the agent in Linux. Of a kernel without an agent the devices tell it: each
//! has its driver.

use std::time::Duration;

use tidevm_abi::Size;
use tidevm_abi::kernel::RECORDS_VERSION;
use tidevm_machine::{Ready, State, WaitError};

use super::failure::{Done, SessionError, StepError, StepFailure};
use super::{ANSWER_DEADLINE, Booted, Observer, Session, VmControl, deadline};

/// What a Linux guest needs before its agent can report.
const AGENT_NEEDS: &str = ", whose agent needs an initramfs (CONFIG_BLK_DEV_INITRD) and the driver virtio_console, built in or \
                           loaded by the initrd";

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    pub(super) fn boot_deadline(&self) -> Duration {
        deadline::boot(Size(self.vm.boot_memory()), self.vm.reports())
    }

    pub(super) fn boot(&mut self, limit: Duration) -> Result<(), SessionError> {
        let ready = self.vm.has_agent().then(|| self.await_ready(limit)).transpose()?;
        self.summary.boot = ready.map(|ready| ready.after);
        let mut sample = self.outside();
        if ready.is_some() {
            let (stats, blocks) = self.inside(ANSWER_DEADLINE)?;
            (sample.guest, sample.blocks) = (Some(stats), blocks);
        }
        let at = self.vm.now() - self.start;
        self.watch.observer().boot(&Booted { at, ready, sample }).map_err(SessionError::Output)
    }

    pub(super) fn await_ready(&self, limit: Duration) -> Result<Ready, StepError> {
        let memory = Size(self.vm.boot_memory());
        let mut what = format!("the first report of a guest with {memory} of boot memory");
        if !self.vm.reports() {
            what.push_str(AGENT_NEEDS);
        }
        let ready = |state: &State| state.ready.map(Ok).or(state.foreign_records.map(Err));
        self.wait(limit, &what, ready)?
            .map_err(|version| StepError::Fatal(StepFailure::ForeignAgent { version, own: RECORDS_VERSION }))
    }

    /// Waits until the guest is up, also after a reset.
    pub(super) fn wait_boot(&self, within: Option<Duration>) -> Done {
        let limit = within.unwrap_or_else(|| self.boot_deadline());
        if self.vm.has_agent() {
            return self.await_ready(limit).map(|_| None);
        }
        if self.vm.state().mem.is_empty() {
            return Err(StepError::Failed(StepFailure::NoSignOfBoot));
        }
        let mut undriven = 0;
        let driven = |state: &State| match state.mem.iter().position(|mem| !mem.driver) {
            Some(device) => {
                undriven = device;
                None
            }
            None => Some(()),
        };
        match self.wait(limit, "the drivers of all hotplug devices", driven) {
            Ok(()) => Ok(None),
            Err(WaitError::Deadline { after, .. }) => {
                let what = format!("the driver of hotplug device {undriven}");
                Err(StepError::Fatal(StepFailure::TooLate { what, after }))
            }
            Err(error) => Err(error.into()),
        }
    }
}
