//! The device: how much memory the host wants plugged, which device blocks are plugged, and the answer to each
//! request.
//!
//! Mirrors virtio 1.3, section 5.15.6 (device requirements) and QEMU's `hw/virtio/virtio-mem.c`.
//! Differs from QEMU on purpose: a request of unknown type is answered with ERROR instead of putting the
//! device into a broken state, and the last refused request is kept with its reason, for the host to show.
//!
//! A request goes through three stages. It is validated: first the range, then the states of the device blocks,
//! then the quota. The [`Backing`] then does everything that can fail. Last, the device changes its own state.
//! So ERROR means that the request is wrong, NACK that it is well-formed and asks for more than the host
//! wants, and BUSY that the host could not do it and nothing has changed.
//!
//! Invariants, after every call: plugged device blocks lie below `usable`; `requested <= usable <= region`; all
//! sizes are multiples of the device block size; `usable` shrinks in UNPLUG_ALL and in [`Device::reset`] only.

mod refusal;

use core::fmt;

pub use self::refusal::{ConfigError, Refusal, Refused, ResizeError};
use crate::blocks::{BlockBitmap, BlockRange};
use crate::wire::{
    BlockState, Config, F_ACPI_PXM, F_UNPLUGGED_INACCESSIBLE, Request, RequestKind, Response, ResponseType,
};

/// How far the usable part of the region reaches beyond the requested size. It gives the driver whole memory
/// device blocks to choose from. QEMU uses the same value on x86.
const USABLE_EXTENT: u64 = 256 << 20;

/// The memory behind a device: makes device blocks accessible to the guest, and takes them away again.
///
/// The device calls it after it has validated a request and before it changes its own state. Device block `n`
/// starts `n` device block sizes after the region's address.
pub trait Backing {
    /// Makes `range`, which is unplugged, readable and writable for the guest.
    ///
    /// # Errors
    /// [`Busy`] when that cannot be done now; then nothing has changed.
    fn plug(&mut self, range: BlockRange) -> Result<(), Busy>;

    /// Makes `range`, all of which is plugged, inaccessible to the guest and gives its memory back. The content
    /// is lost.
    ///
    /// # Errors
    /// [`Busy`] when that cannot be done now; then nothing has changed.
    fn unplug(&mut self, range: BlockRange) -> Result<(), Busy>;

    /// Makes the whole region inaccessible to the guest and gives all of its memory back, in one operation,
    /// however many runs are plugged. The content is lost.
    ///
    /// # Errors
    /// [`Busy`] when that cannot be done now; then everything is plugged that was plugged before.
    fn unplug_all(&mut self) -> Result<(), Busy>;
}

/// The host cannot do it at the moment. The device answers BUSY, and the driver tries again after a pause. A
/// config notification makes the driver try at once, so the host may send one when the cause is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host cannot do it now")
    }
}

impl core::error::Error for Busy {}

/// The fixed properties of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Guest-physical address of the region; a multiple of `block_size`.
    pub addr: u64,
    /// Size of the region in bytes; a multiple of `block_size`.
    pub region_size: u64,
    /// Size and alignment of a device block in bytes; a power of two.
    pub block_size: u64,
    /// ACPI proximity domain of the region; `None` on a machine without proximity domains.
    pub node_id: Option<u16>,
}

impl DeviceConfig {
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
}

/// One virtio-mem device, without its transport.
#[derive(Debug)]
pub struct Device {
    fixed: DeviceConfig,
    plugged: BlockBitmap,
    usable_region_size: u64,
    requested_size: u64,
    generation: u32,
    refused: Option<Refused>,
}

impl Device {
    /// A device with nothing plugged and nothing requested.
    ///
    /// # Errors
    /// [`ConfigError`] when `fixed` contradicts itself.
    pub fn new(fixed: DeviceConfig) -> Result<Device, ConfigError> {
        let DeviceConfig { addr, region_size, block_size, .. } = fixed;
        if !block_size.is_power_of_two() {
            return Err(ConfigError::BlockSize);
        }
        if (addr | region_size) % block_size != 0 {
            return Err(ConfigError::Misaligned);
        }
        if addr.checked_add(region_size).is_none() {
            return Err(ConfigError::Wraps);
        }
        Ok(Device {
            fixed,
            plugged: BlockBitmap::new(region_size / block_size),
            usable_region_size: 0,
            requested_size: 0,
            generation: 0,
            refused: None,
        })
    }

    /// The current configuration space.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            block_size: self.fixed.block_size,
            node_id: self.fixed.node_id.unwrap_or(0),
            addr: self.fixed.addr,
            region_size: self.fixed.region_size,
            usable_region_size: self.usable_region_size,
            plugged_size: self.plugged_size(),
            requested_size: self.requested_size,
        }
    }

    /// A number that changes whenever [`Device::config`] changes. The transport's configuration generation is
    /// this number, truncated to the transport's width.
    #[must_use]
    pub const fn config_generation(&self) -> u32 {
        self.generation
    }

    /// The feature bits of the device type, without those of the transport (`VERSION_1`). The device
    /// relies on the driver accepting [`F_UNPLUGGED_INACCESSIBLE`].
    #[must_use]
    pub const fn features(&self) -> u64 {
        let pxm = if self.fixed.node_id.is_some() { 1 << F_ACPI_PXM } else { 0 };
        pxm | 1 << F_UNPLUGGED_INACCESSIBLE
    }

    /// Sets the size in bytes that the host wants plugged, and extends the usable part of the region where the
    /// size needs it. Returns whether the driver is due a config notification, which is when anything changed.
    ///
    /// # Errors
    /// [`ResizeError`] when the device cannot have that size; then nothing has changed.
    pub fn resize(&mut self, requested_size: u64) -> Result<bool, ResizeError> {
        self.fixed.check_size(requested_size)?;
        let before = (self.requested_size, self.usable_region_size);
        self.requested_size = requested_size;
        self.usable_region_size = self.usable_region_size.max(self.needed_usable_size());
        let changed = before != (self.requested_size, self.usable_region_size);
        if changed {
            self.generation = self.generation.wrapping_add(1);
        }
        Ok(changed)
    }

    /// Serves one request, given as the bytes that the driver made readable for the device. Bytes after
    /// [`REQUEST_SIZE`](crate::wire::REQUEST_SIZE) are ignored. Every request gets an answer, and none makes a
    /// config notification due.
    pub fn handle(&mut self, request: &[u8], backing: &mut impl Backing) -> Response {
        let request = Request::from_bytes(request);
        let answer = match request {
            Ok(Request { kind: RequestKind::Plug, addr, nb_blocks }) => self.plug(addr, nb_blocks, backing),
            Ok(Request { kind: RequestKind::Unplug, addr, nb_blocks }) => {
                self.unplug(addr, nb_blocks, backing)
            }
            Ok(Request { kind: RequestKind::UnplugAll, .. }) => self.unplug_all(backing),
            Ok(Request { kind: RequestKind::State, addr, nb_blocks }) => self.state(addr, nb_blocks),
            Err(bad) => Err(Refusal::BadRequest(bad)),
        };
        answer.unwrap_or_else(|why| {
            self.refused = Some(Refused { request: request.ok(), why });
            Response::new(why.response())
        })
    }

    /// System reset: unplugs everything; the requested size stays. The caller takes back the memory of the whole
    /// region itself, not through a [`Backing`]. No notification is due, because no driver survives a system
    /// reset. A device reset must not call this: it changes nothing here.
    pub fn reset(&mut self) {
        let before = self.config();
        self.plugged = BlockBitmap::new(self.fixed.region_size / self.fixed.block_size);
        self.usable_region_size = self.needed_usable_size();
        if before != self.config() {
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// The plugged device blocks.
    #[must_use]
    pub const fn plugged(&self) -> &BlockBitmap {
        &self.plugged
    }

    /// Number of plugged bytes.
    #[must_use]
    pub const fn plugged_size(&self) -> u64 {
        self.plugged.count() * self.fixed.block_size
    }

    /// Number of bytes that the host wants plugged.
    #[must_use]
    pub const fn requested_size(&self) -> u64 {
        self.requested_size
    }

    /// Length in bytes of the first part of the region, in which device blocks may be plugged.
    #[must_use]
    pub const fn usable_region_size(&self) -> u64 {
        self.usable_region_size
    }

    /// The last refused request.
    #[must_use]
    pub const fn refused(&self) -> Option<&Refused> {
        self.refused.as_ref()
    }

    fn plug(&mut self, addr: u64, nb_blocks: u16, backing: &mut impl Backing) -> Result<Response, Refusal> {
        let range = self.usable_range(addr, nb_blocks)?;
        if self.plugged.count_in(range) != 0 {
            return Err(Refusal::AlreadyPlugged);
        }
        if self.plugged.count() + range.count() > self.requested_size / self.fixed.block_size {
            return Err(Refusal::OverAsk);
        }
        backing.plug(range).map_err(|Busy| Refusal::Busy)?;
        self.plugged.set(range);
        self.generation = self.generation.wrapping_add(1);
        Ok(Response::new(ResponseType::Ack))
    }

    fn unplug(&mut self, addr: u64, nb_blocks: u16, backing: &mut impl Backing) -> Result<Response, Refusal> {
        let range = self.usable_range(addr, nb_blocks)?;
        if self.plugged.count_in(range) != range.count() {
            return Err(Refusal::AlreadyUnplugged);
        }
        backing.unplug(range).map_err(|Busy| Refusal::Busy)?;
        self.plugged.clear(range);
        self.generation = self.generation.wrapping_add(1);
        Ok(Response::new(ResponseType::Ack))
    }

    /// The backing takes the region as a whole, because a guest decides how many runs there are. After BUSY all
    /// device blocks are plugged that were plugged before.
    fn unplug_all(&mut self, backing: &mut impl Backing) -> Result<Response, Refusal> {
        if !self.plugged.is_empty() {
            backing.unplug_all().map_err(|Busy| Refusal::Busy)?;
            self.plugged = BlockBitmap::new(self.fixed.region_size / self.fixed.block_size);
            self.generation = self.generation.wrapping_add(1);
        }
        let usable = self.needed_usable_size();
        if usable != self.usable_region_size {
            self.usable_region_size = usable;
            self.generation = self.generation.wrapping_add(1);
        }
        Ok(Response::new(ResponseType::Ack))
    }

    fn state(&self, addr: u64, nb_blocks: u16) -> Result<Response, Refusal> {
        let range = self.usable_range(addr, nb_blocks)?;
        let plugged = self.plugged.count_in(range);
        Ok(Response::with_state(if plugged == range.count() {
            BlockState::Plugged
        } else if plugged == 0 {
            BlockState::Unplugged
        } else {
            BlockState::Mixed
        }))
    }

    /// The device blocks that a request names, provided that all of them are usable.
    fn usable_range(&self, addr: u64, nb_blocks: u16) -> Result<BlockRange, Refusal> {
        let DeviceConfig { addr: start, block_size, .. } = self.fixed;
        if !addr.is_multiple_of(block_size) {
            return Err(Refusal::Misaligned);
        }
        if nb_blocks == 0 {
            return Err(Refusal::NoBlocks);
        }
        // The region starts at a multiple of the device block size, so the offset is aligned when `addr` is.
        let first = addr.checked_sub(start).ok_or(Refusal::NotUsable)? / block_size;
        let count = u64::from(nb_blocks);
        // `first` is below 2^64 / block_size, so with device blocks of one byte the sum could wrap.
        match first.checked_add(count) {
            Some(end) if end <= self.usable_region_size / block_size => Ok(BlockRange::new(first, count)),
            _ => Err(Refusal::NotUsable),
        }
    }

    /// The usable size that the requested size needs; 0 when nothing is requested.
    fn needed_usable_size(&self) -> u64 {
        let DeviceConfig { block_size, region_size, .. } = self.fixed;
        if self.requested_size == 0 {
            return 0;
        }
        let wanted = self.requested_size.saturating_add(USABLE_EXTENT);
        // Both bounds are multiples of the device block size, so rounding up never leaves the region.
        wanted.checked_next_multiple_of(block_size).map_or(region_size, |usable| usable.min(region_size))
    }
}
