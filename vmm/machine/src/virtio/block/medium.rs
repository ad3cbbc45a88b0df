//! What a disk of the guest needs of the host: a place for its sectors.
//!
//! Mirrors the part of QEMU's `BlockDriver` that virtio-blk uses here. A file implements it (`crate::disk`), and in tests
//! memory does, so this knows neither of them, nor the device.

use std::io;

/// Bytes of a sector, the unit of all positions (virtio 1.3, section 5.2.4).
pub const SECTOR: u64 = 512;

/// What is behind a disk. Each call takes as long as the host likes.
pub trait Medium {
    /// Fills `bytes` from the position `at`, in bytes.
    ///
    /// # Errors
    /// The host's. `bytes` may be partly filled.
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes `bytes` to the position `at`, in bytes. They may be in a cache of the host.
    ///
    /// # Errors
    /// The host's. `bytes` may be partly written.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Returns when everything that was written has left the caches of the host.
    ///
    /// # Errors
    /// The host's. Any of what was written may be lost.
    fn flush(&self) -> io::Result<()>;
}
