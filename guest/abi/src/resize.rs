//! How far a virtio-mem driver is, and what is in its way.
//!
//! Linux writes as much to its log at best; here it is a record, so that whoever wants a size can say why it
//! is not reached.

use serde::{Deserialize, Serialize};

use crate::Handle;

/// Where a virtio-mem driver stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Guest-physical address of the device's region; names the device.
    pub region: u64,
    /// Bytes plugged.
    pub plugged: u64,
    /// Bytes that the device asked for when the driver last looked.
    pub requested: u64,
    /// Whether and why it stopped.
    pub state: ResizeState,
}

/// Whether a driver reached its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResizeState {
    /// `plugged` is `requested`.
    Reached,
    /// Pages that cannot move are in the way. The driver tries again when pages are freed or the
    /// target changes.
    Unmovable {
        /// How many such pages were met.
        pages: u64,
        /// The first of them.
        first: [Option<UnmovablePage>; 4],
    },
    /// There is no room to migrate pages to.
    NoRoom,
    /// No memory for page tables or for the memmap of the new memory.
    NoMemory,
    /// The device answered BUSY; the driver tries again.
    HostBusy,
    /// The device answered against the rules; the driver has looked at the true state and goes
    /// on from there.
    DeviceError,
}

/// A page that could not be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmovablePage {
    /// Its frame number.
    pub pfn: u64,
    /// Who holds it.
    pub owner: Owner,
}

/// Who holds a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// Boot allocations: the kernel's image, the first memmap, holes.
    Reserved,
    /// The kernel's heap, stacks, queues.
    Kernel,
    /// Page tables.
    PageTable,
    /// The memmap of hot-added memory.
    Memmap,
    /// A workload of the session.
    Workload(Handle),
}
