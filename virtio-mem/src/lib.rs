//! The virtio memory device (virtio 1.3, section 5.15): the device and the driver, as state machines.
//!
//! Neither end does I/O, so tests run one against the other without a guest. One virtqueue carries the
//! driver's requests, and the device answers each. The configuration space says how much memory the host
//! wants plugged, and a config notification says that this has changed.
//!
//! The unit of plugging is the *device block* of `block_size` bytes. The guest adds and removes *memory blocks*,
//! each of which is made of device blocks. Growing by 1 GiB and then shrinking by two memory blocks looks like
//! this (`mm` is the guest's memory management, KVM is one implementation of [`device::Backing`]):
//!
//! ```text
//!   mm          driver::Driver                       device::Device        KVM
//!    |                 |   config notification             |  resize(1G)    |
//!    |                 | <---------------------------------|                |
//!    |                 |   ReadConfig: requested = 1G      |                |
//!    |                 | --------------------------------->|                |
//!    |                 |   Send(Plug, addr, 512 device blocks)    |                |
//!    |                 | --------------------------------->|  plug(range)   |
//!    |                 |                                   |--------------->|
//!    |                 |   Ack                             |                |
//!    | AddMemoryBlocks | <---------------------------------|                |
//!    | <---------------|   (all eight)                     |                |
//!    |                 |                                   |                |
//!    |                 |   config notification             |  resize(768M)  |
//!    |                 | <---------------------------------|                |
//!    |RemoveMemoryBlocks   ReadConfig: requested = 768M    |                |
//!    | <---------------| --------------------------------->|                |
//!    |                 |   Send(Unplug, addr, 128 device blocks)  |                |
//!    |                 | --------------------------------->|  unplug(range) |
//!    |                 |   Ack                             |--------------->|
//!    |                 | <---------------------------------|                |
//! ```
//!
//! [`device`] and [`driver`] never import each other. They share only [`wire`] and [`blocks`], so that a
//! misreading of the specification at one end fails at the other. Neither knows queues, clocks or logs.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

/// The program of README.md, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod blocks;
pub mod device;
pub mod driver;
pub mod wire;

pub use blocks::{BlockBitmap, BlockRange};
pub use device::{Backing, Busy, Device, DeviceConfig, DeviceState, PluggedRuns, Span};
pub use driver::{Action, ConfigError, Driver, DriverConfig, Idle, IdleReason, Outcome};
pub use wire::{BlockState, Config, Request, RequestKind, Response, ResponseType};
