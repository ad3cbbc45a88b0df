//! Everything that a device says no to, and why: its own configuration, a size that the host
//! wants, a request of the driver.
//!
//! What the driver is told of a refused request is one of three words, after which Linux's driver
//! gives up for good or waits for a minute; so the reason is kept for the host to show.

use core::fmt;

use super::Busy;
use crate::wire::{BadRequest, Request, ResponseType};

/// Why a [`DeviceConfig`](super::DeviceConfig) describes no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The block size is no power of two.
    BlockSize,
    /// The address or the size of the region is not a multiple of the block size.
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

/// Why a size cannot be requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeError {
    /// It is not a multiple of the block size.
    Misaligned {
        /// The block size in bytes.
        block_size: u64,
    },
    /// It is more than the region holds.
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

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no request.
    BadRequest(BadRequest),
    /// Its address is not a multiple of the block size.
    Misaligned,
    /// It names no block.
    NoBlocks,
    /// A block lies outside the usable part of the region.
    NotUsable,
    /// A block to plug is plugged.
    AlreadyPlugged,
    /// A block to unplug is unplugged.
    AlreadyUnplugged,
    /// More would be plugged than is requested.
    OverAsk,
    /// The [`Backing`](super::Backing) could not.
    Busy,
}

impl Refusal {
    /// How the driver is told.
    pub(super) const fn response(self) -> ResponseType {
        match self {
            Refusal::BadRequest(_)
            | Refusal::Misaligned
            | Refusal::NoBlocks
            | Refusal::NotUsable
            | Refusal::AlreadyPlugged
            | Refusal::AlreadyUnplugged => ResponseType::Error,
            Refusal::OverAsk => ResponseType::Nack,
            Refusal::Busy => ResponseType::Busy,
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
            Refusal::Busy => Busy.fmt(f),
        }
    }
}

/// A request that was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The request, if it is one.
    pub request: Option<Request>,
    /// Why it was refused.
    pub why: Refusal,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Request { kind, addr, nb_blocks }) = self.request {
            write!(f, "{kind:?} of {nb_blocks} blocks at {addr:#x}: ")?;
        }
        self.why.fmt(f)
    }
}
