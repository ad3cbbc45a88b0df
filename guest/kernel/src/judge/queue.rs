//! A split virtqueue (virtio 1.3, section 2.7) whose every byte the judge writes itself.
//!
//! Takes the place of `virtio-drivers`' `VirtQueue`, which keeps a driver from mistakes. It differs on purpose: rows make
//! them. Descriptors, ring entries and indices are written as they are told, and a chain may be anything.
//!
//! Invariant: all that the device is told to write lies in the queue's own [`Area`], unless a row names another address.

use core::sync::atomic::{Ordering, fence};

use super::memory::Area;

/// The most entries that the judge's rings have room for.
pub const MOST_ENTRIES: u16 = 128;

/// Descriptor flags (2.7.5).
pub const NEXT: u16 = 1;
/// The device writes to the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// In the driver's ring: no interrupt for used buffers (2.7.7).
pub const NO_INTERRUPT: u16 = 1;

const DRIVER_RING: u64 = 0x1000;
const DEVICE_RING: u64 = 0x2000;
const REQUESTS: u64 = 0x4000;
const REQUEST_ROOM: u64 = 64;
const RESPONSES: u64 = 0x6000;
/// Bytes of each response buffer.
pub const RESPONSE_ROOM: u64 = 32;
/// Fills response buffers, so that a row sees what the device wrote.
pub const FILLER: u8 = 0xee;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Physical address of the buffer.
    pub addr: u64,
    /// Its bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next descriptor of the chain.
    pub next: u16,
}

/// A queue.
#[derive(Debug)]
pub struct Queue {
    area: Area,
    entries: u16,
    /// Index in the driver's ring of the next chain.
    available: u16,
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Self {
        Self { area: Area::new(3), entries: MOST_ENTRIES, available: 0 }
    }

    /// Begins anew, with so many entries.
    pub fn restart(&mut self, entries: u16) {
        assert!((1..=MOST_ENTRIES).contains(&entries), "{entries} entries");
        (self.entries, self.available) = (entries, 0);
        for offset in [DRIVER_RING, DEVICE_RING] {
            self.area.span().set(offset, 0_u32);
        }
    }

    /// The number of entries.
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Addresses of the descriptor table, the driver's ring and the device's ring.
    pub fn rings(&self) -> [u64; 3] {
        [0, DRIVER_RING, DEVICE_RING].map(|offset| self.area.address(offset))
    }

    /// Writes descriptor `index` of the table.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        self.write_descriptor(u64::from(index) * 16, descriptor);
    }

    /// Writes a table of indirect descriptors in place of request `slot`, and returns its address.
    pub fn describe_indirect(&self, slot: u16, descriptors: [Descriptor; 2]) -> u64 {
        let start = REQUESTS + u64::from(slot) * REQUEST_ROOM;
        for (descriptor, offset) in descriptors.into_iter().zip((start..).step_by(16)) {
            self.write_descriptor(offset, descriptor);
        }
        self.area.address(start)
    }

    fn write_descriptor(&self, offset: u64, descriptor: Descriptor) {
        let span = self.area.span();
        span.set(offset, descriptor.addr);
        span.set(offset + 8, descriptor.len);
        span.set(offset + 12, descriptor.flags);
        span.set(offset + 14, descriptor.next);
    }

    /// Makes the chain that begins at descriptor `head` available.
    pub fn offer(&mut self, head: u16) {
        let entry = DRIVER_RING + 4 + 2 * u64::from(self.available % self.entries);
        self.area.span().set(entry, head);
        self.set_available(self.available.wrapping_add(1));
    }

    /// Writes the index of the driver's ring.
    pub fn set_available(&mut self, index: u16) {
        self.available = index;
        // The device sees the ring's entries before their index (2.7.13.3).
        fence(Ordering::SeqCst);
        self.area.span().set(DRIVER_RING + 2, index);
        fence(Ordering::SeqCst);
    }

    /// How many chains were made available.
    pub fn offered(&self) -> u16 {
        self.available
    }

    /// Writes the flags of the driver's ring.
    pub fn set_flags(&self, flags: u16) {
        self.area.span().set(DRIVER_RING, flags);
    }

    /// The flags of the device's ring.
    pub fn device_flags(&self) -> u16 {
        self.area.span().get(DEVICE_RING)
    }

    /// The index of the device's ring: how many chains were given back.
    pub fn used(&self) -> u16 {
        let index = self.area.span().get(DEVICE_RING + 2);
        // What was written before the index is read after it.
        fence(Ordering::SeqCst);
        index
    }

    /// Entry `index` of the device's ring: the head of a chain, and the bytes that the device says it has written.
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let entry = DEVICE_RING + 4 + 8 * u64::from(index % self.entries);
        (self.area.span().get(entry), self.area.span().get(entry + 4))
    }

    /// Puts a request into buffer `slot`, and returns the buffer's address.
    pub fn put_request(&self, slot: u16, bytes: &[u8]) -> u64 {
        let start = REQUESTS + u64::from(slot) * REQUEST_ROOM;
        assert!(bytes.len() as u64 <= REQUEST_ROOM, "a request of {} bytes", bytes.len());
        for (offset, byte) in (start..).zip(bytes) {
            self.area.span().set(offset, *byte);
        }
        self.area.address(start)
    }

    /// Clears response buffer `slot`, and returns its address.
    pub fn clear_response(&self, slot: u16) -> u64 {
        let start = RESPONSES + u64::from(slot) * RESPONSE_ROOM;
        for offset in (start..start + RESPONSE_ROOM).step_by(8) {
            self.area.span().set(offset, u64::from_ne_bytes([FILLER; 8]));
        }
        self.area.address(start)
    }

    /// The bytes of response buffer `slot`.
    pub fn response(&self, slot: u16) -> [u8; RESPONSE_ROOM as usize] {
        let start = RESPONSES + u64::from(slot) * RESPONSE_ROOM;
        let mut bytes = [0; RESPONSE_ROOM as usize];
        for (offset, byte) in (start..).zip(&mut bytes) {
            *byte = self.area.span().get(offset);
        }
        bytes
    }
}
