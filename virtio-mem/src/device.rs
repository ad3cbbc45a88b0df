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

mod backing;
mod busy;
mod change;
mod config;
mod counts;
pub mod hooks;
mod refusal;
mod retry;
mod state;

pub use self::backing::{Backing, PluggedRuns, Span};
pub use self::busy::Busy;
pub use self::change::{Begun, Change};
pub use self::config::{DEFAULT_EXTENT, DeviceConfig};
pub use self::counts::Counts;
pub use self::refusal::{ConfigError, Refusal, Refused, ResizeError};
pub use self::state::{DeviceState, StateError};

use self::change::What;
use self::retry::Retry;
use crate::blocks::{BlockBitmap, BlockRange};
use crate::wire::{BadRequest, BlockState, Config, Request, RequestKind, Response, ResponseType};

/// One virtio-mem device, without its transport.
///
/// ```
/// use virtio_mem::{Backing, Busy, Device, DeviceConfig, PluggedRuns, Request, RequestKind, ResponseType, Span};
///
/// /// Memory that is always there.
/// struct Host;
/// impl Backing for Host {
///     fn plug(&mut self, _: Span) -> Result<(), Busy> { Ok(()) }
///     fn unplug(&mut self, _: Span) -> Result<(), Busy> { Ok(()) }
///     fn unplug_all(&mut self, _: &PluggedRuns) -> Result<(), Busy> { Ok(()) }
/// }
///
/// // A region of 1 GiB at 4 GiB, in device blocks of 2 MiB.
/// let mut device = Device::new(DeviceConfig::new(4 << 30, 1 << 30, 2 << 20))?;
/// assert!(device.resize(512 << 20)?, "the driver is due a config notification");
/// // The driver's answer to it comes through the virtqueue.
/// let request = Request { kind: RequestKind::Plug, addr: 4 << 30, nb_blocks: 256 };
/// assert_eq!(device.handle(&request.to_bytes(), &mut Host).kind, ResponseType::Ack);
/// assert_eq!(device.config().plugged_size, 512 << 20);
/// // The same memory cannot be plugged twice, and the device keeps the reason.
/// assert_eq!(device.handle(&request.to_bytes(), &mut Host).kind, ResponseType::Error);
/// let refused = device.refused().expect("a request was refused");
/// assert_eq!(refused.to_string(), "Plug of 256 blocks at 0x100000000: a block is plugged already");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Device {
    fixed: DeviceConfig,
    plugged: BlockBitmap,
    usable_region_size: u64,
    requested_size: u64,
    generation: u32,
    refused: Option<Refused>,
    /// The ticket of the change that waits for its [`Device::commit`].
    changing: Option<u64>,
    /// The number of changes so far, which is the next ticket.
    changes: u64,
    retry: Retry,
    counts: Counts,
}

impl Device {
    /// A device with nothing plugged and nothing requested.
    ///
    /// # Errors
    /// [`ConfigError`] when `fixed` contradicts itself.
    pub fn new(fixed: DeviceConfig) -> Result<Device, ConfigError> {
        fixed.check()?;
        Ok(Device {
            fixed,
            plugged: BlockBitmap::new(fixed.blocks()),
            usable_region_size: 0,
            requested_size: 0,
            generation: 0,
            refused: None,
            changing: None,
            changes: 0,
            retry: Retry::default(),
            counts: Counts::default(),
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
    /// relies on the driver accepting [`F_UNPLUGGED_INACCESSIBLE`](crate::wire::F_UNPLUGGED_INACCESSIBLE).
    #[must_use]
    pub const fn features(&self) -> u64 {
        self.fixed.features()
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
            self.retry.start_over();
        }
        Ok(changed)
    }

    /// Serves one request, given as the bytes that the driver made readable for the device. Bytes after
    /// [`REQUEST_SIZE`](crate::wire::REQUEST_SIZE) are ignored. Every request gets an answer, and none makes a
    /// config notification due.
    pub fn handle(&mut self, request: &[u8], backing: &mut (impl Backing + ?Sized)) -> Response {
        match self.begin(request) {
            Begun::Answer(response) => response,
            Begun::Change(change) => {
                let outcome = change.apply(backing);
                // No reset comes between, because the device is borrowed.
                self.commit(change, outcome).unwrap_or(Response::new(ResponseType::Busy))
            }
        }
    }

    /// Validates one request, given as for [`Device::handle`]. While a change waits for its [`Device::commit`], requests
    /// that would begin another one are answered BUSY.
    pub fn begin(&mut self, request: &[u8]) -> Begun {
        let request = Request::from_bytes(request);
        let begun = match request {
            Ok(request) => self.validate(request),
            Err(bad) => Err(Refusal::BadRequest(bad)),
        };
        match begun {
            Ok(Begun::Answer(response)) => Begun::Answer(self.answer(request, response)),
            Ok(begun) => begun,
            Err(why) => Begun::Answer(self.refuse(request, why)),
        }
    }

    /// System reset: unplugs everything; the requested size stays. The caller takes back the memory of the whole
    /// region itself, not through a [`Backing`]. No notification is due, because no driver survives a system
    /// reset. A device reset must not call this: it changes nothing here.
    pub fn reset(&mut self) {
        let before = self.config();
        self.changing = None;
        self.retry.start_over();
        self.plugged = BlockBitmap::new(self.fixed.blocks());
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

    /// What the device has counted.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The last refused request.
    #[must_use]
    pub const fn refused(&self) -> Option<&Refused> {
        self.refused.as_ref()
    }

    fn validate(&mut self, request: Request) -> Result<Begun, Refusal> {
        let Request { kind, addr, nb_blocks } = request;
        let what = match kind {
            RequestKind::Plug => What::Plug(self.unplugged_span(addr, nb_blocks)?),
            RequestKind::Unplug => What::Unplug(self.plugged_span(addr, nb_blocks)?),
            RequestKind::State => return Ok(Begun::Answer(self.block_state(addr, nb_blocks)?)),
            // There is nothing that the host could refuse.
            RequestKind::UnplugAll if self.plugged.is_empty() => {
                self.shrink_usable();
                return Ok(Begun::Answer(Response::new(ResponseType::Ack)));
            }
            RequestKind::UnplugAll => What::UnplugAll(self.plugged_runs()),
        };
        if self.is_changing() {
            return Err(Refusal::Busy(Busy::because("another request is under way")));
        }
        let ticket = self.changes;
        self.changes += 1;
        self.changing = Some(ticket);
        Ok(Begun::Change(Change { request, what, ticket }))
    }

    /// What a PLUG names, provided that all of it is unplugged and that the host wants so much.
    fn unplugged_span(&self, addr: u64, nb_blocks: u16) -> Result<Span, Refusal> {
        let range = self.usable_range(addr, nb_blocks)?;
        if self.plugged.count_in(range) != 0 {
            return Err(Refusal::AlreadyPlugged);
        }
        if self.plugged.count() + range.count() > self.requested_size / self.fixed.block_size {
            return Err(Refusal::OverAsk);
        }
        Ok(Span::new(&self.fixed, range))
    }

    /// What an UNPLUG names, provided that all of it is plugged.
    fn plugged_span(&self, addr: u64, nb_blocks: u16) -> Result<Span, Refusal> {
        let range = self.usable_range(addr, nb_blocks)?;
        if self.plugged.count_in(range) != range.count() {
            return Err(Refusal::AlreadyUnplugged);
        }
        Ok(Span::new(&self.fixed, range))
    }

    fn set_plugged(&mut self, span: Span) {
        self.plugged.set(span.blocks());
        self.counts.plugged = self.counts.plugged.wrapping_add(span.size());
        self.generation = self.generation.wrapping_add(1);
    }

    fn set_unplugged(&mut self, span: Span) {
        self.plugged.clear(span.blocks());
        self.counts.unplugged = self.counts.unplugged.wrapping_add(span.size());
        self.generation = self.generation.wrapping_add(1);
    }

    /// All of `size` bytes that were plugged are unplugged.
    fn set_all_unplugged(&mut self, size: u64) {
        self.plugged = BlockBitmap::new(self.fixed.blocks());
        self.counts.unplugged = self.counts.unplugged.wrapping_add(size);
        self.generation = self.generation.wrapping_add(1);
        self.shrink_usable();
    }

    /// UNPLUG_ALL ends with the usable size that is needed (virtio 1.3, section 5.15.6.5).
    fn shrink_usable(&mut self) {
        let usable = self.needed_usable_size();
        if usable != self.usable_region_size {
            self.usable_region_size = usable;
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// Counts the answer to a request.
    fn answer(&mut self, request: Result<Request, BadRequest>, response: Response) -> Response {
        self.counts.count(request.map(|request| request.kind), response.kind);
        response
    }

    /// Refuses a request and keeps the reason.
    fn refuse(&mut self, request: Result<Request, BadRequest>, why: Refusal) -> Response {
        self.refused = Some(Refused { request: request.ok(), why });
        if let Refusal::Busy(_) = why {
            self.retry.busy();
        }
        self.answer(request, Response::new(why.response()))
    }

    fn block_state(&self, addr: u64, nb_blocks: u16) -> Result<Response, Refusal> {
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
        self.fixed.needed_usable_size(self.requested_size)
    }
}
