//! Geometry: how a region divides into memory blocks and the parts of them that are plugged.
//!
//! Mirrors the start of Linux's `virtio_mem.c` (`virtio_mem_init_hotplug`). The guest plugs *units*. A unit is a device block,
//! or, where that is less than the guest can take in or give up, as many device blocks as make such a part (Linux: the
//! sub-block size of its sub-block mode). A device block that is larger than a memory block makes the memory block as large
//! ([`DriverConfig::fit`]; Linux: its big-block mode). Units begin at the first memory block that begins in the region, as in
//! Linux: what lies before it, and a rest at the end that makes no unit, is not used ([`Geometry::unusable`]).
//!
//! Differs on purpose: the last memory block may end with the region, where Linux leaves out what is no whole memory block.
//! [`DriverConfig::fit`] also makes memory blocks smaller where that helps, as Linux's `mhp_supports_memmap_on_memory` falls
//! back to a memmap elsewhere.
//!
//! In this file a device block is the device's, and has its index in the region of the device. The files `plan`, `region` and
//! `outcome` know units alone, and call them device blocks: mostly they are.
//!
//! Invariants: the fixed numbers of a `Geometry` passed all checks, so the arithmetic on device blocks and units of the
//! region does not overflow. Every unit is made of whole device blocks, and every memory block but the last of whole units.

use core::fmt;

use crate::blocks::BlockRange;
use crate::wire::Config;

/// The properties of the guest that the driver needs.
///
/// ```
/// use virtio_mem::DriverConfig;
///
/// // Memory blocks of 128 MiB whose first 2 MiB hold the memmap. The guest can use parts that are multiples of 2 MiB.
/// let guest = DriverConfig::new(128 << 20, 2 << 20).with_memmap_size(2 << 20);
/// assert_eq!((guest.memory_block_size, guest.memmap_size, guest.min_block_size), (128 << 20, 2 << 20, 2 << 20));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverConfig {
    /// Size and alignment in bytes of a memory block, the unit in which the guest adds and removes memory. A
    /// memory block has at most as many device blocks as one request can name.
    pub memory_block_size: u64,
    /// Number of bytes at the start of every memory block that hold its memmap; 0 when the memmap lies elsewhere.
    pub memmap_size: u64,
    /// Size in bytes of the smallest part of a memory block that the guest can take in or give up. Smaller device blocks
    /// are plugged and unplugged by so many as make one.
    pub min_block_size: u64,
}

/// Why the driver cannot work with a configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The device block size is not a power of two.
    BlockSize,
    /// The size of a memory block or of the smallest part of one is not a power of two; or a memory block is smaller than a
    /// device block or than that part, or is more device blocks than one request can name.
    MemoryBlockSize,
    /// The memmap of a memory block fills the whole memory block.
    Memmap,
    /// The address of the region is not a multiple of the device block size.
    Misaligned,
    /// The region does not end below 2^64.
    Wraps,
    /// The plugged size exceeds the usable size, or the usable or requested size exceeds the region.
    Sizes,
    /// A field that must never change has changed.
    Changed,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConfigError::BlockSize => "the block size is not a power of two",
            ConfigError::MemoryBlockSize => {
                "the block size does not divide a memory block into parts that the guest can plug"
            }
            ConfigError::Memmap => "the memmap of a memory block leaves nothing of it",
            ConfigError::Misaligned => "the region does not begin with a block",
            ConfigError::Wraps => "the region ends beyond the address space",
            ConfigError::Sizes => "the sizes contradict each other",
            ConfigError::Changed => "the block size, the address or the region size has changed",
        })
    }
}

impl core::error::Error for ConfigError {}

impl DriverConfig {
    /// A guest with memory blocks of `memory_block_size` bytes, that can take in and give up parts of `min_block_size` bytes. The
    /// memmap of a memory block lies elsewhere.
    #[must_use]
    pub const fn new(memory_block_size: u64, min_block_size: u64) -> Self {
        Self { memory_block_size, memmap_size: 0, min_block_size }
    }

    /// The same with another [`memmap_size`](Self::memmap_size).
    #[must_use]
    pub const fn with_memmap_size(mut self, memmap_size: u64) -> Self {
        self.memmap_size = memmap_size;
        self
    }

    /// The same, changed to fit the region that `config` describes.
    ///
    /// A memory block becomes as large as a device block that is larger. Otherwise memory blocks are halved, down to
    /// `least` bytes, until the region consists of whole memory blocks: memory beyond the region may belong to another
    /// device. If the last memory block would then be filled by its memmap, memmaps lie elsewhere, unless a part of the
    /// region is not used anyway.
    #[must_use]
    pub const fn fit(mut self, config: &Config, least: u64) -> Self {
        while self.memory_block_size < config.block_size && self.memory_block_size.is_power_of_two() {
            let Some(twice) = self.memory_block_size.checked_mul(2) else { return self };
            self.memory_block_size = twice;
            self.memmap_size *= 2;
        }
        while self.memory_block_size > least
            && self.memory_block_size > config.block_size
            && !(config.addr | config.region_size).is_multiple_of(self.memory_block_size)
        {
            self.memory_block_size /= 2;
            self.memmap_size /= 2;
        }
        let last = config.region_size % self.memory_block_size;
        if last > 0 && last <= self.memmap_size && config.addr.is_multiple_of(self.memory_block_size) {
            self.memmap_size = 0;
        }
        self
    }
}

/// The fixed numbers of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    addr: u64,
    region_size: u64,
    block_size: u64,
    /// Size of a unit.
    pub(super) unit_size: u64,
    /// Device blocks of a unit.
    per_unit: u64,
    /// Device blocks before the first unit.
    before: u64,
    /// Number of units.
    pub(super) units: u64,
    /// Units per memory block. Their device blocks fit into one request.
    pub(super) per_memory_block: u64,
    /// Units at the start of each memory block that hold its memmap; 0 when the memmap lies elsewhere.
    pub(super) memmap_blocks: u64,
}

impl Geometry {
    /// Checks `config` for a guest with the memory blocks of `driver`.
    pub(super) fn new(driver: DriverConfig, config: &Config) -> Result<Geometry, ConfigError> {
        let &Config { block_size, addr, region_size, .. } = config;
        let DriverConfig { memory_block_size, memmap_size, min_block_size } = driver;
        if !block_size.is_power_of_two() {
            return Err(ConfigError::BlockSize);
        }
        let unit_size = block_size.max(min_block_size);
        if !memory_block_size.is_power_of_two()
            || !unit_size.is_power_of_two()
            || memory_block_size < unit_size
            || memory_block_size / block_size > u64::from(u16::MAX)
        {
            return Err(ConfigError::MemoryBlockSize);
        }
        if memmap_size >= memory_block_size {
            return Err(ConfigError::Memmap);
        }
        if addr % block_size != 0 {
            return Err(ConfigError::Misaligned);
        }
        let end = addr.checked_add(region_size).ok_or(ConfigError::Wraps)?;
        let start = addr.checked_next_multiple_of(memory_block_size).unwrap_or(end).min(end);
        let (per_memory_block, memmap_blocks) =
            (memory_block_size / unit_size, memmap_size.div_ceil(unit_size));
        let units = (end - start) / unit_size;
        // A region that cannot be used as a whole needs no memory block that its memmap would fill.
        let filled = if start > addr && units % per_memory_block <= memmap_blocks {
            units % per_memory_block
        } else {
            0
        };
        let geometry = Geometry {
            addr,
            region_size,
            block_size,
            unit_size,
            per_unit: unit_size / block_size,
            before: (start - addr) / block_size,
            units: units - filled,
            per_memory_block,
            memmap_blocks,
        };
        geometry.check(config)?;
        Ok(geometry)
    }

    /// Checks the configuration of a running device. Some violations of the specification do no harm and are accepted: a
    /// requested size above the usable size, and sizes that are not multiples of the device block size, of which the rest
    /// is not used.
    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        let &Config { usable_region_size, plugged_size, requested_size, .. } = config;
        if (config.block_size, config.addr, config.region_size)
            != (self.block_size, self.addr, self.region_size)
        {
            return Err(ConfigError::Changed);
        }
        if plugged_size > usable_region_size || usable_region_size.max(requested_size) > self.region_size {
            return Err(ConfigError::Sizes);
        }
        Ok(())
    }

    /// Bytes of the region that lie in no unit.
    pub(super) const fn unusable(&self) -> u64 {
        self.region_size - self.bytes(self.units)
    }

    /// The number of whole units in `bytes`.
    pub(super) const fn blocks(&self, bytes: u64) -> u64 {
        bytes / self.unit_size
    }

    /// The number of bytes in `blocks` units.
    pub(super) const fn bytes(&self, blocks: u64) -> u64 {
        blocks * self.unit_size
    }

    /// Bytes of `device_blocks` device blocks.
    pub(super) const fn device_bytes(&self, device_blocks: u64) -> u64 {
        device_blocks * self.block_size
    }

    /// Device blocks of a unit.
    pub(super) const fn per_unit(&self) -> u64 {
        self.per_unit
    }

    /// Most units of one request.
    pub(super) const fn most_of_a_request(&self) -> u64 {
        u16::MAX as u64 / self.per_unit()
    }

    /// The units that lie in the first `usable` bytes of the region as a whole.
    pub(super) const fn usable_units(&self, usable: u64) -> u64 {
        let units = usable.saturating_sub(self.device_bytes(self.before)) / self.unit_size;
        if units < self.units { units } else { self.units }
    }

    /// The device blocks in the first `usable` bytes of the region.
    pub(super) const fn usable_device_blocks(&self, usable: u64) -> u64 {
        usable / self.block_size
    }

    /// The guest-physical address of unit `block`.
    pub(super) const fn addr(&self, block: u64) -> u64 {
        self.device_addr(self.before) + block * self.unit_size
    }

    /// The unit at a guest-physical address.
    pub(super) const fn block(&self, addr: u64) -> u64 {
        (addr - self.device_addr(self.before)) / self.unit_size
    }

    /// The guest-physical address of a device block.
    pub(super) const fn device_addr(&self, device_block: u64) -> u64 {
        self.addr + device_block * self.block_size
    }

    /// The device block at a guest-physical address.
    pub(super) const fn device_block(&self, addr: u64) -> u64 {
        (addr - self.addr) / self.block_size
    }

    /// The device blocks of units.
    pub(super) const fn device_blocks(&self, units: BlockRange) -> BlockRange {
        let per_unit = self.per_unit();
        BlockRange::new(self.before + units.first() * per_unit, units.count() * per_unit)
    }

    /// The units that lie in a range of device blocks as a whole.
    pub(super) const fn units_in(&self, device_blocks: BlockRange) -> BlockRange {
        let per_unit = self.per_unit();
        let first = device_blocks.first().saturating_sub(self.before).div_ceil(per_unit);
        let end = device_blocks.end().saturating_sub(self.before) / per_unit;
        let end = if end < self.units { end } else { self.units };
        BlockRange::new(first, end.saturating_sub(first))
    }

    /// The unit that has a device block, if one has.
    pub(super) fn unit_of(&self, device_block: u64) -> Option<u64> {
        let unit = device_block.checked_sub(self.before)? / self.per_unit();
        (unit < self.units).then_some(unit)
    }

    /// The end of the device blocks from `device_block` on that are alike: before the units, in units, or behind them.
    pub(super) const fn end_of_kind(&self, device_block: u64) -> u64 {
        let behind = self.device_blocks(BlockRange::new(0, self.units)).end();
        if device_block < self.before {
            self.before
        } else if device_block < behind {
            behind
        } else {
            u64::MAX
        }
    }

    /// The memory block of unit `block`. The last one ends with the units.
    pub(super) const fn memory_block(&self, block: u64) -> BlockRange {
        let first = block - block % self.per_memory_block;
        let left = self.units - first;
        BlockRange::new(first, if left < self.per_memory_block { left } else { self.per_memory_block })
    }

    /// The device blocks that hold the memmap of `memory_block`.
    pub(super) const fn reserve(&self, memory_block: BlockRange) -> BlockRange {
        BlockRange::new(memory_block.first(), self.memmap_blocks)
    }

    /// The memory blocks of the first and of the last device block of `range`, which is not empty.
    pub(super) fn ends(self, range: BlockRange) -> impl Iterator<Item = BlockRange> {
        let (low, high) = (self.memory_block(range.first()), self.memory_block(range.end() - 1));
        [Some(low), (low != high).then_some(high)].into_iter().flatten()
    }
}
