//! The control channel: calls to the guest, and reports from the guest.
//!
//! Mirrors the virtio-console device without `MULTIPORT` (virtio 1.3, section 5.3): queue 0 carries [`Call`]s
//! to the driver, queue 1 [`Report`]s from it. Differs on purpose: each buffer is one record, not a part of a
//! byte stream. For an agent in Linux it has `MULTIPORT` and one port ([`port`]).
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

pub mod port;

use port::Port;

/// Most calls that may wait for the guest to read them.
pub const MAX_UNREAD: usize = 64;

/// Queue that carries calls to the guest.
pub const CALLS: usize = 0;

/// Queue that carries reports to the VMM.
pub const REPORTS: usize = 1;

const QUEUE_SIZE: u16 = 64;

/// Bytes of the configuration: columns, rows, number of ports, emergency write. Without their features they have no meaning.
const CONFIG_SIZE: usize = 12;

/// Where the number of ports is.
const PORTS_AT: usize = 4;

/// The control channel's device.
#[derive(Debug)]
pub struct Control {
    transport: Transport,
    memory: Arc<Memory>,
    state: Arc<SharedState>,
    unread: VecDeque<Call>,
    /// Of the device that Linux's driver knows.
    port: Option<Port>,
    kicks: [EventFd; 2],
}

/// The channel on its way to another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlState {
    registers: RegistersState,
    unread: Vec<Call>,
    port: Option<Port>,
}

/// The guest has not read [`MAX_UNREAD`] calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallsQueueFull;

impl Control {
    /// A channel without calls, for an agent in Linux if it `has_port`. `interrupt` reaches the driver. Each of `kicks` is
    /// written when the queue with the same index has new buffers, or the one that is two behind it.
    ///
    /// # Errors
    /// Never with this device's queue sizes.
    pub(crate) fn new(
        memory: Arc<Memory>,
        state: Arc<SharedState>,
        interrupt: EventFd,
        kicks: [EventFd; 2],
        has_port: bool,
    ) -> io::Result<Self> {
        let mut config = [0; CONFIG_SIZE];
        let (mut features, mut queues) = (0, 2);
        if has_port {
            config[PORTS_AT..PORTS_AT + 4].copy_from_slice(&port::PORTS.to_le_bytes());
            (features, queues) = (1 << port::F_MULTIPORT, port::QUEUES);
        }
        let sizes = [QUEUE_SIZE; port::QUEUES];
        let registers = Registers::new(VIRTIO_ID_CONSOLE, features, features, &sizes[..queues], &config)
            .map_err(io::Error::other)?;
        let transport = Transport::new(registers, interrupt);
        let port = has_port.then(Port::default);
        Ok(Self { transport, memory, state, unread: VecDeque::new(), port, kicks })
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

    /// Number of queues.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.transport.registers.queues()
    }

    /// First part of a system reset: there is no driver. Calls that are still made wait.
    pub fn disconnect(&mut self) {
        self.transport.registers.reset();
        self.forget_driver();
    }

    /// The next driver is told of the port anew.
    fn forget_driver(&mut self) {
        self.port = self.port.map(|_| Port::default());
    }

    /// The channel now.
    #[must_use]
    pub fn state(&self) -> ControlState {
        ControlState {
            registers: self.transport.registers.state(),
            unread: self.unread.iter().copied().collect(),
            port: self.port,
        }
    }

    /// Takes on `state`. Of the calls that wait, no more are taken than may wait.
    ///
    /// # Errors
    /// [`RegistersError`]; the device cannot be used.
    pub fn restore(&mut self, state: &ControlState) -> Result<(), RegistersError> {
        self.transport.restore(self.memory.view(), &state.registers)?;
        self.unread = state.unread.iter().copied().take(MAX_UNREAD).collect();
        // Which features were offered, the registers have checked.
        self.port = self.port.map(|port| state.port.unwrap_or(port));
        Ok(())
    }

    /// Last part of a system reset: the guest that could have answered the calls that wait is gone.
    pub fn forget_calls(&mut self) {
        self.unread.clear();
    }

    /// Writes waiting calls to the buffers that the driver offers. Returns whether there may be more to do.
    pub fn serve_calls(&mut self) -> bool {
        let mut more = self.tell_of_port();
        let is_open = self.port.is_none_or(|port| port.is_open());
        let calls = if is_open { self.transport.batch(CALLS) } else { 0 };
        for _ in 0..calls {
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
        more |= self.hear_of_port();
        self.transport.notify_used();
        more
    }

    /// Writes what the driver is to be told of the port. Returns whether there may be more to do.
    fn tell_of_port(&mut self) -> bool {
        let Some(port) = &mut self.port else { return false };
        for _ in 0..self.transport.batch(port::TO_DRIVER) {
            let Some(message) = port.due() else { return false };
            let view = self.memory.view();
            let Some(chain) = self.transport.pop(&*view, port::TO_DRIVER, 0, message.len()) else {
                return false;
            };
            let written = chain.write(&view, &message);
            if written > 0 {
                port.sent();
            } else {
                self.state.change(|state| state.bad_records += 1);
            }
            self.transport.push(&*view, port::TO_DRIVER, &chain, written);
        }
        port.due().is_some()
    }

    /// Reads what the driver says of the port, and does what follows. Returns whether there may be more.
    fn hear_of_port(&mut self) -> bool {
        let Some(port) = &mut self.port else { return false };
        let mut more = true;
        for _ in 0..self.transport.batch(port::FROM_DRIVER) {
            let view = self.memory.view();
            let Some(chain) = self.transport.pop(&*view, port::FROM_DRIVER, port::MESSAGE, 0) else {
                more = false;
                break;
            };
            if !port.take(chain.request()) {
                self.state.change(|state| state.bad_records += 1);
            }
            self.transport.push(&*view, port::FROM_DRIVER, &chain, 0);
        }
        self.serve_calls();
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
            Effect::StatusChanged => {
                if !self.transport.registers.running() {
                    self.forget_driver();
                }
                // A driver may have filled its queue before it was ready.
                self.kicks[CALLS].write(1)
            }
            Effect::Notify(queue) => self.kicks[queue % self.kicks.len()].write(1),
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
