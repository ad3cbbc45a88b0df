//! What a driver has written about one queue, before the queue is ready.
//!
//! Mirrors virtio 1.3, section 4.2.3.2. `virtio-queue` drops a value that no queue can have and goes on with the value
//! before it, so a driver's ring of 17 entries would be served as one of 128. Here every value is kept as it was
//! written, and [`SetUp::apply`] gives all of them to the queue or none.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

/// Bytes of one descriptor, of an entry of the driver's ring, and of one of the device's ring (2.7.5 to 2.7.8).
const ENTRY: [u64; 3] = [16, 2, 8];

/// Bytes of each part beside its entries: flags, index, and the event index of the other side.
const HEADER: [u64; 3] = [0, 6, 6];

/// The alignment of each part (2.7).
const ALIGN: [u64; 3] = [16, 2, 4];

/// The size and the addresses of a queue, as the driver wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SetUp {
    size: u32,
    /// The descriptor table, the driver's ring, the device's ring.
    addresses: [u64; 3],
}

impl SetUp {
    /// Nothing is written yet: the largest size (4.2.3.2), and no address.
    pub(super) fn new(max_size: u16) -> Self {
        Self { size: max_size.into(), addresses: [0; 3] }
    }

    /// The driver writes the number of entries.
    pub(super) fn set_size(&mut self, size: u32) {
        self.size = size;
    }

    /// The driver writes the low or the high half of the address of a part: 0 is the descriptor table, 1 the driver's
    /// ring, 2 the device's ring.
    pub(super) fn set_address(&mut self, part: usize, high: bool, half: u32) {
        let address = &mut self.addresses[part];
        *address = match high {
            false => *address & !0xffff_ffff | u64::from(half),
            true => *address & 0xffff_ffff | u64::from(half) << 32,
        };
    }

    /// Gives size and addresses to `queue` if all of them can be used: the size is a power of two and not too large,
    /// and each part is aligned, lies in memory that is `usable`, and not at address 0, which no driver has chosen.
    /// Returns whether that is so.
    pub(super) fn apply(&self, queue: &mut Queue, usable: impl Fn(u64, usize) -> bool) -> bool {
        let Ok(size) = u16::try_from(self.size) else { return false };
        if !size.is_power_of_two() || size > queue.max_size() {
            return false;
        }
        let good = (0..ENTRY.len()).all(|part| {
            let address = self.addresses[part];
            let bytes = HEADER[part] + ENTRY[part] * u64::from(size);
            address != 0
                && address.is_multiple_of(ALIGN[part])
                && address.checked_add(bytes).is_some()
                && usable(address, bytes as usize)
        });
        if good {
            let halves = |part: usize| {
                let address = self.addresses[part];
                (Some(address as u32), Some((address >> 32) as u32))
            };
            queue.set_size(size);
            let (low, high) = halves(0);
            queue.set_desc_table_address(low, high);
            let (low, high) = halves(1);
            queue.set_avail_ring_address(low, high);
            let (low, high) = halves(2);
            queue.set_used_ring_address(low, high);
        }
        good
    }
}
