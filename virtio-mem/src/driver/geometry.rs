//! How a region divides into memory blocks and their sub-blocks, and the check that it does.
//!
//! The check is stricter than Linux's, which warns about a misaligned region and wastes it: what
//! the driver computes with is right, or there is no driver. What can be made to fit is
//! ([`DriverConfig::fit`]), as Linux's `mhp_supports_memmap_on_memory` falls back.

use core::fmt;

use super::DriverConfig;
use crate::blocks::BlockRange;
use crate::wire::Config;

/// Why the driver cannot work with a device, or with what a device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The block size is no power of two.
    BlockSize,
    /// The memory block is no power of two or smaller than the device's block, or that is smaller than
    /// the guest can plug, or more than a request can name.
    MemoryBlockSize,
    /// The memmap of a memory block is all of it.
    Memmap,
    /// The region does not begin with a memory block, or a size of it is not made of whole blocks.
    Misaligned,
    /// The region does not end below 2^64.
    Wraps,
    /// More is plugged than usable, or more usable or requested than there is.
    Sizes,
    /// What never changes about a device has changed.
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
    /// The same, made to fit the region that `config` describes: memory blocks are halved, down to
    /// `least` bytes, until the region is made of whole ones, since what is beyond it may be another's; and
    /// where the last of the least would be nothing but its memmap, memmaps lie elsewhere.
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
    /// Blocks of a memory block; they fit into one request.
    pub(super) per_memory_block: u64,
    /// The blocks at the start of each memory block that hold its memmap; 0 when it lies elsewhere.
    pub(super) memmap_blocks: u64,
}

impl Geometry {
    /// Checks that `config` makes sense to a driver with `driver`'s memory blocks.
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
        // A region may end within a memory block; what is beyond is never plugged.
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

    /// Checks what a running device says. `requested` above `usable` is tolerated: it breaks the
    /// specification and does no harm.
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

    /// Bytes as a number of blocks.
    pub(super) const fn blocks(&self, bytes: u64) -> u64 {
        bytes / self.block_size
    }

    /// A number of blocks as bytes.
    pub(super) const fn bytes(&self, blocks: u64) -> u64 {
        blocks * self.block_size
    }

    /// The block's guest-physical address.
    pub(super) const fn addr(&self, block: u64) -> u64 {
        self.addr + block * self.block_size
    }

    /// The block at a guest-physical address in the region.
    pub(super) const fn block(&self, addr: u64) -> u64 {
        (addr - self.addr) / self.block_size
    }

    /// The blocks of a memory block.
    pub(super) const fn memory_block(&self, index: usize) -> BlockRange {
        BlockRange { first: index as u64 * self.per_memory_block, count: self.per_memory_block }
    }

    /// The blocks that hold a memory block's memmap.
    pub(super) const fn reserve(&self, index: usize) -> BlockRange {
        BlockRange { first: self.memory_block(index).first, count: self.memmap_blocks }
    }

    /// The memory block that a block belongs to, and its place there.
    pub(super) const fn place(&self, block: u64) -> (usize, u64) {
        ((block / self.per_memory_block) as usize, block % self.per_memory_block)
    }

    /// A range of blocks by memory block.
    pub(super) fn pieces(self, range: BlockRange) -> impl Iterator<Item = (usize, BlockRange)> {
        let mut first = range.first;
        core::iter::from_fn(move || {
            let (index, start) = self.place(first);
            let count = (self.per_memory_block - start).min(range.end() - first);
            let piece = BlockRange { first, count };
            first += count;
            (count > 0).then_some((index, piece))
        })
    }
}
