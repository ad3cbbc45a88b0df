//! The registers of a device on their way to another process.
//!
//! Mirrors `vmstate_virtio_mmio` of QEMU's `hw/virtio/virtio-mmio.c`, with the queues of `hw/virtio/virtio.c`. Differs on
//! purpose: a queue that was ready is set up anew by [`SetUp::apply`], which checks its size and its addresses as it did
//! when the driver wrote them. So bytes of a file lead to no queue that a driver could not have made.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::Registers;
use super::set_up::SetUp;

/// What the driver and the device have written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersState {
    device_id: u32,
    device_features: u64,
    driver_features: u64,
    accepted_too_high: bool,
    device_features_word: u32,
    driver_features_word: u32,
    queues: Vec<QueueState>,
    queue: u64,
    status: u32,
    interrupt: u32,
    config_due: bool,
    config: Vec<u8>,
    generation: u32,
}

/// A queue. Its rings are in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QueueState {
    set_up: SetUp,
    ready: bool,
    next_avail: u16,
    next_used: u16,
}

/// Why registers are not those of this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistersError {
    /// They are of a device of another type.
    #[error("the registers are those of a device of type {found}, and not {expected}")]
    Device {
        /// The type of this device.
        expected: u32,
        /// Theirs.
        found: u32,
    },
    /// The device offered other features.
    #[error("the device offered the features {found:#x}, and this one offers {expected:#x}")]
    Features {
        /// The features of this device.
        expected: u64,
        /// Theirs.
        found: u64,
    },
    /// The number of queues or the length of the configuration is another one.
    #[error("the device had another shape: {0}")]
    Shape(&'static str),
    /// A queue that was ready cannot be used.
    #[error("queue {0} was ready, and its size or its addresses cannot be used")]
    Queue(usize),
}

impl Registers {
    /// The state now.
    #[must_use]
    pub fn state(&self) -> RegistersState {
        let queues = self.queues.iter().zip(&self.set_ups).map(|(queue, &set_up)| QueueState {
            set_up,
            ready: queue.ready(),
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        });
        RegistersState {
            device_id: self.device_id,
            device_features: self.device_features,
            driver_features: self.driver_features,
            accepted_too_high: self.accepted_too_high,
            device_features_word: self.device_features_word,
            driver_features_word: self.driver_features_word,
            queues: queues.collect(),
            queue: self.queue as u64,
            status: self.status,
            interrupt: self.interrupt,
            config_due: self.config_due,
            config: self.config.clone(),
            generation: self.generation,
        }
    }

    /// Takes on `state`. `usable` is as for [`Registers::write`].
    ///
    /// # Errors
    /// [`RegistersError`]; the registers are as after a reset, or as before.
    pub fn restore(
        &mut self,
        state: &RegistersState,
        usable: impl Fn(u64, usize) -> bool,
    ) -> Result<(), RegistersError> {
        let (expected, found) = (self.device_id, state.device_id);
        if expected != found {
            return Err(RegistersError::Device { expected, found });
        }
        let (expected, found) = (self.device_features, state.device_features);
        if expected != found {
            return Err(RegistersError::Features { expected, found });
        }
        if state.queues.len() != self.queues.len() {
            return Err(RegistersError::Shape("the number of its queues"));
        }
        if state.config.len() != self.config.len() {
            return Err(RegistersError::Shape("the length of its configuration"));
        }
        self.reset();
        for (index, saved) in state.queues.iter().enumerate() {
            let queue = &mut self.queues[index];
            if saved.ready && !saved.set_up.apply(queue, &usable) {
                self.reset();
                return Err(RegistersError::Queue(index));
            }
            queue.set_next_avail(saved.next_avail);
            queue.set_next_used(saved.next_used);
            queue.set_ready(saved.ready);
            self.set_ups[index] = saved.set_up;
        }
        self.driver_features = state.driver_features;
        self.accepted_too_high = state.accepted_too_high;
        self.device_features_word = state.device_features_word;
        self.driver_features_word = state.driver_features_word;
        self.queue = usize::try_from(state.queue).unwrap_or(usize::MAX);
        self.status = state.status;
        self.interrupt = state.interrupt;
        self.config_due = state.config_due;
        self.config.copy_from_slice(&state.config);
        self.generation = state.generation;
        Ok(())
    }
}
