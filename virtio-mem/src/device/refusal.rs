//! The reasons for which a device refuses: a configuration, a size that the host wants, a request.
//!
//! The wire format has only three answers for a refused request (virtio 1.3, section 5.15.6), after which
//! Linux's driver gives up for good or waits for a minute. So the device keeps the exact reason, which the host
//! can show.

use core::fmt;

use super::Busy;
use crate::wire::{BadRequest, Request, ResponseType};

/// Why a [`DeviceConfig`](super::DeviceConfig) is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The device block size is not a power of two.
    BlockSize,
    /// The address or the size of the region is not a multiple of the device block size.
    Misaligned,
    /// The region does not end below 2^64.
    Wraps,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConfigError::BlockSize => "the block size is not a power of two",
            ConfigError::Misaligned => "the region's address or size is not a multiple of the block size",
            ConfigError::Wraps => "the region ends beyond the address space",
        })
    }
}

impl core::error::Error for ConfigError {}

/// Why a size cannot be requested. Nothing else can be wrong with a size, so this enum is exhaustive: a VMM answers each case in
/// its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeError {
    /// The size is not a multiple of the device block size.
    Misaligned {
        /// The device block size in bytes.
        block_size: u64,
    },
    /// The size is larger than the region.
    BeyondRegion {
        /// The region's size in bytes.
        region_size: u64,
    },
}

impl fmt::Display for ResizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResizeError::Misaligned { block_size } => {
                write!(f, "the size is not a multiple of the block size of {block_size} bytes")
            }
            ResizeError::BeyondRegion { region_size } => {
                write!(f, "the size is more than the region's {region_size} bytes")
            }
        }
    }
}

impl core::error::Error for ResizeError {}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The bytes are not a request.
    BadRequest(BadRequest),
    /// The address is not a multiple of the device block size.
    Misaligned,
    /// The number of device blocks is 0.
    NoBlocks,
    /// A device block lies outside the usable part of the region.
    NotUsable,
    /// A device block to plug is plugged already.
    AlreadyPlugged,
    /// A device block to unplug is unplugged already.
    AlreadyUnplugged,
    /// More than the requested size would be plugged.
    OverAsk,
    /// The [`Backing`](super::Backing) could not do it.
    Busy(Busy),
}

impl Refusal {
    /// The answer to the driver.
    pub(super) const fn response(self) -> ResponseType {
        match self {
            Refusal::BadRequest(_)
            | Refusal::Misaligned
            | Refusal::NoBlocks
            | Refusal::NotUsable
            | Refusal::AlreadyPlugged
            | Refusal::AlreadyUnplugged => ResponseType::Error,
            Refusal::OverAsk => ResponseType::Nack,
            Refusal::Busy(_) => ResponseType::Busy,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::BadRequest(bad) => bad.fmt(f),
            Refusal::Misaligned => f.write_str("the address is not a multiple of the block size"),
            Refusal::NoBlocks => f.write_str("no block is named"),
            Refusal::NotUsable => f.write_str("a block lies outside the usable region"),
            Refusal::AlreadyPlugged => f.write_str("a block is plugged already"),
            Refusal::AlreadyUnplugged => f.write_str("a block is unplugged already"),
            Refusal::OverAsk => f.write_str("more than the requested size would be plugged"),
            Refusal::Busy(busy) => busy.fmt(f),
        }
    }
}

/// A refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// The request; `None` when the bytes were not a request.
    pub request: Option<Request>,
    /// Why it was refused.
    pub why: Refusal,
}

impl core::error::Error for Refusal {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Request { kind, addr, nb_blocks }) = self.request {
            write!(f, "{kind:?} of {nb_blocks} blocks at {addr:#x}: ")?;
        }
        self.why.fmt(f)
    }
}

impl core::error::Error for Refused {}
