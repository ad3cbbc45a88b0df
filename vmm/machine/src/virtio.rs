//! Virtio devices behind MMIO registers.
//!
//! A device consists of its [`Transport`] and of its own handling of its queues. The transport is the
//! registers ([`mmio::Registers`], pure) and the interrupt line. vCPU threads access the registers, the event
//! loop serves the queues, or a thread of its own that of a disk, and one mutex around the device orders the two.

use std::io;
use std::ops::Deref;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::View;

pub mod balloon;
pub mod block;
pub mod chain;
pub mod control;
#[cfg(test)]
pub(crate) mod fake;
pub mod mem;
pub mod mmio;

use chain::{Chain, ChainError};
use mmio::{Effect, Registers, RegistersError, RegistersState};

/// How a device and its driver reach each other: registers, queues and an interrupt line.
#[derive(Debug)]
pub struct Transport {
    /// The registers, as the driver sees them.
    pub registers: Registers,
    interrupt: EventFd,
    /// Whether the driver wants to be told of the buffers that went back on the queue with the same index.
    wants: Vec<bool>,
}

impl Transport {
    /// A transport that raises interrupts by writing to `interrupt`.
    #[must_use]
    pub fn new(registers: Registers, interrupt: EventFd) -> Self {
        let wants = vec![false; registers.queues()];
        Self { registers, interrupt, wants }
    }

    /// The driver writes to a register. Queues lie in the memory that `view` shows.
    pub fn write<M>(&mut self, view: impl Fn() -> M, offset: u64, data: &[u8]) -> Effect
    where
        M: Deref<Target = View>,
    {
        let usable = |start, size| view().check_range(GuestAddress(start), size, Permissions::ReadWrite);
        let effect = self.registers.write(offset, data, usable);
        // A change of configuration that came while the driver started.
        if effect == Effect::StatusChanged && self.registers.is_interrupt_pending() {
            self.raise();
        }
        effect
    }

    /// Tells the driver of the buffers that went back since the last call, if it wants to be told of those of one of
    /// the queues.
    pub fn notify_used(&mut self) {
        let wanted = self.wants.iter_mut().fold(false, |any, wants| any | std::mem::take(wants));
        if wanted && self.registers.set_used_buffer_interrupt() {
            self.raise();
        }
    }

    /// Tells the driver that the configuration changed.
    pub fn notify_config(&mut self) {
        if self.registers.set_config_interrupt() {
            self.raise();
        }
    }

    /// Takes the next chain from queue `index`, reads its first `readable` bytes, and notes where its first
    /// `writable` bytes can be written. A queue that cannot be read puts the device into
    /// `DEVICE_NEEDS_RESET`; there are no more chains until the reset.
    pub fn pop<M>(&mut self, view: M, index: usize, readable: usize, writable: usize) -> Option<Chain>
    where
        M: Deref<Target = View>,
    {
        if !self.registers.running() {
            return None;
        }
        let queue = self.registers.queue_mut(index).filter(|queue| queue.ready())?;
        match Chain::pop(queue, &view, readable, writable) {
            Ok(chain) => chain,
            Err(error) => {
                self.broken(index, &error);
                None
            }
        }
    }

    /// Gives a chain back to the driver with the number of bytes written to it. A used ring that cannot be
    /// written puts the device into `DEVICE_NEEDS_RESET`. A driver that is gone, or has taken its queue back, gets nothing
    /// back.
    pub fn push<M>(&mut self, view: M, index: usize, chain: &Chain, written: u32)
    where
        M: Deref<Target = View>,
    {
        if !self.registers.running() {
            return;
        }
        let Some(queue) = self.registers.queue_mut(index).filter(|queue| queue.ready()) else { return };
        match queue.add_used(&*view, chain.head(), written) {
            Ok(()) => self.wants[index] |= chain::wants_interrupt(queue, &view),
            Err(error) => self.broken(index, &error.into()),
        }
    }

    /// The number of chains to serve at a time. It is limited so that a driver that offers chains without end
    /// leaves time for other devices.
    #[must_use]
    pub fn batch(&self, index: usize) -> u16 {
        self.registers.queue(index).map_or(0, Queue::size)
    }

    fn broken(&mut self, index: usize, error: &ChainError) {
        log::debug!("virtio device {}: queue {index}: {error}", self.registers.device_id());
        if self.registers.set_needs_reset() {
            self.raise();
        }
    }

    fn raise(&self) {
        // Fails only when the counter is full. The interrupt is pending then.
        if let Err(error) = self.interrupt.write(1) {
            log::debug!("interrupt not raised: {error}");
        }
    }

    /// Takes on the registers of `state`, and raises the interrupt that was pending: whether the driver had it by then is not
    /// known, and an interrupt without a reason does nothing.
    ///
    /// # Errors
    /// [`RegistersError`]; the device cannot be used.
    pub fn restore<M>(&mut self, view: M, state: &RegistersState) -> Result<(), RegistersError>
    where
        M: Deref<Target = View>,
    {
        let usable = |start, size| view.check_range(GuestAddress(start), size, Permissions::ReadWrite);
        self.registers.restore(state, usable)?;
        if self.registers.is_interrupt_pending() {
            self.raise();
        }
        Ok(())
    }
}

/// Registers that vCPUs access.
pub trait RegisterDevice: Send {
    /// Reads `data.len()` bytes at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// The event loop could not be notified. The device waits for the next notification.
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
}
