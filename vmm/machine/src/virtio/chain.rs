//! One chain of buffers that a driver offered, copied from guest memory.
//!
//! Mirrors virtio 1.3, section 2.6.4: the framing of messages is independent of descriptors, so a request may
//! be split into any number of buffers. A [`Chain`] holds no reference to guest memory, because the memory
//! may be unplugged between taking a chain and answering it, even by the request itself.
//!
//! The chain is followed here and not by `virtio-queue`, because that follows indirect descriptors in any case. No
//! device here offers `VIRTIO_F_INDIRECT_DESC` (virtio 1.3, section 2.7.5.3), and a driver that uses one all the same
//! has broken its queue. So a chain costs the reading of at most as many descriptors as its queue has.
//!
//! The rings are read here too. `virtio-queue` takes a driver's ring that it cannot read for an empty one, and knows no
//! `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.3, section 2.7.7).

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::memory::View;

/// A chain of buffers.
#[derive(Clone, Debug)]
pub struct Chain {
    head: u16,
    request: Vec<u8>,
    /// What the driver made readable behind `request`.
    source: Vec<(GuestAddress, usize)>,
    response: Vec<(GuestAddress, usize)>,
}

/// Why a queue is broken: no chain after this one can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The ring cannot be read or contradicts itself.
    #[error(transparent)]
    Ring(#[from] virtio_queue::Error),
    /// A descriptor refers to a table of descriptors, and the device offers no `VIRTIO_F_INDIRECT_DESC`.
    #[error("descriptor {0} is indirect, and VIRTIO_F_INDIRECT_DESC is not offered")]
    Indirect(u16),
    /// A chain begins at a descriptor that the table does not have.
    #[error("a chain begins at descriptor {0}, which the queue does not have")]
    Head(u16),
}

/// Takes the index of the next chain's first descriptor from the driver's ring, if there is one.
fn next_head(queue: &mut Queue, view: &View) -> Result<Option<u16>, ChainError> {
    let (next, size) = (queue.next_avail(), queue.size());
    let waiting = queue.avail_idx(view, Ordering::Acquire)?.0.wrapping_sub(next);
    if waiting == 0 {
        return Ok(None);
    }
    if waiting > size {
        return Err(Error::InvalidAvailRingIndex.into());
    }
    // Flags and index come before the entries. The ring was in memory when the queue became ready, so it does not wrap.
    let entry = GuestAddress(queue.avail_ring()).unchecked_add(4 + 2 * u64::from(next % size));
    let head = u16::from_le(view.load(entry, Ordering::Relaxed).map_err(Error::GuestMemory)?);
    if head >= size {
        return Err(ChainError::Head(head));
    }
    queue.set_next_avail(next.wrapping_add(1));
    Ok(Some(head))
}

/// Whether the driver wants an interrupt for what was given back. It is told if its wish cannot be read.
#[must_use]
pub fn wants_interrupt(queue: &Queue, view: &View) -> bool {
    // A driver that wants interrupts again changes the flag and then looks at the device's ring. So the ring is written
    // before the flag is read.
    fence(Ordering::SeqCst);
    let flags = view.load::<u16>(GuestAddress(queue.avail_ring()), Ordering::Relaxed);
    flags.map_or(true, |flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

impl Chain {
    /// Takes the next chain, reads at most `readable` bytes of it, and notes where more can be read and where at most
    /// `writable` bytes can be written. A buffer or a descriptor that cannot be read ends the request.
    ///
    /// # Errors
    /// [`ChainError`]: the device cannot go on before a reset.
    pub fn pop(
        queue: &mut Queue,
        view: &View,
        readable: usize,
        writable: usize,
    ) -> Result<Option<Self>, ChainError> {
        let Some(head) = next_head(queue, view)? else { return Ok(None) };
        let mut chain = Self::of_head(head);
        let mut descriptors = Descriptors::new(queue, view, head);
        let mut room = writable;
        while let Some(descriptor) = descriptors.next()? {
            let size = descriptor.len() as usize;
            if descriptor.is_write_only() {
                let used = size.min(room);
                if used > 0 {
                    chain.response.push((descriptor.addr(), used));
                    room -= used;
                }
            } else {
                let start = chain.request.len();
                let now = size.min(readable - start);
                chain.request.resize(start + now, 0);
                if view.read_slice(&mut chain.request[start..], descriptor.addr()).is_err() {
                    chain.request.truncate(start);
                    break;
                }
                if now < size {
                    let Some(rest) = descriptor.addr().checked_add(now as u64) else { break };
                    chain.source.push((rest, size - now));
                }
            }
        }
        Ok(Some(chain))
    }

    /// A chain that was taken before, of which nothing but its index is left: it can go back.
    #[must_use]
    pub fn of_head(head: u16) -> Self {
        Self { head, request: Vec::new(), source: Vec::new(), response: Vec::new() }
    }

    /// The chain's index for the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The bytes that the driver made readable.
    #[must_use]
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// The buffers behind [`Chain::request`] that the driver made readable, with their sizes in bytes, none of them empty.
    /// Nothing is known of the addresses.
    #[must_use]
    pub fn source(&self) -> &[(GuestAddress, usize)] {
        &self.source
    }

    /// The number of bytes that can be written, at most the requested ones.
    #[must_use]
    pub fn room(&self) -> usize {
        self.response.iter().map(|&(_, size)| size).sum()
    }

    /// The buffers that can be written, with their sizes in bytes, none of them empty. Nothing is known of the
    /// addresses.
    #[must_use]
    pub fn writable(&self) -> &[(GuestAddress, usize)] {
        &self.response
    }

    /// Writes all of `response` and returns its length. Returns 0 when it does not fit or a buffer is not in
    /// memory that the guest may use; the chain then goes back empty.
    #[must_use]
    pub fn write(&self, view: &View, response: &[u8]) -> u32 {
        if scatter(view, &self.response, 0, response) { response.len() as u32 } else { 0 }
    }
}

/// Writes `bytes` to `buffers`, from byte `skip` of them on. Returns whether all were written; they are not if there is no
/// room for all, and some may be if a buffer is not in memory that the guest may use.
#[must_use]
pub fn scatter(view: &View, buffers: &[(GuestAddress, usize)], skip: usize, bytes: &[u8]) -> bool {
    let Some(parts) = parts(buffers, skip, bytes.len()) else { return false };
    let mut rest = bytes;
    for (address, size) in parts {
        let (now, later) = rest.split_at(size);
        if let Err(error) = view.write_slice(now, address) {
            log::debug!("what goes to {:#x} is lost: {error}", address.raw_value());
            return false;
        }
        rest = later;
    }
    true
}

/// Fills `bytes` from `buffers`, from byte `skip` of them on. Returns whether all were read.
#[must_use]
pub fn gather(view: &View, buffers: &[(GuestAddress, usize)], skip: usize, bytes: &mut [u8]) -> bool {
    let Some(parts) = parts(buffers, skip, bytes.len()) else { return false };
    let mut rest = bytes;
    for (address, size) in parts {
        let (now, later) = rest.split_at_mut(size);
        if view.read_slice(now, address).is_err() {
            return false;
        }
        rest = later;
    }
    true
}

/// The parts of `buffers` in which `length` bytes from byte `skip` on lie. `None` if there are not so many, or an address
/// has more than 64 bits.
fn parts(
    buffers: &[(GuestAddress, usize)],
    mut skip: usize,
    mut length: usize,
) -> Option<Vec<(GuestAddress, usize)>> {
    let mut parts = Vec::new();
    for &(address, size) in buffers {
        let now = size.saturating_sub(skip).min(length);
        if now > 0 {
            parts.push((address.checked_add(skip as u64)?, now));
            length -= now;
        }
        skip = skip.saturating_sub(size);
    }
    (length == 0).then_some(parts)
}

/// The descriptors of one chain, in the queue's own table.
struct Descriptors<'v> {
    view: &'v View,
    table: GuestAddress,
    size: u16,
    /// The index of the next descriptor, unless the chain is over.
    next: Option<u16>,
    /// Descriptors that may still come. A chain that is longer than its table goes in a circle.
    left: u16,
    /// Bytes of all buffers so far. A chain has less than 4 GiB (virtio 1.3, section 2.7.5.2).
    bytes: u32,
}

impl<'v> Descriptors<'v> {
    fn new(queue: &Queue, view: &'v View, head: u16) -> Self {
        let table = GuestAddress(queue.desc_table());
        Self { view, table, size: queue.size(), next: Some(head), left: queue.size(), bytes: 0 }
    }

    /// The next descriptor. The chain is over at one that cannot be read, and at one too many.
    fn next(&mut self) -> Result<Option<Descriptor>, ChainError> {
        let Some(index) = self.next.take().filter(|&index| index < self.size && self.left > 0) else {
            return Ok(None);
        };
        let address = self.table.checked_add(u64::from(index) * size_of::<Descriptor>() as u64);
        let read = |address| self.view.read_obj::<Descriptor>(address).ok();
        let Some(descriptor) = address.and_then(read) else { return Ok(None) };
        if descriptor.refers_to_indirect_table() {
            return Err(ChainError::Indirect(index));
        }
        let Some(bytes) = self.bytes.checked_add(descriptor.len()) else { return Ok(None) };
        self.bytes = bytes;
        self.left -= 1;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Ok(Some(descriptor))
    }
}
