//! The bounds within which a VM is sized.

use tidevm_abi::Size;

/// Percent of the used memory that is kept free above it, when nothing else is asked for.
pub const DEFAULT_HEADROOM: u8 = 10;

/// Most percent of headroom.
pub const MOST_HEADROOM: u8 = 100;

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
    #[error("min={min} is below the boot memory of {base}, which stays: raise min or lower the boot memory")]
    BelowBoot {
        /// The lower bound.
        min: Size,
        /// Boot memory.
        base: Size,
    },
    /// The hotplug region is too small for the upper bound.
    #[error(
        "max={max} is above {limit}, boot memory and hotplug region together: lower max or enlarge the region"
    )]
    BeyondRegion {
        /// The upper bound.
        max: Size,
        /// The largest size that the VM can have.
        limit: Size,
    },
    /// A bound cannot be reached in whole device blocks.
    #[error(
        "{name}={size} is not the boot memory of {base} and whole device blocks of {block}: the next sizes are {below} and {above}"
    )]
    Unaligned {
        /// The bound: `min` or `max`.
        name: &'static str,
        /// Its size.
        size: Size,
        /// Boot memory.
        base: Size,
        /// The device block.
        block: Size,
        /// The largest size below it that can be reached.
        below: Size,
        /// The smallest size above it that can be reached.
        above: Size,
    },
    /// There is more headroom than memory.
    #[error("headroom={0}% is above {MOST_HEADROOM}%")]
    Headroom(u8),
}

impl Bounds {
    /// Bounds from `min` to `max` for a VM with `base` of boot memory and a hotplug region of `region` that is plugged
    /// in units of `block`. `headroom` is in percent of the used memory.
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
        if headroom > MOST_HEADROOM {
            return Err(BoundsError::Headroom(headroom));
        }
        if min > max {
            return Err(BoundsError::Crossed { min, max });
        }
        if min < base {
            return Err(BoundsError::BelowBoot { min, base });
        }
        let limit = Size(base.0.saturating_add(region.0));
        if max > limit {
            return Err(BoundsError::BeyondRegion { max, limit });
        }
        for (name, size) in [("min", min), ("max", max)] {
            let rest = (size.0 - base.0) % block.0;
            if rest != 0 {
                let below = Size(size.0 - rest);
                let above = Size(below.0.saturating_add(block.0));
                return Err(BoundsError::Unaligned { name, size, base, block, below, above });
            }
        }
        Ok(Self { base: base.0, min: min.0, max: max.0, block: block.0, headroom })
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

    /// The headroom in percent of the used memory.
    #[must_use]
    pub const fn headroom(&self) -> u8 {
        self.headroom
    }

    /// The size for a guest that uses `used`: with the headroom, at least one block of it.
    #[must_use]
    pub fn size_for(&self, used: Size) -> Size {
        self.at_least(Size(self.wanted(used)))
    }

    /// `used` and its headroom.
    fn wanted(&self, used: Size) -> u64 {
        let free = (u128::from(used.0) * u128::from(self.headroom)).div_ceil(100);
        let free = u64::try_from(free).unwrap_or(u64::MAX).max(self.block);
        used.0.saturating_add(free)
    }

    /// The most that a guest can use for which `size` is large enough, which is a size within the bounds and above the
    /// lower one. `None` if `size` is not even enough for a guest that uses nothing.
    #[must_use]
    pub(crate) fn most_used(&self, size: Size) -> Option<Size> {
        if self.wanted(Size(0)) > size.0 {
            return None;
        }
        // What is wanted rises with what is used: the last that fits is found by halves.
        let (mut fits, mut over) = (0, size.0.saturating_add(1));
        while over - fits > 1 {
            let middle = fits.midpoint(over);
            if self.wanted(Size(middle)) <= size.0 {
                fits = middle;
            } else {
                over = middle;
            }
        }
        Some(Size(fits))
    }

    /// The smallest size of whole blocks within the bounds that is not below `size`, or `max`.
    #[must_use]
    pub fn at_least(&self, size: Size) -> Size {
        let plugged = size.0.saturating_sub(self.base).div_ceil(self.block).saturating_mul(self.block);
        Size(plugged.saturating_add(self.base).clamp(self.min, self.max))
    }

    /// The largest size of whole blocks within the bounds that is not above `size`, or `min`.
    #[must_use]
    pub(crate) fn at_most(&self, size: Size) -> Size {
        let plugged = size.0.saturating_sub(self.base) / self.block * self.block;
        Size((plugged + self.base).clamp(self.min, self.max))
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
        assert_eq!(bounds(256, 8450), Err(BoundsError::BeyondRegion { max: Size::mib(8450), limit }));
        let unaligned = |name, size, below, above| {
            let [size, below, above] = [size, below, above].map(Size::mib);
            Err(BoundsError::Unaligned { name, size, base, block, below, above })
        };
        assert_eq!(bounds(257, 258), unaligned("min", 257, 256, 258));
        assert_eq!(bounds(256, 301), unaligned("max", 301, 300, 302));
        let sizes = (base, Size::gib(1));
        assert_eq!(Bounds::new(sizes, 101, base, Size::gib(8), block), Err(BoundsError::Headroom(101)));
        let whole = (Size(0), Size(u64::MAX));
        assert_eq!(Bounds::new(whole, 0, Size(0), Size(u64::MAX), Size(0)), Err(BoundsError::Block(Size(0))));
        assert!(Bounds::new((Size(1), Size(u64::MAX)), 0, Size(1), Size(u64::MAX), Size(2)).is_ok());
    }

    #[test]
    fn sizes_are_whole_blocks_above_boot_memory() {
        let odd =
            Bounds::new((Size::mib(259), Size::mib(1023)), 10, Size::mib(255), Size::gib(8), Size::mib(4))
                .unwrap();
        assert_eq!(odd.at_least(Size::mib(300)), Size::mib(303));
        assert_eq!(odd.at_least(Size(u64::MAX)), Size::mib(1023));
        assert_eq!(odd.at_least(Size(0)), Size::mib(259));
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

    #[test]
    fn a_size_is_enough_for_so_much_and_no_more() {
        let bounds = bounds(256, 8192).unwrap();
        for size in [258, 300, 1100, 8190].map(Size::mib) {
            let used = bounds.most_used(size).unwrap();
            assert!(bounds.size_for(used) <= size, "{used} in {size}");
            assert!(bounds.size_for(Size(used.0 + 1)) > size, "more than {used} in {size}");
        }
        assert_eq!(bounds.most_used(Size::mib(2)), Some(Size(0)));
        assert_eq!(bounds.most_used(Size::mib(1)), None);
    }
}
