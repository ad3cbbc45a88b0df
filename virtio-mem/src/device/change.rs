//! A request between its validation and its end: what the backing has to do for it.
//!
//! [`Device::handle`] does all of a request at once. Taking back gigabytes takes long, and meanwhile the driver reads the
//! configuration. So a VMM may divide a request: [`Device::begin`] and [`Device::commit`] are short and need the device,
//! and [`Change::apply`] between them needs the backing alone, on any thread. QEMU does all of it under one lock.
//!
//! ```
//! use virtio_mem::device::{Backing, Begun, Busy, Device, DeviceConfig, PluggedRuns, Span};
//! use virtio_mem::{Request, RequestKind, ResponseType};
//!
//! /// A host that can always do it.
//! struct Host;
//! impl Backing for Host {
//!     fn plug(&mut self, _: Span) -> Result<(), Busy> { Ok(()) }
//!     fn unplug(&mut self, _: Span) -> Result<(), Busy> { Ok(()) }
//!     fn unplug_all(&mut self, _: &PluggedRuns) -> Result<(), Busy> { Ok(()) }
//! }
//!
//! let mut device = Device::new(DeviceConfig::new(4 << 30, 1 << 30, 2 << 20))?;
//! device.resize(512 << 20)?;
//! let request = Request { kind: RequestKind::Plug, addr: 4 << 30, nb_blocks: 256 };
//! let Begun::Change(change) = device.begin(&request.to_bytes()) else { panic!("a good request") };
//! let outcome = std::thread::spawn(move || {
//!     let outcome = change.apply(&mut Host);
//!     (change, outcome)
//! });
//! // Nothing is plugged yet, and whoever reads the configuration gets an answer.
//! assert_eq!(device.config().plugged_size, 0);
//! let (change, outcome) = outcome.join().expect("no panic");
//! let response = device.commit(change, outcome).expect("no reset came between");
//! assert_eq!((response.kind, device.config().plugged_size), (ResponseType::Ack, 512 << 20));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::{Backing, Busy, Device, PluggedRuns, Refusal, Span};
use crate::wire::{Request, Response, ResponseType};

/// What a request comes to: one or the other, in every version.
#[derive(Debug)]
#[must_use]
pub enum Begun {
    /// It is answered.
    Answer(Response),
    /// The backing has something to do for it.
    Change(Change),
}

/// What a validated request wants of the backing. It goes back to the device that it came from, by [`Device::commit`].
#[derive(Debug)]
#[must_use]
pub struct Change {
    pub(super) request: Request,
    pub(super) what: What,
    /// The number of the change.
    pub(super) ticket: u64,
}

/// The kinds of changes.
#[derive(Debug)]
pub(super) enum What {
    Plug(Span),
    Unplug(Span),
    UnplugAll(PluggedRuns),
}

impl Change {
    /// Has `backing` do it.
    ///
    /// # Errors
    /// The error of the backing. The change goes back to the device all the same, with this outcome.
    pub fn apply(&self, backing: &mut (impl Backing + ?Sized)) -> Result<(), Busy> {
        match &self.what {
            What::Plug(span) => backing.plug(*span),
            What::Unplug(span) => backing.unplug(*span),
            What::UnplugAll(plugged) => backing.unplug_all(plugged),
        }
    }

    /// The request.
    #[must_use]
    pub const fn request(&self) -> Request {
        self.request
    }
}

impl Device {
    /// Whether a change waits for its [`Device::commit`].
    #[must_use]
    pub const fn is_changing(&self) -> bool {
        self.changing.is_some()
    }

    /// Ends `change`, with the outcome of [`Change::apply`], and returns the answer to its request. [`None`] when a system
    /// reset came between: then nobody waits for the answer, and nothing is plugged.
    pub fn commit(&mut self, change: Change, outcome: Result<(), Busy>) -> Option<Response> {
        self.changing.take_if(|ticket| *ticket == change.ticket)?;
        let Change { request, what, .. } = change;
        if let Err(busy) = outcome {
            return Some(self.refuse(Ok(request), Refusal::Busy(busy)));
        }
        match what {
            What::Plug(span) => self.set_plugged(span),
            What::Unplug(span) => self.set_unplugged(span),
            What::UnplugAll(plugged) => self.set_all_unplugged(plugged.size()),
        }
        self.retry.gained();
        Some(self.answer(Ok(request), Response::new(ResponseType::Ack)))
    }
}
