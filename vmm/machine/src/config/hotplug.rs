//! A hotplug region in the description of a VM, and whether it is possible.

use tidevm_abi::Size;
use virtio_mem::device::DEFAULT_EXTENT;

use super::{ConfigError, MAX_NODE, MEMORY_BLOCK, MIN_DEVICE_BLOCK, is_memory_blocks};

/// A hotplug region and its virtio-mem device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotplugConfig {
    /// The region, a multiple of 128 MiB.
    pub size: Size,
    /// The device block, a power of two from 2 MiB to 128 MiB.
    pub device_block: Size,
    /// How much the device asks the guest to plug at boot, a multiple of `device_block`.
    pub requested: Size,
    /// NUMA node to which the guest adds the memory, up to [`MAX_NODE`]. The node may be empty at boot.
    pub node: Option<u16>,
    /// How far the usable part of the region reaches beyond what is requested, as far as there is region. The guest's
    /// driver chooses whole memory blocks in it: two of the guest's memory blocks are enough.
    pub extent: Size,
}

impl HotplugConfig {
    /// A region of `size` with device blocks of 2 MiB. Nothing is requested at boot.
    #[must_use]
    pub const fn new(size: Size) -> Self {
        let (device_block, extent) = (MIN_DEVICE_BLOCK, Size(DEFAULT_EXTENT));
        Self { size, device_block, requested: Size(0), node: None, extent }
    }
}

impl HotplugConfig {
    pub(super) fn validate(&self, device: usize) -> Result<(), ConfigError> {
        let Self { size, device_block, requested, node, extent: _ } = *self;
        if !is_memory_blocks(size) {
            return Err(ConfigError::RegionUnaligned { device, size });
        }
        if !device_block.0.is_power_of_two() || !(MIN_DEVICE_BLOCK..=MEMORY_BLOCK).contains(&device_block) {
            return Err(ConfigError::DeviceBlock { device, device_block });
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
