//! The fixed properties of a device, and what they allow.
//!
//! Mirrors the properties of QEMU's `virtio-mem` device (`hw/virtio/virtio-mem.c`). Differs on purpose: how far the usable
//! part of the region reaches beyond the requested size is a property. QEMU has a constant.

use serde::{Deserialize, Serialize};

use super::{ConfigError, ResizeError};
use crate::wire::{F_ACPI_PXM, F_PERSISTENT_SUSPEND, F_UNPLUGGED_INACCESSIBLE};

/// The extent of a new [`DeviceConfig`] in bytes: that of QEMU on x86, two memory blocks of Linux.
pub const DEFAULT_EXTENT: u64 = 256 << 20;

/// The fixed properties of a device.
///
/// ```
/// use virtio_mem::DeviceConfig;
/// use virtio_mem::device::ResizeError;
///
/// let mut config = DeviceConfig::new(4 << 30, 8 << 30, 2 << 20);
/// // For a Linux guest with 64 GiB or more, whose memory blocks have 2 GiB.
/// config.extent = 4 << 30;
/// config.node_id = Some(1);
/// assert_eq!(config.check_size(1 << 30), Ok(()));
/// assert_eq!(config.check_size(16 << 30), Err(ResizeError::BeyondRegion { region_size: 8 << 30 }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeviceConfig {
    /// Guest-physical address of the region; a multiple of `block_size`.
    pub addr: u64,
    /// Size of the region in bytes; a multiple of `block_size`.
    pub region_size: u64,
    /// Size and alignment of a device block in bytes; a power of two.
    pub block_size: u64,
    /// ACPI proximity domain of the region; `None` on a machine without proximity domains.
    pub node_id: Option<u16>,
    /// How many bytes the usable part of the region reaches beyond the requested size, as far as there is region. It
    /// gives the driver whole memory blocks to choose from, so it should be at least as large as two memory blocks of
    /// the guest: 256 MiB for most Linux guests, and 4 GiB for those with memory blocks of 2 GiB.
    pub extent: u64,
    /// Plugged device blocks keep their content while the guest is suspended to RAM. The device then offers
    /// [`F_PERSISTENT_SUSPEND`].
    pub persistent_suspend: bool,
}

impl DeviceConfig {
    /// A region of `region_size` bytes at the guest-physical address `addr`, in device blocks of `block_size` bytes. No
    /// proximity domain, an extent of [`DEFAULT_EXTENT`], no suspending.
    #[must_use]
    pub const fn new(addr: u64, region_size: u64, block_size: u64) -> DeviceConfig {
        let (node_id, extent, persistent_suspend) = (None, DEFAULT_EXTENT, false);
        DeviceConfig { addr, region_size, block_size, node_id, extent, persistent_suspend }
    }

    /// Checks that a device can have `requested_size` bytes plugged. It needs no device, so a host can check a
    /// size while another thread has the device.
    ///
    /// # Errors
    /// [`ResizeError`] when it cannot.
    pub const fn check_size(&self, requested_size: u64) -> Result<(), ResizeError> {
        let DeviceConfig { block_size, region_size, .. } = *self;
        if !requested_size.is_multiple_of(block_size) {
            return Err(ResizeError::Misaligned { block_size });
        }
        if requested_size > region_size {
            return Err(ResizeError::BeyondRegion { region_size });
        }
        Ok(())
    }

    /// Checks that the properties do not contradict each other.
    pub(super) const fn check(&self) -> Result<(), ConfigError> {
        let DeviceConfig { addr, region_size, block_size, .. } = *self;
        if !block_size.is_power_of_two() {
            return Err(ConfigError::BlockSize);
        }
        if (addr | region_size) % block_size != 0 {
            return Err(ConfigError::Misaligned);
        }
        if addr.checked_add(region_size).is_none() {
            return Err(ConfigError::Wraps);
        }
        Ok(())
    }

    /// The number of device blocks.
    pub(super) const fn blocks(&self) -> u64 {
        self.region_size / self.block_size
    }

    /// The feature bits of the device type.
    pub(super) const fn features(&self) -> u64 {
        let pxm = if self.node_id.is_some() { 1 << F_ACPI_PXM } else { 0 };
        let suspend = if self.persistent_suspend { 1 << F_PERSISTENT_SUSPEND } else { 0 };
        pxm | suspend | 1 << F_UNPLUGGED_INACCESSIBLE
    }

    /// The usable size that `requested_size` needs; 0 when nothing is requested.
    pub(super) fn needed_usable_size(&self, requested_size: u64) -> u64 {
        if requested_size == 0 {
            return 0;
        }
        let wanted = requested_size.saturating_add(self.extent);
        // Both bounds are multiples of the device block size, so rounding up never leaves the region.
        let usable = wanted.checked_next_multiple_of(self.block_size);
        usable.map_or(self.region_size, |usable| usable.min(self.region_size))
    }
}
