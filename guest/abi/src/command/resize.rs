//! `resize`, `plug` and `unplug`: a new size for a hotplug device.

use core::fmt;
use core::time::Duration;

use super::suffix;
use crate::size::Size;
use crate::words::{SyntaxError, Words};

/// `resize`, `plug` or `unplug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resize {
    /// The new size.
    pub target: Target,
    /// Index of the device, in the order of the `--hotplug` options.
    pub device: usize,
    /// How long it may take. Without it a shrink that is blocked fails at once; with it, at the
    /// deadline.
    pub within: Option<Duration>,
}

/// The new size, absolute or relative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `resize`: exactly this.
    To(Size),
    /// `plug`: this much above what is requested now.
    Plug(Size),
    /// `unplug`: this much below what is requested now.
    Unplug(Size),
}

impl Target {
    /// The size as it was written.
    #[must_use]
    pub fn size(self) -> Size {
        match self {
            Self::To(size) | Self::Plug(size) | Self::Unplug(size) => size,
        }
    }

    /// The new size of a device that requests `requested` now.
    ///
    /// # Errors
    /// There is no such size.
    pub fn of(self, requested: Size) -> Result<Size, NoTarget> {
        match self {
            Self::To(size) => Ok(size),
            Self::Plug(size) => requested.checked_add(size).ok_or(NoTarget::TooLarge(size)),
            Self::Unplug(size) => requested.checked_sub(size).ok_or(NoTarget::Negative { size, requested }),
        }
    }
}

/// Why a target cannot be. No size of a device decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTarget {
    /// `plug`: beyond 64 bits.
    TooLarge(Size),
    /// `unplug`: below 0.
    Negative {
        /// The size to unplug.
        size: Size,
        /// The size that is requested now.
        requested: Size,
    },
}

impl fmt::Display for NoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(size) => write!(f, "{size} more is no size"),
            Self::Negative { size, requested } => {
                write!(f, "cannot unplug {size}, only {requested} is requested")
            }
        }
    }
}

impl core::error::Error for NoTarget {}

/// Reads what follows the verb that makes such a target.
pub(super) fn parse(words: &mut Words<'_>, target: fn(Size) -> Target) -> Result<Resize, SyntaxError> {
    let relative = !matches!(target(Size(0)), Target::To(_));
    let expected = if relative { "a size above 0 such as 512M" } else { "a size such as 2G" };
    let size = words.size(expected, |size| !relative || size.0 > 0)?;
    let (device, within) = suffix::parse(words)?;
    Ok(Resize { target: target(size), device: device.unwrap_or(0), within })
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.target {
            Target::To(_) => "resize",
            Target::Plug(_) => "plug",
            Target::Unplug(_) => "unplug",
        };
        write!(f, "{verb} {}", self.target.size())?;
        suffix::write(f, (self.device > 0).then_some(self.device), self.within)
    }
}
