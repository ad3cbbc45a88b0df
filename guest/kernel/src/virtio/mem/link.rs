//! The way to a virtio-mem device: its registers, its request queue, and a watchdog over what is in it.
//!
//! Mirrors `virtio_mem_send_request` and `virtio_mem_init_vq` of Linux's `virtio_mem.c`. Differs on purpose: Linux waits
//! for an answer without end. Here a request that is not answered in time is reported, the device is notified once more, and
//! a device that needs a reset is reset. Its requests are lost then, and the driver finds out what became of them. A reset
//! of the device changes nothing of what is plugged (virtio 1.3, section 5.15.6.2).
//!
//! Invariant: a request is in the queue from `send` until `poll` returns it, or until the device is reset.

use core::fmt;

use tidevm_abi::Counted;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_mem::wire::{self, Config};
use virtio_mem::{Outcome, Request, Response};

use super::counts;
use super::faults::{self, DriverFault};
use crate::console::println;
use crate::cpu::time::{Instant, khz};
use crate::virtio::queue::Requests;
use crate::virtio::{Device, Unready};

const QUEUE: u16 = 0;
const VERSION_1: u64 = 1 << 32;
/// A device that takes longer to answer is reported, again and again.
const PATIENCE_MILLIS: u64 = 10_000;
/// The pause before a device that could not be reset is reset again.
const PAUSE_MILLIS: u64 = 1000;

type Queue = Requests<{ wire::REQUEST_SIZE }, { wire::RESPONSE_SIZE }>;

/// Why there is no way to a device.
#[derive(Debug)]
pub enum NoLink {
    /// The device cannot be started.
    Unready(Unready),
    /// There is no request queue.
    Queue(virtio_drivers::Error),
}

impl fmt::Display for NoLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unready(reason) => reason.fmt(f),
            Self::Queue(error) => write!(f, "no request queue: {error}"),
        }
    }
}

/// A virtio-mem device and what was sent to it.
pub struct Link<T> {
    /// The device.
    pub device: Device<T>,
    /// The request queue. None while a device that needs a reset could not be reset.
    queue: Option<Queue>,
    /// The features that were agreed on.
    features: u64,
    /// When to report that nothing has come back, or to try another reset.
    look_at: Option<Instant>,
}

impl<T: Transport> Link<T> {
    /// Resets the device and sets it up.
    ///
    /// # Errors
    /// [`NoLink`].
    pub fn new(device: Device<T>) -> Result<Self, NoLink> {
        let mut link = Self { device, queue: None, features: 0, look_at: None };
        link.start()?;
        Ok(link)
    }

    /// Resets the device and sets it up, also when it was set up before. What was in the queue is lost.
    ///
    /// # Errors
    /// [`NoLink`]; the device cannot be used before another start.
    pub fn start(&mut self) -> Result<(), NoLink> {
        let before = self.queue.take();
        self.look_at = None;
        let wanted = VERSION_1 | 1 << wire::F_UNPLUGGED_INACCESSIBLE | 1 << wire::F_ACPI_PXM;
        let features = match self.device.negotiate(wanted) {
            Ok(features) => features,
            Err(reason) => {
                // The device may still write to the queue and its buffers: they stay where they are.
                core::mem::forget(before);
                return Err(NoLink::Unready(reason));
            }
        };
        // Its memory is of use for the new one.
        drop(before);
        self.features = features;
        self.queue = Some(Requests::new(&mut self.device.transport, QUEUE).map_err(NoLink::Queue)?);
        self.device.transport.finish_init();
        Ok(())
    }

    /// Whether the configuration's node means something.
    pub fn has_node(&self) -> bool {
        self.features & 1 << wire::F_ACPI_PXM != 0
    }

    /// Number of requests under way.
    pub fn under_way(&self) -> usize {
        self.queue.as_ref().map_or(0, Queue::under_way)
    }

    /// Whether the device waits for a reset that did not succeed.
    pub fn is_down(&self) -> bool {
        self.queue.is_none()
    }

    /// Sends the requests that `next` returns, as many as there is room for.
    pub fn send(&mut self, mut next: impl FnMut() -> Option<Request>) {
        let Some(queue) = &mut self.queue else { return };
        let before = queue.under_way();
        while queue.has_room()
            && let Some(request) = next()
        {
            queue.put(request.to_bytes());
        }
        if queue.under_way() == before {
            return;
        }
        self.look_at = Some(Instant::in_millis(PATIENCE_MILLIS));
        if faults::acts(DriverFault::Device) {
            self.device.transport.set_status(DeviceStatus::empty());
        }
        if !faults::acts(DriverFault::Notify) {
            queue.notify(&mut self.device.transport);
        }
    }

    /// A request that came back.
    pub fn poll(&mut self) -> Option<(Request, Outcome)> {
        let queue = self.queue.as_mut()?;
        let answered = queue.poll()?;
        self.look_at = (queue.under_way() > 0).then(|| Instant::in_millis(PATIENCE_MILLIS));
        let request = Request::from_bytes(&answered.request).expect("the driver's own request");
        // A response that is too short does not tell whether the device carried the request out.
        let outcome = answered
            .response
            .map_or(Outcome::NoResponse, |bytes| Outcome::Response(Response::from_bytes(&bytes)));
        Some((request, outcome))
    }

    /// When to call [`Link::look_after`].
    pub fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Reports that the device at `region` has not answered in time, and helps it on. Returns whether it was reset, so that all
    /// requests are lost.
    pub fn look_after(&mut self, region: u64) -> bool {
        if !self.look_at.is_some_and(Instant::has_passed) {
            return false;
        }
        if let Some(queue) = &mut self.queue
            && let Some((request, since)) = queue.oldest()
        {
            counts::OVERDUE.add(1);
            let request = Request::from_bytes(request).expect("the driver's own request");
            println!(
                "virtio-mem at {region:#x}: no answer for {} ms to {:?} of {} at {:#x}; {} under way",
                Instant::now().0.saturating_sub(since.0) / khz(),
                request.kind,
                Counted(request.nb_blocks.into(), "device block"),
                request.addr,
                Counted(queue.under_way() as u64, "request")
            );
        }
        if self.needs_reset() {
            return self.reset(region);
        }
        self.look_at = Some(Instant::in_millis(PATIENCE_MILLIS));
        if let Some(queue) = &mut self.queue {
            // The device may have missed the first.
            queue.notify(&mut self.device.transport);
        }
        false
    }

    /// Whether the device cannot go on: it says so, it was reset by something else, or its queue is of no use.
    pub fn needs_reset(&self) -> bool {
        let status = self.device.transport.get_status();
        status.contains(DeviceStatus::DEVICE_NEEDS_RESET)
            || !status.contains(DeviceStatus::DRIVER_OK)
            || self.queue.as_ref().is_none_or(Queue::is_broken)
    }

    /// Resets the device at `region`, which cannot go on. Returns whether it can be used again.
    pub fn reset(&mut self, region: u64) -> bool {
        let started = self.start();
        match &started {
            Ok(()) => {
                counts::RESETS.add(1);
                println!("virtio-mem at {region:#x}: the device could not go on and was reset");
            }
            Err(reason) => {
                println!("virtio-mem at {region:#x}: after a reset: {reason}");
                self.look_at = Some(Instant::in_millis(PAUSE_MILLIS));
            }
        }
        started.is_ok()
    }

    /// Reads the words of the configuration space at offsets `words` into `bytes`. Returns the configuration and its
    /// generation, which is that of all words that were read. `None` when the generation changes with every read.
    pub fn read_config(
        &self,
        bytes: &mut [u8; wire::CONFIG_SIZE],
        words: impl Iterator<Item = usize> + Clone,
    ) -> Option<(Config, u32)> {
        const TRIES: u32 = 100;
        let transport = &self.device.transport;
        for _ in 0..TRIES {
            let before = transport.read_config_generation();
            for offset in words.clone() {
                let value: u32 = transport.read_config_space(offset).ok()?;
                bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            }
            if transport.read_config_generation() == before {
                return Some((Config::from_bytes(bytes), before));
            }
        }
        None
    }
}
