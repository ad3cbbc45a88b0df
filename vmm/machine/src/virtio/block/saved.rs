//! The disk on its way to another process.
//!
//! The content of the medium does not go along: it is there, in its file. A save waits until no request is under way, so
//! there is nothing to remember of one. What waits in the queue is in guest memory.

use serde::{Deserialize, Serialize};

use super::{Block, config};
use crate::virtio::mmio::{RegistersError, RegistersState};

/// The state of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    registers: RegistersState,
    sectors: u64,
}

impl BlockState {
    /// The size of the disk, in sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }
}

impl Block {
    /// The state now. No request is under way.
    #[must_use]
    pub fn state(&self) -> BlockState {
        BlockState { registers: self.transport.registers.state(), sectors: self.sectors }
    }

    /// Takes on `state`, of a disk of the same size.
    ///
    /// # Errors
    /// [`RegistersError`]; the device cannot be used.
    pub fn restore(&mut self, state: &BlockState) -> Result<(), RegistersError> {
        self.transport.restore(self.memory.view(), &state.registers)?;
        // The size of the medium is a fact, whatever the file says.
        self.transport.registers.set_config(&config(self.sectors));
        self.publish();
        Ok(())
    }
}
