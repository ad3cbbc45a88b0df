//! The virtio memory device (virtio 1.3, section 5.15), both ends of it, as state machines that do
//! no I/O: they can be run against each other in one test, and so they are.
//!
//! One virtqueue carries requests of the driver; the device answers each. What the host wants
//! stands in the configuration space, and a config notification says that it has changed. Growing
//! by 1 GiB and shrinking by a memory block look like this (`mm` is the guest's memory
//! management, KVM stands for whatever is behind [`device::Backing`]):
//!
//! ```text
//!   mm          driver::Driver                       device::Device        KVM
//!    |                 |   config notification             |  resize(1G)    |
//!    |                 | <---------------------------------|                |
//!    |                 |   ReadConfig: requested = 1G      |                |
//!    |                 | --------------------------------->|                |
//!    |                 |   Send(Plug, addr, 512 blocks)    |                |
//!    |                 | --------------------------------->|  plug(range)   |
//!    |                 |                                   |--------------->|
//!    |                 |   Ack                             |                |
//!    |  AddBlock       | <---------------------------------|                |
//!    | <---------------|      (once a memory block)        |                |
//!    |                 |                                   |                |
//!    |                 |   config notification             |  resize(896M)  |
//!    |                 | <---------------------------------|                |
//!    |  RemoveBlock    |   ReadConfig: requested = 896M    |                |
//!    | <---------------| --------------------------------->|                |
//!    |                 |   Send(Unplug, addr, 64 blocks)   |                |
//!    |                 | --------------------------------->|  unplug(range) |
//!    |                 |   Ack                             |--------------->|
//!    |                 | <---------------------------------|                |
//! ```
//!
//! [`device`] and [`driver`] never import each other: they meet in [`wire`] and [`blocks`], or a
//! misunderstanding of the one would hide in the other. Neither knows queues, clocks or logs.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod blocks;
pub mod device;
pub mod driver;
pub mod wire;

pub use blocks::{BlockBitmap, BlockRange};
pub use device::{Backing, Busy, Device, DeviceConfig};
pub use driver::{Action, ConfigError, Driver, DriverConfig, Outcome, Rest, Why};
pub use wire::{BlockState, Config, Request, RequestKind, Response, ResponseType};
