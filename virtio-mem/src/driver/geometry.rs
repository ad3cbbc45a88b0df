//! Geometry: how a region divides into memory blocks and their device blocks.
//!
//! Mirrors the checks with which Linux's `virtio_mem.c` starts, and is stricter on purpose: Linux warns
//! about a misaligned region and leaves the misaligned parts unused, whereas here such a region gets no driver.
//! [`DriverConfig::fit`] first makes memory blocks smaller where that helps, as Linux's
//! `mhp_supports_memmap_on_memory` falls back to a memmap elsewhere.
//!
//! Invariant: the fixed numbers of a `Geometry` passed all checks, so the arithmetic on device blocks of the
//! region does not overflow.

use core::fmt;

use super::DriverConfig;
use crate::blocks::BlockRange;
use crate::wire::Config;

/// Why the driver cannot work with a configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The device block size is not a power of two.
    BlockSize,
    /// The size of a memory block is not a power of two, is smaller than a device block, or is more device blocks
    /// than one request can name; or a device block is smaller than the guest supports.
    MemoryBlockSize,
    /// The memmap of a memory block fills the whole memory block.
    Memmap,
    /// The region does not begin with a memory block, or a size is not a multiple of the device block size.
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
            ConfigError::Misaligned => {
                "the region does not begin with a memory block, or a size is not a multiple of the block"
            }
            ConfigError::Wraps => "the region ends beyond the address space",
            ConfigError::Sizes => "the sizes contradict each other",
            ConfigError::Changed => "the block size, the address or the region size has changed",
        })
    }
}

impl core::error::Error for ConfigError {}

impl DriverConfig {
    /// The same, changed to fit the region that `config` describes.
    ///
    /// Memory blocks are halved, down to `least` bytes, until the region consists of whole memory blocks:
    /// memory beyond the region may belong to another device. If the last memory block would then be filled by its
    /// memmap, memmaps lie elsewhere.
    #[must_use]
    pub const fn fit(mut self, config: &Config, least: u64) -> Self {
        while self.memory_block_size > least
            && !(config.addr | config.region_size).is_multiple_of(self.memory_block_size)
        {
            self.memory_block_size /= 2;
            self.memmap_size /= 2;
        }
        let last = config.region_size % self.memory_block_size;
        if last > 0 && last <= self.memmap_size {
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
    /// Device blocks per memory block. They fit into one request.
    pub(super) per_memory_block: u64,
    /// Device blocks at the start of each memory block that hold its memmap; 0 when the memmap lies
    /// elsewhere.
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
        let per_memory_block = memory_block_size / block_size;
        if !memory_block_size.is_power_of_two()
            || block_size < min_block_size
            || per_memory_block == 0
            || per_memory_block > u64::from(u16::MAX)
        {
            return Err(ConfigError::MemoryBlockSize);
        }
        if memmap_size >= memory_block_size {
            return Err(ConfigError::Memmap);
        }
        // A region may end within a memory block. Device blocks beyond its end are never plugged.
        if addr % memory_block_size != 0 || region_size % block_size != 0 {
            return Err(ConfigError::Misaligned);
        }
        if addr.checked_add(region_size).is_none() {
            return Err(ConfigError::Wraps);
        }
        let memmap_blocks = memmap_size.div_ceil(block_size);
        let geometry = Geometry { addr, region_size, block_size, per_memory_block, memmap_blocks };
        geometry.check(config)?;
        Ok(geometry)
    }

    /// Checks the configuration of a running device. A requested size above the usable size violates the
    /// specification, but does no harm and is accepted.
    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        let &Config { usable_region_size, plugged_size, requested_size, .. } = config;
        if (config.block_size, config.addr, config.region_size)
            != (self.block_size, self.addr, self.region_size)
        {
            return Err(ConfigError::Changed);
        }
        if (usable_region_size | plugged_size | requested_size) % self.block_size != 0 {
            return Err(ConfigError::Misaligned);
        }
        if plugged_size > usable_region_size || usable_region_size.max(requested_size) > self.region_size {
            return Err(ConfigError::Sizes);
        }
        Ok(())
    }

    /// The number of device blocks in `bytes`.
    pub(super) const fn blocks(&self, bytes: u64) -> u64 {
        bytes / self.block_size
    }

    /// The number of bytes in `blocks`.
    pub(super) const fn bytes(&self, blocks: u64) -> u64 {
        blocks * self.block_size
    }

    /// The guest-physical address of `block`.
    pub(super) const fn addr(&self, block: u64) -> u64 {
        self.addr + block * self.block_size
    }

    /// The device block at a guest-physical address in the region.
    pub(super) const fn block(&self, addr: u64) -> u64 {
        (addr - self.addr) / self.block_size
    }

    /// The memory block of `block`. The last one ends with the region.
    pub(super) const fn memory_block(&self, block: u64) -> BlockRange {
        let first = block - block % self.per_memory_block;
        let left = self.blocks(self.region_size) - first;
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
