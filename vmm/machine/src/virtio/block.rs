//! The virtio-blk device: a disk of the guest on a medium of the host.
//!
//! Mirrors virtio 1.3, section 5.2, with one queue and the requests IN, OUT, FLUSH and GET_ID. A request consists of a header
//! of 16 bytes, data, and the status, which is the last byte that the device may write (section 5.2.6). Where a
//! buffer ends within them has no meaning (section 2.6.4).
//!
//! Differs on purpose from QEMU and Firecracker: a driver that does not agree on `FLUSH` has no cache to flush, so each of
//! its writes is on the disk before it is answered (section 5.2.6.2; Firecracker leaves that out). A medium that is
//! read-only has no cache, and no `FLUSH`.
//!
//! | file | does |
//! | --- | --- |
//! | `medium` | says what a medium has to do |
//! | `request` | reads a header, and checks the sectors that it names |
//! | `serving` | takes a request, moves its data, answers it |
//! | `counters` | counts answers and bytes |
//! | `saved` | the device on its way to another process |
//!
//! Invariants: the medium is used without the lock of the device, so a vCPU that reads registers never waits for a disk, nor does
//! a reset. Guest memory is used under that lock, a piece at a time, and only for the driver that made the request: after
//! a reset nothing of the driver before is read, written or answered. One request at a time is under way.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::Memory;
use crate::state::{DiskStatus, SharedState};
use crate::virtio::mmio::{Effect, Registers};
use crate::virtio::{RegisterDevice, Transport};

mod counters;
pub(crate) mod medium;
mod request;
mod saved;
mod serving;

pub(crate) use counters::DiskCounters;
pub use counters::{DISK_ANSWERS, DISK_REQUEST_KINDS, DiskCounts};
use medium::SECTOR;
pub use saved::BlockState;
pub(crate) use serving::{PIECE, Wishes, serve};

const QUEUE_SIZE: u16 = 128;

/// Most buffers with data of a request: each has a descriptor, and so have the header and the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes of the configuration space up to `blk_size`. Fields behind it belong to features that are not offered.
const CONFIG_SIZE: usize = 24;

/// The virtio-blk device.
#[derive(Debug)]
pub struct Block {
    transport: Transport,
    memory: Arc<Memory>,
    state: Arc<SharedState>,
    /// Its index among the disks.
    index: usize,
    sectors: u64,
    read_only: bool,
    kick: EventFd,
    counters: Arc<DiskCounters>,
    /// A request was taken and is not answered yet.
    under_way: bool,
    /// How many drivers are gone. Requests of an earlier driver are not answered.
    driver: u64,
    /// A failure of the medium was told. Later ones are in the counters.
    told: bool,
}

impl Block {
    /// Disk `index`, of `sectors` sectors. `interrupt` reaches the driver. `kick` is written when the queue has requests.
    ///
    /// # Errors
    /// Never with this device's queue size.
    pub(crate) fn new(
        index: usize,
        (sectors, read_only): (u64, bool),
        memory: Arc<Memory>,
        state: Arc<SharedState>,
        interrupt: EventFd,
        kick: EventFd,
    ) -> io::Result<Self> {
        let kind = if read_only { VIRTIO_BLK_F_RO } else { VIRTIO_BLK_F_FLUSH };
        let features = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << kind;
        let registers = Registers::new(VIRTIO_ID_BLOCK, features, 0, &[QUEUE_SIZE], &config(sectors))
            .map_err(io::Error::other)?;
        state.change(|state| state.disks.push(DiskStatus::default()));
        Ok(Self {
            transport: Transport::new(registers, interrupt),
            memory,
            state,
            index,
            sectors,
            read_only,
            kick,
            counters: Arc::default(),
            under_way: false,
            driver: 0,
            told: false,
        })
    }

    /// What is counted of requests.
    #[must_use]
    pub(crate) fn counters(&self) -> Arc<DiskCounters> {
        Arc::clone(&self.counters)
    }

    /// Whether no request is under way.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        !self.under_way
    }

    /// System reset: there is no driver, and nothing of it is answered. [`SharedState::restart`] shows that.
    pub fn disconnect(&mut self) {
        self.transport.registers.reset();
        self.driver += 1;
    }

    fn publish(&self) {
        let (driver, index) = (self.transport.registers.running(), self.index);
        self.state.change(|state| {
            if let Some(disk) = state.disks.get_mut(index) {
                disk.driver = driver;
            }
        });
    }
}

/// The configuration space (virtio 1.3, section 5.2.4): `capacity`, `size_max`, `seg_max`, `geometry`, `blk_size`.
fn config(sectors: u64) -> [u8; CONFIG_SIZE] {
    let mut bytes = [0; CONFIG_SIZE];
    bytes[..8].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
    bytes[20..].copy_from_slice(&(SECTOR as u32).to_le_bytes());
    bytes
}

impl RegisterDevice for Block {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.registers.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let effect = self.transport.write(|| self.memory.view(), offset, data);
        if !self.transport.registers.queue(0).is_some_and(Queue::ready) {
            // The driver has taken its queue back, and with it the request that is under way (virtio 1.3, section 4.2.2.2).
            self.driver += 1;
        }
        match effect {
            Effect::None => Ok(()),
            Effect::StatusChanged => {
                if !self.transport.registers.running() {
                    self.driver += 1;
                }
                self.publish();
                // A driver may have filled its queue before it was ready.
                self.kick.write(1)
            }
            Effect::Notify(_) => self.kick.write(1),
        }
    }
}

#[cfg(test)]
impl Block {
    /// From now on a request seems to be under way, or none.
    pub(crate) fn pretend_work(&mut self, under_way: bool) {
        self.under_way = under_way;
    }
}

#[cfg(test)]
mod tests;
