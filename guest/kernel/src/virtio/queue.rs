//! Virtqueues with the buffers that travel through them. Each kind of queue owns its buffers, so a buffer
//! that is lent to the device stays in place, and nothing accesses it until it comes back.
//!
//! Invariant: a buffer is in its queue exactly while `lent` holds its token.
#![expect(unsafe_code, reason = "lends buffers to devices")]

use alloc::boxed::Box;

use tidevm_abi::MAX_RECORD;
use tidevm_mm::{Lent, PAGE_SIZE, REPORTING_CAPACITY};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use super::hal::KernelHal;
use crate::cpu::time::Instant;
use crate::mem::paging::phys_to_virt;

/// Most requests that are under way. Each takes two descriptors.
const MOST_REQUESTS: usize = 32;

/// A queue of requests with one response each.
pub struct Requests<const REQUEST: usize, const RESPONSE: usize> {
    ring: Ring,
    index: u16,
    slots: Box<[Slot<REQUEST, RESPONSE>; MOST_REQUESTS]>,
    /// How many requests the ring has room for, at most [`MOST_REQUESTS`].
    room: usize,
    /// How many are under way.
    under_way: usize,
}

/// The descriptors: as many as are of use, or few, for a device with a small queue.
enum Ring {
    Large(Box<VirtQueue<KernelHal, { 2 * MOST_REQUESTS }>>),
    Small(VirtQueue<KernelHal, 4>),
}

/// A request and its response.
struct Slot<const REQUEST: usize, const RESPONSE: usize> {
    request: [u8; REQUEST],
    response: [u8; RESPONSE],
    /// The token, and when the request was put into the queue.
    lent: Option<(u16, Instant)>,
}

/// A request that came back, with the bytes that the device wrote, or `None` in their place when the device wrote
/// fewer bytes than a response has.
pub struct Answered<const REQUEST: usize, const RESPONSE: usize> {
    /// The request.
    pub request: [u8; REQUEST],
    /// The response.
    pub response: Option<[u8; RESPONSE]>,
}

impl<const REQUEST: usize, const RESPONSE: usize> Requests<REQUEST, RESPONSE> {
    /// Sets up queue `index` of the device.
    ///
    /// # Errors
    /// When the device has no such queue or there is no memory.
    pub fn new(transport: &mut impl Transport, index: u16) -> virtio_drivers::Result<Self> {
        let is_large = transport.max_queue_size(index) as usize >= 2 * MOST_REQUESTS;
        let (ring, room) = if is_large {
            (Ring::Large(Box::new(VirtQueue::new(transport, index, false, false)?)), MOST_REQUESTS)
        } else {
            (Ring::Small(VirtQueue::new(transport, index, false, false)?), 2)
        };
        let slot = || Slot { request: [0; REQUEST], response: [0; RESPONSE], lent: None };
        Ok(Self { ring, index, slots: Box::new(core::array::from_fn(|_| slot())), room, under_way: 0 })
    }

    /// Whether another request can be put into the queue.
    pub fn has_room(&self) -> bool {
        self.under_way < self.room
    }

    /// Number of requests under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Puts a request into the queue, which has room. The device is not notified.
    pub fn put(&mut self, request: [u8; REQUEST]) {
        let slot = self.slots.iter_mut().find(|slot| slot.lent.is_none()).expect("a free slot");
        slot.request = request;
        slot.response.fill(0);
        let (inputs, outputs) = (&[&slot.request[..]], &mut [&mut slot.response[..]]);
        // SAFETY: the buffers are in this value's own box, and nothing accesses them while `lent` holds the token,
        // until `poll` has them back.
        let token = unsafe {
            match &mut self.ring {
                Ring::Large(ring) => ring.add(inputs, outputs),
                Ring::Small(ring) => ring.add(inputs, outputs),
            }
        };
        slot.lent = Some((token.expect("the queue has room for the request"), Instant::now()));
        self.under_way += 1;
    }

    /// Notifies the device of the requests in the queue, if it wants that.
    pub fn notify(&mut self, transport: &mut impl Transport) {
        let is_wanted = match &self.ring {
            Ring::Large(ring) => ring.should_notify(),
            Ring::Small(ring) => ring.should_notify(),
        };
        if is_wanted {
            transport.notify(self.index);
        }
    }

    /// A request that came back, if one did.
    pub fn poll(&mut self) -> Option<Answered<REQUEST, RESPONSE>> {
        let next = self.next_used()?;
        let is_it = |slot: &&mut Slot<REQUEST, RESPONSE>| slot.lent.is_some_and(|(token, _)| token == next);
        let slot = self.slots.iter_mut().find(is_it)?;
        let (inputs, outputs) = (&[&slot.request[..]], &mut [&mut slot.response[..]]);
        // SAFETY: these are the buffers that `put` added for this token.
        let written = unsafe {
            match &mut self.ring {
                Ring::Large(ring) => ring.pop_used(next, inputs, outputs),
                Ring::Small(ring) => ring.pop_used(next, inputs, outputs),
            }
        };
        let written = written.ok()? as usize;
        slot.lent = None;
        self.under_way -= 1;
        Some(Answered { request: slot.request, response: (written >= RESPONSE).then_some(slot.response) })
    }

    /// The token of the request that came back next.
    fn next_used(&self) -> Option<u16> {
        match &self.ring {
            Ring::Large(ring) => ring.peek_used(),
            Ring::Small(ring) => ring.peek_used(),
        }
    }

    /// Whether the device has given back a request that it did not have. The queue is of no use any more.
    pub fn is_broken(&self) -> bool {
        let is_known = |next| self.slots.iter().any(|slot| slot.lent.is_some_and(|(token, _)| token == next));
        self.next_used().is_some_and(|next| !is_known(next))
    }

    /// The request that has waited longest, and since when.
    pub fn oldest(&self) -> Option<(&[u8; REQUEST], Instant)> {
        let waiting = self.slots.iter().filter_map(|slot| Some((&slot.request, slot.lent?.1)));
        waiting.min_by_key(|(_, since)| *since)
    }
}

const SLOTS: usize = 16;

/// A queue of records from the device.
pub struct Inbox {
    queue: VirtQueue<KernelHal, SLOTS>,
    index: u16,
    /// Per token, its buffer.
    lent: [Option<Box<[u8; MAX_RECORD]>>; SLOTS],
}

impl Inbox {
    /// Sets up queue `index` of the device, without buffers: [`Self::start`] lends them once the device runs.
    ///
    /// # Errors
    /// When the device has no such queue or there is no memory.
    pub fn new(transport: &mut impl Transport, index: u16) -> virtio_drivers::Result<Self> {
        let queue = VirtQueue::new(transport, index, false, false)?;
        Ok(Self { queue, index, lent: [const { None }; SLOTS] })
    }

    /// Lends the device its buffers.
    pub fn start(&mut self, transport: &mut impl Transport) {
        for _ in 0..SLOTS {
            self.lend(Box::new([0; MAX_RECORD]));
        }
        transport.notify(self.index);
    }

    fn lend(&mut self, mut buffer: Box<[u8; MAX_RECORD]>) {
        // SAFETY: the box moves into `lent` at its token, and comes out in `take` only.
        let token = unsafe { self.queue.add(&[], &mut [&mut buffer[..]]) }
            .expect("the queue has one slot per buffer");
        self.lent[usize::from(token)] = Some(buffer);
    }

    /// Passes the next record to `read`, lends its buffer to the device again, and returns the result of
    /// `read`. `None` when there is no record.
    pub fn take<T>(&mut self, transport: &mut impl Transport, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let token = self.queue.peek_used()?;
        let mut buffer = self.lent.get_mut(usize::from(token))?.take()?;
        // SAFETY: this is the buffer that `lend` added for this token.
        let written = unsafe { self.queue.pop_used(token, &[], &mut [&mut buffer[..]]) }.ok()?;
        let value = read(&buffer[..MAX_RECORD.min(written as usize)]);
        self.lend(buffer);
        if self.queue.should_notify() {
            transport.notify(self.index);
        }
        Some(value)
    }
}

/// A queue of records to the device.
pub struct Outbox {
    queue: VirtQueue<KernelHal, SLOTS>,
    index: u16,
    lent: [Option<(Box<[u8; MAX_RECORD]>, usize)>; SLOTS],
}

impl Outbox {
    /// Sets up queue `index` of the device.
    ///
    /// # Errors
    /// When the device has no such queue or there is no memory.
    pub fn new(transport: &mut impl Transport, index: u16) -> virtio_drivers::Result<Self> {
        let mut queue = VirtQueue::new(transport, index, false, false)?;
        // Buffers are collected when the next record is sent, so the device need not raise an interrupt for
        // them.
        queue.set_dev_notify(false);
        Ok(Self { queue, index, lent: [const { None }; SLOTS] })
    }

    /// Sends the record that `write` puts into a buffer. `false` when the device holds all buffers.
    pub fn send(
        &mut self,
        transport: &mut impl Transport,
        write: impl FnOnce(&mut [u8; MAX_RECORD]) -> usize,
    ) -> bool {
        self.collect();
        if self.queue.available_desc() == 0 {
            return false;
        }
        let mut buffer = Box::new([0; MAX_RECORD]);
        let length = write(&mut buffer);
        // SAFETY: the box moves into `lent` at its token, and comes out in `collect` only.
        let token = unsafe { self.queue.add(&[&buffer[..length]], &mut []) }.expect("a free descriptor");
        self.lent[usize::from(token)] = Some((buffer, length));
        if self.queue.should_notify() {
            transport.notify(self.index);
        }
        true
    }

    fn collect(&mut self) {
        while let Some(token) = self.queue.peek_used() {
            let Some((buffer, length)) = self.lent.get_mut(usize::from(token)).and_then(Option::take) else {
                return;
            };
            // SAFETY: this is the buffer, of this length, that `send` added for this token.
            let popped = unsafe { self.queue.pop_used(token, &[&buffer[..length]], &mut []) };
            popped.expect("the token was the next one");
        }
    }
}

/// A queue of free memory that is lent to the device, one report at a time.
pub struct Reports {
    queue: VirtQueue<KernelHal, REPORTING_CAPACITY>,
    index: u16,
    lent: Option<(u16, Lent)>,
}

impl Reports {
    /// Sets up queue `index` of the device.
    ///
    /// # Errors
    /// When the device has no such queue, one with too little room, or there is no memory.
    pub fn new(transport: &mut impl Transport, index: u16) -> virtio_drivers::Result<Self> {
        Ok(Self { queue: VirtQueue::new(transport, index, false, false)?, index, lent: None })
    }

    /// Lends memory, which is not nothing, to the device. No other report may be under way.
    pub fn send(&mut self, transport: &mut impl Transport, lent: Lent) {
        assert!(self.lent.is_none(), "a report is under way");
        let mut buffers = buffers(&lent);
        let buffers = &mut buffers[..lent.ranges().len()];
        // SAFETY: memory management lends this memory, so nothing accesses it until `poll` or `take_back` returns it.
        let token = unsafe { self.queue.add(&[], buffers) };
        self.lent = Some((token.expect("the queue has room for one report"), lent));
        if self.queue.should_notify() {
            transport.notify(self.index);
        }
    }

    /// The memory, once the device has given it back.
    pub fn poll(&mut self) -> Option<Lent> {
        // Most calls come while the device has the memory: they cost no list of buffers.
        if !self.queue.can_pop() {
            return None;
        }
        let (token, lent) = self.lent.take()?;
        let mut buffers = buffers(&lent);
        let buffers = &mut buffers[..lent.ranges().len()];
        // SAFETY: these are the buffers that `send` added for this token.
        let popped = unsafe { self.queue.pop_used(token, &[], buffers) };
        if popped.is_err() {
            self.lent = Some((token, lent));
            return None;
        }
        Some(lent)
    }

    /// Whether a report is under way.
    pub fn is_busy(&self) -> bool {
        self.lent.is_some()
    }

    /// The memory of the report that was under way when the device was reset. The device accesses none of it any more.
    pub fn take_back(self) -> Option<Lent> {
        self.lent.map(|(_, lent)| lent)
    }
}

/// Memory that is lent, as buffers. The others are empty.
fn buffers<'b>(lent: &Lent) -> [&'b mut [u8]; REPORTING_CAPACITY] {
    let mut ranges = lent.ranges();
    core::array::from_fn(|_| match ranges.next() {
        Some(range) => {
            let start = phys_to_virt(range.start().address().get());
            // SAFETY: the direct map has all memory of the allocator. `Lent` is the only value that knows of this
            // memory. The slices of one call are gone before the next call.
            unsafe { core::slice::from_raw_parts_mut(start, range.pages() as usize * PAGE_SIZE as usize) }
        }
        None => &mut [][..],
    })
}

/// A queue of one buffer, which the device gives back when it wants another content.
pub struct Slate<const SIZE: usize> {
    queue: VirtQueue<KernelHal, 4>,
    index: u16,
    buffer: Box<[u8; SIZE]>,
    lent: Option<u16>,
}

impl<const SIZE: usize> Slate<SIZE> {
    /// Sets up queue `index` of the device.
    ///
    /// # Errors
    /// When the device has no such queue or there is no memory.
    pub fn new(transport: &mut impl Transport, index: u16) -> virtio_drivers::Result<Self> {
        let queue = VirtQueue::new(transport, index, false, false)?;
        Ok(Self { queue, index, buffer: Box::new([0; SIZE]), lent: None })
    }

    /// Has `write` fill the buffer and lends it to the device, unless the device still has it.
    pub fn serve(&mut self, transport: &mut impl Transport, write: impl FnOnce(&mut [u8; SIZE])) {
        if let Some(token) = self.lent {
            // SAFETY: this is the buffer that was added for this token below.
            if unsafe { self.queue.pop_used(token, &[&self.buffer[..]], &mut []) }.is_err() {
                return;
            }
        }
        write(&mut self.buffer);
        // SAFETY: nothing accesses the buffer while `lent` holds the token.
        let token = unsafe { self.queue.add(&[&self.buffer[..]], &mut []) };
        self.lent = Some(token.expect("the queue has room for one buffer"));
        if self.queue.should_notify() {
            transport.notify(self.index);
        }
    }
}
