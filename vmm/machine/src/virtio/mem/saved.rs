//! The virtio-mem device on its way to another process: the bytes of [`virtio_mem::device::DeviceState`], and what this VMM
//! keeps beside the device.
//!
//! A target that the device has not taken yet is taken before, so that none is left behind.

use serde::{Deserialize, Serialize};
use virtio_mem::device::{Device, DeviceState, PluggedRuns, StateError};

use super::Mem;
use crate::virtio::mmio::{RegistersError, RegistersState};

/// The state of a virtio-mem device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    registers: RegistersState,
    device: Vec<u8>,
    /// See [`MemStatus::generation`](crate::MemStatus::generation).
    generation: u32,
    /// See [`MemStatus::seen`](crate::MemStatus::seen).
    seen: Option<u32>,
}

/// Why a state is not that of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemStateError {
    /// Its registers are not.
    #[error(transparent)]
    Registers(#[from] RegistersError),
    /// The state of the device is refused.
    #[error(transparent)]
    Device(#[from] StateError),
    /// It is that of another region.
    #[error(
        "it is the state of another region, of {region_size} bytes at {addr:#x} in blocks of {block_size}"
    )]
    Region {
        /// Guest-physical address of the region.
        addr: u64,
        /// Its size in bytes.
        region_size: u64,
        /// Its device block in bytes.
        block_size: u64,
    },
}

impl MemState {
    /// What is plugged.
    ///
    /// # Errors
    /// [`StateError`]: the bytes are no state, or contradict themselves.
    pub fn plugged(&self) -> Result<PluggedRuns, StateError> {
        Ok(self.device()?.1.plugged_runs())
    }

    fn device(&self) -> Result<(DeviceState, Device), StateError> {
        let state = DeviceState::from_bytes(&self.device)?;
        let device = Device::from_state(&state)?;
        Ok((state, device))
    }
}

impl Mem {
    /// The state now. The driver is told of a target that was not taken yet.
    ///
    /// # Errors
    /// [`StateError::Changing`] while a request is carried out.
    pub fn state(&mut self) -> Result<MemState, StateError> {
        self.apply_target();
        let device = self.device.state()?.to_bytes();
        let registers = self.transport.registers.state();
        Ok(MemState { registers, device, generation: self.generation, seen: self.seen })
    }

    /// Takes on `state`. The caller has made the memory of [`MemState::plugged`] usable.
    ///
    /// # Errors
    /// [`MemStateError`]; the device cannot be used.
    pub fn restore(&mut self, state: &MemState) -> Result<(), MemStateError> {
        let (saved, device) = state.device()?;
        let fixed = saved.config();
        if fixed != self.device.state()?.config() {
            let (addr, region_size, block_size) = (fixed.addr, fixed.region_size, fixed.block_size);
            return Err(MemStateError::Region { addr, region_size, block_size });
        }
        self.transport.restore(self.memory.view(), &state.registers)?;
        self.device = device;
        (self.generation, self.seen) = (state.generation, state.seen);
        // A retry that was due is announced by the next turn.
        self.retry_announced = false;
        self.publish(None);
        Ok(())
    }
}
