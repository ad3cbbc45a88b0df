//! How a region divides into memory blocks and their sub-blocks, and the check that it does.
//!
//! The check is stricter than Linux's, which warns about a misaligned region and wastes it: what
//! the driver computes with is right, or there is no driver.

use core::fmt;

use super::DriverConfig;
use crate::blocks::{BlockRange, SubBlocks};
use crate::wire::Config;

/// Why the driver cannot work with a device, or with what a device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The block size is no power of two.
    BlockSize,
    /// The memory block is no power of two, smaller than the device's block, or more than
    /// [`SubBlocks::MAX`] of them.
    MemoryBlockSize,
    /// The memmap of a memory block does not fit into one device block.
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
            ConfigError::MemoryBlockSize => "the block size does not divide a memory block into 1 to 64",
            ConfigError::Memmap => "the memmap of a memory block is larger than a block",
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

/// The fixed numbers of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    addr: u64,
    region_size: u64,
    block_size: u64,
    /// Sub-blocks of a memory block, 1 to 64.
    pub(super) per_memory_block: u32,
    /// The sub-block that holds its memory block's memmap: the first, or none.
    pub(super) memmap: SubBlocks,
}

impl Geometry {
    /// Checks that `config` makes sense to a driver with `driver`'s memory blocks.
    pub(super) fn new(driver: DriverConfig, config: &Config) -> Result<Geometry, ConfigError> {
        let &Config { block_size, addr, region_size, .. } = config;
        let DriverConfig { memory_block_size, memmap_size } = driver;
        if !block_size.is_power_of_two() {
            return Err(ConfigError::BlockSize);
        }
        let per_memory_block = memory_block_size / block_size;
        if !memory_block_size.is_power_of_two()
            || per_memory_block == 0
            || per_memory_block > u64::from(SubBlocks::MAX)
        {
            return Err(ConfigError::MemoryBlockSize);
        }
        if memmap_size > block_size {
            return Err(ConfigError::Memmap);
        }
        // A region may end within a memory block; what is beyond is never plugged.
        if addr % memory_block_size != 0 || region_size % block_size != 0 {
            return Err(ConfigError::Misaligned);
        }
        if addr.checked_add(region_size).is_none() {
            return Err(ConfigError::Wraps);
        }
        let memmap = if memmap_size == 0 { SubBlocks::NONE } else { SubBlocks::of(0..1) };
        let per_memory_block = per_memory_block as u32;
        let geometry = Geometry { addr, region_size, block_size, per_memory_block, memmap };
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

    /// The first block of a memory block.
    pub(super) const fn first_of(&self, index: usize) -> u64 {
        index as u64 * self.per_memory_block as u64
    }

    /// The memory block that a block belongs to, and its place there.
    pub(super) const fn place(&self, block: u64) -> (usize, u32) {
        let per = self.per_memory_block as u64;
        ((block / per) as usize, (block % per) as u32)
    }

    /// The sub-blocks of the memory block that lie below block `end` of the region.
    pub(super) fn below(&self, index: usize, end: u64) -> SubBlocks {
        let count = end.saturating_sub(self.first_of(index)).min(u64::from(self.per_memory_block));
        SubBlocks::of(0..count as u32)
    }

    /// A range of blocks by memory block.
    pub(super) fn pieces(self, range: BlockRange) -> impl Iterator<Item = (usize, SubBlocks)> {
        let mut next = range.first;
        core::iter::from_fn(move || {
            let left = range.end() - next;
            let (index, start) = self.place(next);
            let count = u64::from(self.per_memory_block - start).min(left);
            next += count;
            (count > 0).then(|| (index, SubBlocks::of(start..start + count as u32)))
        })
    }
}
