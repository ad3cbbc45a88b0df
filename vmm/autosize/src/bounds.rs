//! The bounds within which a VM is sized.

use tidevm_abi::Size;

/// Percent of the used memory that is kept free above it, when nothing else is asked for.
pub const DEFAULT_HEADROOM: u8 = 10;

/// The bounds of a VM's memory. All sizes are totals: boot memory and what is plugged.
///
/// Invariant: `min` and `max` differ from `base` by whole blocks, and `base <= min <= max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    base: u64,
    min: u64,
    max: u64,
    block: u64,
    headroom: u8,
}

/// Why bounds are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundsError {
    /// The device block has no size.
    #[error("a device block of {0} cannot be a step")]
    Block(Size),
    /// The lower bound is above the upper one.
    #[error("min={min} is above max={max}")]
    Crossed {
        /// The lower bound.
        min: Size,
        /// The upper bound.
        max: Size,
    },
    /// The VM always has its boot memory.
    #[error("min={min} is below the boot memory of {base}, which stays: raise min or lower --memory")]
    BelowBoot {
        /// The lower bound.
        min: Size,
        /// Boot memory.
        base: Size,
    },
    /// The hotplug region is too small for the upper bound.
    #[error(
        "max={max} is above {limit}, boot memory and hotplug region together: lower max or enlarge --hotplug"
    )]
    BeyondRegion {
        /// The upper bound.
        max: Size,
        /// The largest size that the VM can have.
        limit: Size,
    },
}

impl Bounds {
    /// Bounds from `min` to `max` for a VM with `base` of boot memory and a hotplug region of `region` that is plugged
    /// in units of `block`. `min` is rounded up and `max` down to what whole blocks above boot memory can be.
    /// `headroom` is in percent of the used memory.
    ///
    /// # Errors
    /// [`BoundsError`].
    pub fn new(
        (min, max): (Size, Size),
        headroom: u8,
        base: Size,
        region: Size,
        block: Size,
    ) -> Result<Self, BoundsError> {
        if block.0 == 0 {
            return Err(BoundsError::Block(block));
        }
        if min < base {
            return Err(BoundsError::BelowBoot { min, base });
        }
        let limit = Size(base.0.saturating_add(region.0));
        if max > limit {
            return Err(BoundsError::BeyondRegion { max, limit });
        }
        // At most `limit`, or it would be above every `max`.
        let lowest = (min.0 - base.0).div_ceil(block.0).saturating_mul(block.0).saturating_add(base.0);
        let highest = max.0.saturating_sub(base.0) / block.0 * block.0 + base.0;
        if min > max || lowest > highest {
            return Err(BoundsError::Crossed { min, max });
        }
        Ok(Self { base: base.0, min: lowest, max: highest, block: block.0, headroom })
    }

    /// The smallest size.
    #[must_use]
    pub const fn min(&self) -> Size {
        Size(self.min)
    }

    /// The largest size.
    #[must_use]
    pub const fn max(&self) -> Size {
        Size(self.max)
    }

    /// Boot memory, which every size contains.
    #[must_use]
    pub const fn base(&self) -> Size {
        Size(self.base)
    }

    /// The unit of every step.
    #[must_use]
    pub const fn block(&self) -> Size {
        Size(self.block)
    }

    /// The size for a guest that uses `used`: with the headroom, at least one block of it.
    #[must_use]
    pub fn size_for(&self, used: Size) -> Size {
        let free = (u128::from(used.0) * u128::from(self.headroom)).div_ceil(100);
        let free = u64::try_from(free).unwrap_or(u64::MAX).max(self.block);
        self.at_least(Size(used.0.saturating_add(free)))
    }

    /// The smallest size of whole blocks within the bounds that is not below `size`, or `max`.
    #[must_use]
    pub fn at_least(&self, size: Size) -> Size {
        let plugged = size.0.saturating_sub(self.base).div_ceil(self.block).saturating_mul(self.block);
        Size(plugged.saturating_add(self.base).clamp(self.min, self.max))
    }
}

#[cfg(test)]
mod tests {
    use tidevm_abi::Size;

    use super::{Bounds, BoundsError};

    fn bounds(min: u64, max: u64) -> Result<Bounds, BoundsError> {
        let sizes = (Size::mib(min), Size::mib(max));
        Bounds::new(sizes, 10, Size::mib(256), Size::gib(8), Size::mib(2))
    }

    #[test]
    fn bounds_that_no_vm_can_keep_are_refused() {
        let (base, block) = (Size::mib(256), Size::mib(2));
        assert_eq!(bounds(128, 1024), Err(BoundsError::BelowBoot { min: Size::mib(128), base }));
        let crossed = |min, max| BoundsError::Crossed { min: Size::mib(min), max: Size::mib(max) };
        assert_eq!(bounds(1024, 512), Err(crossed(1024, 512)));
        let limit = Size::mib(8448);
        assert_eq!(bounds(256, 8449), Err(BoundsError::BeyondRegion { max: Size::mib(8449), limit }));
        // No multiple of the block lies between them.
        assert_eq!(bounds(257, 257), Err(crossed(257, 257)));
        let whole = (Size(0), Size(u64::MAX));
        assert_eq!(Bounds::new(whole, 0, Size(0), Size(u64::MAX), Size(0)), Err(BoundsError::Block(Size(0))));
        assert!(Bounds::new((Size(1), Size(u64::MAX)), 0, Size(1), Size(u64::MAX), block).is_ok());
    }

    #[test]
    fn sizes_are_whole_blocks_above_boot_memory() {
        let odd =
            Bounds::new((Size::mib(257), Size::mib(1024)), 10, Size::mib(255), Size::gib(8), Size::mib(4))
                .unwrap();
        assert_eq!((odd.min(), odd.max()), (Size::mib(259), Size::mib(1023)));
        assert_eq!(odd.at_least(Size::mib(300)), Size::mib(303));
        assert_eq!(odd.at_least(Size(u64::MAX)), Size::mib(1023));
    }

    #[test]
    fn headroom_is_in_percent_and_at_least_a_block() {
        let bounds = bounds(256, 8192).unwrap();
        assert_eq!(bounds.size_for(Size::mib(1000)), Size::mib(1100));
        assert_eq!(bounds.size_for(Size::mib(1001)), Size::mib(1102));
        let none = Bounds::new((Size::mib(256), Size::gib(8)), 0, Size::mib(256), Size::gib(8), Size::mib(2))
            .unwrap();
        assert_eq!(none.size_for(Size::mib(1000)), Size::mib(1002));
        assert_eq!(none.size_for(Size(u64::MAX)), Size::gib(8));
    }
}
