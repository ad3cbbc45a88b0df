//! The control channel: calls to the guest, and reports from the guest.
//!
//! Mirrors the virtio-console device without `MULTIPORT` (virtio 1.3, section 5.3): queue 0 carries [`Call`]s
//! to the driver, queue 1 [`Report`]s from it. Differs on purpose: each buffer is one record, not a part of a
//! byte stream.
//!
//! Invariants: at most [`MAX_UNREAD`] calls wait. Of a report only the fields of [`crate::State`] are kept.
//! So a guest that does not read, or writes without end, takes no memory of the VMM.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidevm_abi::{Call, MAX_RECORD, Report, decode, encode};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::Memory;
use crate::state::SharedState;
use crate::virtio::mmio::{Effect, Registers, RegistersError, RegistersState};
use crate::virtio::{RegisterDevice, Transport};

/// Most calls that may wait for the guest to read them.
pub const MAX_UNREAD: usize = 64;

/// Queue that carries calls to the guest.
pub const CALLS: usize = 0;

/// Queue that carries reports to the VMM.
pub const REPORTS: usize = 1;

const QUEUE_SIZE: u16 = 64;

/// Columns, rows, number of ports, emergency write. Their features are not offered, so they have no meaning.
const CONFIG: [u8; 12] = [0; 12];

/// The control channel's device.
#[derive(Debug)]
pub struct Control {
    transport: Transport,
    memory: Arc<Memory>,
    state: Arc<SharedState>,
    unread: VecDeque<Call>,
    kicks: [EventFd; 2],
}

/// The channel on its way to another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlState {
    registers: RegistersState,
    unread: Vec<Call>,
}

/// The guest has not read [`MAX_UNREAD`] calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallsQueueFull;

impl Control {
    /// A channel without calls. `interrupt` reaches the driver. Each of `kicks` is written when the queue
    /// with the same index has new buffers.
    ///
    /// # Errors
    /// Never with this device's queue sizes.
    pub(crate) fn new(
        memory: Arc<Memory>,
        state: Arc<SharedState>,
        interrupt: EventFd,
        kicks: [EventFd; 2],
    ) -> io::Result<Self> {
        let registers =
            Registers::new(VIRTIO_ID_CONSOLE, 0, 0, &[QUEUE_SIZE; 2], &CONFIG).map_err(io::Error::other)?;
        let transport = Transport::new(registers, interrupt);
        Ok(Self { transport, memory, state, unread: VecDeque::new(), kicks })
    }

    /// Sends a call to the guest, as soon as the guest has a buffer for it.
    ///
    /// # Errors
    /// [`CallsQueueFull`]; the call is not sent.
    pub fn call(&mut self, call: Call) -> Result<(), CallsQueueFull> {
        if self.unread.len() >= MAX_UNREAD {
            return Err(CallsQueueFull);
        }
        self.unread.push_back(call);
        self.serve_calls();
        Ok(())
    }

    /// First part of a system reset: there is no driver. Calls that are still made wait.
    pub fn disconnect(&mut self) {
        self.transport.registers.reset();
    }

    /// The channel now.
    #[must_use]
    pub fn state(&self) -> ControlState {
        ControlState {
            registers: self.transport.registers.state(),
            unread: self.unread.iter().copied().collect(),
        }
    }

    /// Takes on `state`. Of the calls that wait, no more are taken than may wait.
    ///
    /// # Errors
    /// [`RegistersError`]; the device cannot be used.
    pub fn restore(&mut self, state: &ControlState) -> Result<(), RegistersError> {
        self.transport.restore(self.memory.view(), &state.registers)?;
        self.unread = state.unread.iter().copied().take(MAX_UNREAD).collect();
        Ok(())
    }

    /// Last part of a system reset: the guest that could have answered the calls that wait is gone.
    pub fn forget_calls(&mut self) {
        self.unread.clear();
    }

    /// Writes waiting calls to the buffers that the driver offers. Returns whether there may be more to do.
    pub fn serve_calls(&mut self) -> bool {
        let mut more = false;
        for _ in 0..self.transport.batch(CALLS) {
            more = false;
            let Some(call) = self.unread.front() else { break };
            let mut record = [0; MAX_RECORD];
            let Ok(record) = encode(call, &mut record) else {
                // Longer than the longest record: a defect of the abi crate, tested there.
                self.unread.pop_front();
                continue;
            };
            let view = self.memory.view();
            let Some(chain) = self.transport.pop(&*view, CALLS, 0, record.len()) else { break };
            let written = chain.write(&view, record);
            if written > 0 {
                self.unread.pop_front();
            } else {
                self.state.change(|state| state.bad_records += 1);
            }
            self.transport.push(&*view, CALLS, &chain, written);
            more = true;
        }
        self.transport.notify_used();
        more
    }

    /// Reads the reports that the driver wrote. Returns whether there may be more.
    pub fn serve_reports(&mut self) -> bool {
        let mut more = true;
        for _ in 0..self.transport.batch(REPORTS) {
            let view = self.memory.view();
            // One byte more than the longest record, so that a longer one is recognised.
            let Some(chain) = self.transport.pop(&*view, REPORTS, MAX_RECORD + 1, 0) else {
                more = false;
                break;
            };
            match decode::<Report>(chain.request()) {
                Ok(report) => self.state.report(report),
                Err(_) => self.state.change(|state| state.bad_records += 1),
            }
            self.transport.push(&*view, REPORTS, &chain, 0);
        }
        self.transport.notify_used();
        more
    }
}

#[cfg(feature = "hosted")]
impl Control {
    /// The device's registers.
    pub(crate) fn registers(&self) -> &Registers {
        &self.transport.registers
    }
}

impl RegisterDevice for Control {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.registers.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.transport.write(|| self.memory.view(), offset, data) {
            Effect::None => Ok(()),
            // A driver may have filled its queue before it was ready.
            Effect::StatusChanged => self.kicks[CALLS].write(1),
            Effect::Notify(queue) => self.kicks[queue].write(1),
        }
    }
}

#[cfg(test)]
impl Control {
    /// The number of calls that wait to be read.
    pub(crate) fn unread(&self) -> usize {
        self.unread.len()
    }
}

#[cfg(test)]
mod tests;
