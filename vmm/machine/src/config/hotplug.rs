//! A hotplug region in the description of a VM, and whether it is possible.

use tidevm_abi::Size;
use virtio_mem::device::DEFAULT_EXTENT;

use super::{
    ConfigError, DEFAULT_DEVICE_BLOCK, MAX_DEVICE_BLOCK, MAX_NODE, MIN_DEVICE_BLOCK, is_memory_blocks,
};
use crate::memory::layout::{Place, REGION_ALIGN};

/// A hotplug region and its virtio-mem device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotplugConfig {
    /// The region, a multiple of 128 MiB.
    pub size: Size,
    /// The device block, a power of two from 1 MiB to 1 GiB.
    pub device_block: Size,
    /// How much the device asks the guest to plug at boot, a multiple of `device_block`.
    pub requested: Size,
    /// NUMA node to which the guest adds the memory, up to [`MAX_NODE`]. The node may be empty at boot.
    pub node: Option<u16>,
    /// How far the usable part of the region reaches beyond what is requested, as far as there is region. The guest's
    /// driver chooses whole memory blocks in it: two of the guest's memory blocks are enough.
    pub extent: Size,
    /// How far behind a whole GiB the region begins: a multiple of `device_block`, less than 1 GiB. A guest uses no part of
    /// a region before its first whole memory block.
    pub offset: Size,
}

impl HotplugConfig {
    /// A region of `size` with device blocks of 2 MiB. Nothing is requested at boot.
    #[must_use]
    pub const fn new(size: Size) -> Self {
        let (device_block, extent) = (DEFAULT_DEVICE_BLOCK, Size(DEFAULT_EXTENT));
        Self { size, device_block, requested: Size(0), node: None, extent, offset: Size(0) }
    }

    /// Where the region wants to be.
    pub(crate) fn place(&self) -> Place {
        Place { size: self.size, offset: self.offset.0 }
    }
}

impl HotplugConfig {
    pub(super) fn validate(&self, device: usize) -> Result<(), ConfigError> {
        let Self { size, device_block, requested, node, extent: _, offset } = *self;
        if !is_memory_blocks(size) {
            return Err(ConfigError::RegionUnaligned { device, size });
        }
        if !device_block.0.is_power_of_two() || !(MIN_DEVICE_BLOCK..=MAX_DEVICE_BLOCK).contains(&device_block)
        {
            return Err(ConfigError::DeviceBlock { device, device_block });
        }
        if !size.0.is_multiple_of(device_block.0) {
            return Err(ConfigError::RegionOfBlocks { device, size, device_block });
        }
        if !offset.0.is_multiple_of(device_block.0) || offset.0 >= REGION_ALIGN {
            return Err(ConfigError::Offset { device, offset, device_block });
        }
        if !requested.0.is_multiple_of(device_block.0) {
            return Err(ConfigError::RequestedUnaligned { device, requested, device_block });
        }
        if requested > size {
            return Err(ConfigError::RequestedTooLarge { device, requested, size });
        }
        if let Some(node) = node.filter(|&node| node > MAX_NODE) {
            return Err(ConfigError::Node { device, node });
        }
        Ok(())
    }
}
