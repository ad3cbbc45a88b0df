//! What is known of a disk of the guest.

/// A virtio-blk device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStatus {
    /// A driver runs the device (`DRIVER_OK`).
    pub driver: bool,
}
