//! The balloon on its way to another process.
//!
//! A buffer that the driver has lent goes along by its index, which is all that is needed to give it back. A report that is
//! being given back when the state is taken goes back as it is: its memory stays with the guest, which may use it again.

use serde::{Deserialize, Serialize};

use super::{Balloon, QUEUES, Report};
use crate::virtio::chain::Chain;
use crate::virtio::mmio::{RegistersError, RegistersState};

/// The state of a balloon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    registers: RegistersState,
    /// The chain that the driver has lent for statistics.
    lent: Option<u16>,
    /// The queue and the chain of a report on its way.
    report: Option<(u8, u16)>,
}

impl Balloon {
    /// The state now.
    #[must_use]
    pub fn state(&self) -> BalloonState {
        BalloonState {
            registers: self.transport.registers.state(),
            lent: self.lent.as_ref().map(Chain::head),
            report: self.report.as_ref().map(|report| (report.queue as u8, report.chain.head())),
        }
    }

    /// Takes on `state`.
    ///
    /// # Errors
    /// [`RegistersError`]; the device cannot be used.
    pub fn restore(&mut self, state: &BalloonState) -> Result<(), RegistersError> {
        self.transport.restore(self.memory.view(), &state.registers)?;
        self.lent = state.lent.map(Chain::of_head);
        self.report = match state.report {
            Some((queue, _)) if usize::from(queue) >= QUEUES => {
                return Err(RegistersError::Queue(queue.into()));
            }
            Some((queue, head)) => {
                Some(Report { queue: queue.into(), chain: Chain::of_head(head), next: 0, done: 0 })
            }
            None => None,
        };
        self.publish();
        Ok(())
    }
}
