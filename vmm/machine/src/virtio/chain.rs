//! One chain of buffers that a driver offered, copied from guest memory.
//!
//! Mirrors virtio 1.3, section 2.6.4: the framing of messages is independent of descriptors, so a request may
//! be split into any number of buffers. A [`Chain`] holds no reference to guest memory, because the memory
//! may be unplugged between taking a chain and answering it, even by the request itself.

use virtio_queue::{Error, Queue, QueueOwnedT};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::memory::View;

/// A chain of buffers.
#[derive(Clone, Debug)]
pub struct Chain {
    head: u16,
    request: Vec<u8>,
    response: Vec<(GuestAddress, usize)>,
}

impl Chain {
    /// Takes the next chain, reads at most `readable` bytes of it, and notes where at most `writable` bytes
    /// can be written. A buffer that cannot be read ends the request.
    ///
    /// # Errors
    /// The ring cannot be read or contradicts itself.
    pub fn pop(
        queue: &mut Queue,
        view: &View,
        readable: usize,
        writable: usize,
    ) -> Result<Option<Self>, Error> {
        let Some(descriptors) = queue.iter(view)?.next() else { return Ok(None) };
        let mut chain = Self { head: descriptors.head_index(), request: Vec::new(), response: Vec::new() };
        let mut room = writable;
        for descriptor in descriptors {
            let size = descriptor.len() as usize;
            if descriptor.is_write_only() {
                let used = size.min(room);
                if used > 0 {
                    chain.response.push((descriptor.addr(), used));
                    room -= used;
                }
            } else {
                let start = chain.request.len();
                chain.request.resize(start + size.min(readable - start), 0);
                if view.read_slice(&mut chain.request[start..], descriptor.addr()).is_err() {
                    chain.request.truncate(start);
                    break;
                }
            }
        }
        Ok(Some(chain))
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

    /// The number of bytes that can be written, at most the requested ones.
    #[must_use]
    pub fn room(&self) -> usize {
        self.response.iter().map(|&(_, size)| size).sum()
    }

    /// Writes all of `response` and returns its length. Returns 0 when it does not fit or a buffer is not in
    /// memory that the guest may use; the chain then goes back empty.
    #[must_use]
    pub fn write(&self, view: &View, response: &[u8]) -> u32 {
        if self.room() < response.len() {
            return 0;
        }
        let mut rest = response;
        for &(address, size) in &self.response {
            let (now, later) = rest.split_at(size.min(rest.len()));
            if let Err(error) = view.write_slice(now, address) {
                log::debug!("answer to {:#x} is lost: {error}", address.raw_value());
                return 0;
            }
            rest = later;
        }
        response.len() as u32
    }
}
