//! The virtio-mem device: its queue served by [`virtio_mem::device`], its blocks by
//! [`crate::memory`].
//!
//! Mirrors virtio 1.3, section 5.15. Every chain that can be read at all goes back, and the device
//! goes on: a request that is too short with ERROR, one whose answer does not fit, or whose buffers
//! it unplugged itself, with length 0.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tidevm_abi::Size;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_mem::blocks::BlockRange;
use virtio_mem::device::{Backing, Busy, Device, DeviceConfig, ResizeError as DeviceError};
use virtio_mem::wire::{F_UNPLUGGED_INACCESSIBLE, REQUEST_SIZE, RESPONSE_SIZE, Response, ResponseType};
use vmm_sys_util::eventfd::EventFd;

use crate::config::HotplugConfig;
use crate::memory::Memory;
use crate::state::{MemStatus, SharedState};
use crate::virtio::mmio::{Effect, Registers};
use crate::virtio::{RegisterDevice, Transport};

/// Most requests that a driver can have under way.
const QUEUE_SIZE: u16 = 128;

/// When to tell a driver that was answered BUSY to look again.
pub const RETRY_AFTER: Duration = Duration::from_millis(100);

/// One virtio-mem device.
#[derive(Debug)]
pub struct Mem {
    transport: Transport,
    device: Device,
    blocks: RegionMemory,
    state: Arc<SharedState>,
    kick: EventFd,
    /// A request was answered BUSY, and the driver was not told to retry since.
    retry_due: bool,
}

/// What is to be done after a queue was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// A request was answered BUSY: see [`RETRY_AFTER`].
    pub busy: bool,
    /// There may be more; others come first.
    pub more: bool,
}

/// A region of guest memory as blocks.
#[derive(Debug)]
struct RegionMemory {
    memory: Arc<Memory>,
    index: usize,
    start: u64,
    block_size: u64,
    /// The host refused, and nothing succeeded since. A guest may ask without end.
    refused: bool,
}

impl Mem {
    /// Device `index`, which runs hotplug region `index` of `memory`. `interrupt` reaches the
    /// driver, `kick` is written when the queue has requests.
    ///
    /// # Errors
    /// The configuration contradicts itself, which [`crate::Config::validate`] finds first.
    pub(crate) fn new(
        index: usize,
        config: &HotplugConfig,
        memory: Arc<Memory>,
        state: Arc<SharedState>,
        interrupt: EventFd,
        kick: EventFd,
    ) -> io::Result<Self> {
        let region = &memory.regions()[index];
        let start = region.start;
        let mut device = Device::new(DeviceConfig {
            addr: start,
            region_size: config.size.0,
            block_size: config.block.0,
            node_id: config.node,
        })
        .map_err(io::Error::other)?;
        device.resize(config.requested.0).map_err(io::Error::other)?;
        let required = 1 << F_UNPLUGGED_INACCESSIBLE;
        let bytes = device.config().to_bytes();
        let registers = Registers::new(VIRTIO_ID_MEM, device.features(), required, &[QUEUE_SIZE], &bytes)
            .map_err(io::Error::other)?;
        let blocks = RegionMemory { memory, index, start, block_size: config.block.0, refused: false };
        Ok(Self {
            transport: Transport::new(registers, interrupt),
            device,
            blocks,
            state,
            kick,
            retry_due: false,
        })
    }

    /// What is known of the device before the guest runs.
    pub(crate) fn status_at_start(config: &HotplugConfig, region: u64) -> MemStatus {
        MemStatus {
            region,
            region_size: config.size.0,
            block_size: config.block.0,
            requested: config.requested.0,
            ..MemStatus::default()
        }
    }

    /// Sets the target and tells the driver.
    ///
    /// # Errors
    /// There is no such size; nothing changed.
    pub fn resize(&mut self, requested: Size) -> Result<(), DeviceError> {
        let changed = self.device.resize(requested.0)?;
        self.publish(None);
        if changed {
            self.transport.notify_config();
        }
        Ok(())
    }

    /// Tells a driver that was answered BUSY to try again. One that was reset since was not.
    pub fn retry(&mut self) {
        if std::mem::take(&mut self.retry_due) {
            self.transport.notify_config();
        }
    }

    /// System reset: no driver, nothing plugged, the same target (virtio 1.3, section 5.15.6.2). The
    /// memory itself is taken by [`Memory::reset`].
    pub fn reset(&mut self) {
        self.transport.registers.reset();
        self.device.reset();
        self.retry_due = false;
        let index = self.blocks.index;
        self.state.change(|state| (state.mem[index].report, state.mem[index].refused) = (None, None));
        self.publish(None);
    }

    /// Serves the requests in the queue.
    pub fn serve(&mut self) -> Served {
        let mut served = Served { busy: false, more: true };
        let driver = self.transport.registers.running();
        let mut used = false;
        for _ in 0..self.transport.batch(0) {
            let memory = Arc::clone(&self.blocks.memory);
            let Some(chain) = self.transport.pop(memory.view(), 0, REQUEST_SIZE, RESPONSE_SIZE) else {
                served.more = false;
                break;
            };
            let mut written = 0;
            // A request whose answer has no room is not served: its driver would never know.
            if chain.room() == RESPONSE_SIZE {
                let response = self.handle(chain.request());
                served.busy |= response.kind == ResponseType::Busy;
                written = chain.write(&memory.view(), &response.to_bytes());
            } else {
                self.publish(Some(format!("no room for an answer: {} bytes", chain.room())));
            }
            self.transport.push(memory.view(), 0, &chain, written);
            used = true;
        }
        served.more &= self.transport.batch(0) > 0;
        self.retry_due |= served.busy;
        if driver && !self.transport.registers.running() {
            self.publish(Some("the queue cannot be used; the driver has to reset the device".to_owned()));
        }
        if used {
            self.transport.notify_used();
        }
        served
    }

    fn handle(&mut self, request: &[u8]) -> Response {
        let response = self.device.handle(request, &mut self.blocks);
        let refused = self.device.refused().filter(|_| response.kind != ResponseType::Ack);
        self.publish(refused.map(|refused| format!("{:?}: {refused}", response.kind)));
        response
    }

    /// Makes the device's state seen: by the driver in the configuration, by everyone else in the
    /// shared state.
    fn publish(&mut self, refused: Option<String>) {
        self.transport.registers.set_config(&self.device.config().to_bytes());
        let (plugged, requested) = (self.device.plugged_size(), self.device.requested_size());
        let driver = self.transport.registers.running();
        let index = self.blocks.index;
        self.state.change(|state| {
            let mem = &mut state.mem[index];
            (mem.plugged, mem.requested, mem.driver) = (plugged, requested, driver);
            if refused.is_some() {
                mem.refused = refused;
            }
        });
    }
}

impl RegisterDevice for Mem {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.registers.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.transport.registers.write(offset, data) {
            Effect::None => Ok(()),
            Effect::StatusChanged => {
                self.publish(None);
                Ok(())
            }
            Effect::Notify(_) => self.kick.write(1),
        }
    }
}

impl Backing for RegionMemory {
    fn plug(&mut self, range: BlockRange) -> Result<(), Busy> {
        let addresses = self.addresses(range);
        let result = self.memory.plug(self.index, addresses.clone());
        self.outcome("plug", &addresses, result)
    }

    fn unplug(&mut self, range: BlockRange) -> Result<(), Busy> {
        let addresses = self.addresses(range);
        let result = self.memory.unplug(self.index, addresses.clone());
        self.outcome("unplug", &addresses, result)
    }
}

impl RegionMemory {
    /// Says of the first of several failures what the host said.
    fn outcome(&mut self, what: &str, addresses: &Range<u64>, result: io::Result<()>) -> Result<(), Busy> {
        let before = std::mem::replace(&mut self.refused, result.is_err());
        result.map_err(|error| {
            if !before {
                log::warn!("cannot {what} {addresses:#x?}: {error}; silent until something succeeds");
            }
            Busy
        })
    }

    /// The device checked that the blocks are in the region, so nothing overflows.
    fn addresses(&self, range: BlockRange) -> Range<u64> {
        let start = self.start + range.first * self.block_size;
        start..start + range.count * self.block_size
    }
}

#[cfg(test)]
mod tests;
