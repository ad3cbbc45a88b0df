//! The driver's side of a device, for tests: register accesses as a guest makes them, and a queue in guest
//! memory.

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::RegisterDevice;
use crate::memory::{Memory, View};

/// Reads a 32-bit register.
pub(crate) fn read(device: &mut impl RegisterDevice, register: u32) -> u32 {
    let mut data = [0; 4];
    device.read(register.into(), &mut data);
    u32::from_le_bytes(data)
}

/// Writes a 32-bit register.
pub(crate) fn write(device: &mut impl RegisterDevice, register: u32, value: u32) {
    device.write(register.into(), &value.to_le_bytes()).unwrap();
}

/// Goes through the steps of virtio 1.3, section 3.1.1, with `VERSION_1` and `features`.
pub(crate) fn initialise(device: &mut impl RegisterDevice, features: u32, queues: &[&Ring]) {
    write(device, VIRTIO_MMIO_STATUS, 0);
    let mut status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
    write(device, VIRTIO_MMIO_STATUS, status);
    for (word, value) in [(0, features), (1, 1)] {
        write(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
        write(device, VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
    status |= VIRTIO_CONFIG_S_FEATURES_OK;
    write(device, VIRTIO_MMIO_STATUS, status);
    for (index, ring) in queues.iter().enumerate() {
        write(device, VIRTIO_MMIO_QUEUE_SEL, index as u32);
        write(device, VIRTIO_MMIO_QUEUE_NUM, Ring::SIZE.into());
        write(device, VIRTIO_MMIO_QUEUE_DESC_LOW, ring.start as u32);
        write(device, VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.avail() as u32);
        write(device, VIRTIO_MMIO_QUEUE_USED_LOW, ring.used_ring() as u32);
        write(device, VIRTIO_MMIO_QUEUE_READY, 1);
    }
    write(device, VIRTIO_MMIO_STATUS, status | VIRTIO_CONFIG_S_DRIVER_OK);
}

/// Reads and acknowledges the pending interrupts.
pub(crate) fn interrupts(device: &mut impl RegisterDevice) -> u32 {
    let pending = read(device, VIRTIO_MMIO_INTERRUPT_STATUS);
    write(device, VIRTIO_MMIO_INTERRUPT_ACK, pending);
    pending
}

/// A queue in boot memory, with buffers in the pages behind it. It keeps a view from before anything was
/// plugged, so it can touch boot memory only.
pub(crate) struct Ring {
    view: View,
    start: u64,
    offered: u16,
}

/// A buffer, at any address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) size: u32,
    pub(crate) writable: bool,
}

impl Ring {
    pub(crate) const SIZE: u16 = 16;

    /// A queue in the 64 KiB from `start` on. Buffers go into the 64 KiB after those.
    pub(crate) fn new(memory: &Arc<Memory>, start: u64) -> Self {
        Self { view: memory.view().clone(), start, offered: 0 }
    }

    /// Address of the `n`-th place for a buffer of up to 2 KiB.
    pub(crate) fn place(&self, n: u64) -> u64 {
        self.start + 0x1_0000 + n * 2048
    }

    /// Writes bytes to guest memory.
    pub(crate) fn fill(&self, address: u64, bytes: &[u8]) {
        self.view.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// Reads bytes of guest memory.
    pub(crate) fn bytes(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.view.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Offers one chain, whose descriptors begin at index `head`. Returns its number.
    pub(crate) fn offer(&mut self, head: u16, buffers: &[Buffer]) -> u16 {
        let last = buffers.len() - 1;
        for (position, buffer) in buffers.iter().enumerate() {
            let next = if position < last { VRING_DESC_F_NEXT } else { 0 };
            let flags = next | if buffer.writable { VRING_DESC_F_WRITE } else { 0 };
            let index = head + position as u16;
            let descriptor = Descriptor::new(buffer.address, buffer.size, flags as u16, index + 1);
            self.view.write_obj(RawDescriptor::from(descriptor), self.descriptor(index)).unwrap();
        }
        self.offer_head(head)
    }

    /// Offers the chain whose descriptors begin at index `head`, as they are. Returns its number.
    pub(crate) fn offer_head(&mut self, head: u16) -> u16 {
        let avail = self.avail();
        let slot = u64::from(self.offered % Self::SIZE);
        self.view.write_obj(head, GuestAddress(avail + 4 + 2 * slot)).unwrap();
        self.offered += 1;
        self.view.write_obj(self.offered, GuestAddress(avail + 2)).unwrap();
        self.offered - 1
    }

    /// Offers a chain of one descriptor at `head`, which refers to a table of `count` descriptors at `table`.
    pub(crate) fn offer_indirect(&mut self, head: u16, table: u64, count: u32) {
        let descriptor = Descriptor::new(table, 16 * count, VRING_DESC_F_INDIRECT as u16, 0);
        self.view.write_obj(RawDescriptor::from(descriptor), self.descriptor(head)).unwrap();
        self.offer_head(head);
    }

    /// The number of chains that the device gave back.
    pub(crate) fn used(&self) -> u16 {
        self.view.read_obj(GuestAddress(self.used_ring() + 2)).unwrap()
    }

    /// The number of bytes that the device wrote to the `n`-th chain it gave back.
    pub(crate) fn written(&self, n: u16) -> u32 {
        let slot = u64::from(n % Self::SIZE);
        self.view.read_obj(GuestAddress(self.used_ring() + 4 + 8 * slot + 4)).unwrap()
    }

    /// The index of the first descriptor of the `n`-th chain that the device gave back.
    pub(crate) fn head(&self, n: u16) -> u32 {
        let slot = u64::from(n % Self::SIZE);
        self.view.read_obj(GuestAddress(self.used_ring() + 4 + 8 * slot)).unwrap()
    }

    fn descriptor(&self, index: u16) -> GuestAddress {
        GuestAddress(self.start + 16 * u64::from(index))
    }

    fn avail(&self) -> u64 {
        self.start + 16 * u64::from(Self::SIZE)
    }

    fn used_ring(&self) -> u64 {
        (self.avail() + 6 + 2 * u64::from(Self::SIZE)).next_multiple_of(4)
    }
}
