//! The memory behind a device, as the device asks for it.
//!
//! Mirrors `ram_block_discard_range` and `virtio_mem_set_block_state` of QEMU's `hw/virtio/virtio-mem.c`: a VMM
//! implements [`Backing`] over its memory slots, its mappings, or its files. What else has to know of plugged memory
//! has its place in [`hooks`](super::hooks).

use super::busy::Busy;
use super::config::DeviceConfig;
use crate::blocks::{BlockBitmap, BlockRange};

/// The memory behind a device: makes device blocks accessible to the guest, and takes them away again.
///
/// The device asks for it after it has validated a request and before it changes its own state.
///
/// A host that has room for 64 MiB, and cannot do more for now:
///
/// ```
/// use virtio_mem::{Backing, Busy, Device, DeviceConfig, PluggedRuns, Request, RequestKind, ResponseType, Span};
///
/// struct Budget(u64);
/// impl Backing for Budget {
///     fn plug(&mut self, span: Span) -> Result<(), Busy> {
///         // A VMM maps `span.size()` bytes at `span.addr()`, or makes them accessible. What fails is undone.
///         self.0 = self.0.checked_sub(span.size()).ok_or(Busy::because("no memory is left"))?;
///         Ok(())
///     }
///     fn unplug(&mut self, span: Span) -> Result<(), Busy> {
///         self.0 += span.size();
///         Ok(())
///     }
///     fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
///         plugged.runs().try_for_each(|run| self.unplug(run))
///     }
/// }
///
/// let (mut device, mut host) = (Device::new(DeviceConfig::new(4 << 30, 1 << 30, 2 << 20))?, Budget(64 << 20));
/// device.resize(1 << 30)?;
/// let mut plug = |addr| {
///     let request = Request { kind: RequestKind::Plug, addr, nb_blocks: 32 };
///     device.handle(&request.to_bytes(), &mut host).kind
/// };
/// assert_eq!(plug(4 << 30), ResponseType::Ack);
/// assert_eq!(plug((4 << 30) + (64 << 20)), ResponseType::Busy);
/// // The driver is told to try again after a pause.
/// assert_eq!((device.retry_after_ms(), device.plugged_size()), (Some(100), 64 << 20));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Backing {
    /// Makes `span`, which is unplugged, readable and writable for the guest.
    ///
    /// # Errors
    /// [`Busy`] when that cannot be done now; then nothing has changed.
    fn plug(&mut self, span: Span) -> Result<(), Busy>;

    /// Makes `span`, all of which is plugged, inaccessible to the guest and gives its memory back. The content
    /// is lost.
    ///
    /// # Errors
    /// [`Busy`] when that cannot be done now; then nothing has changed, contents included.
    fn unplug(&mut self, span: Span) -> Result<(), Busy>;

    /// Makes everything that is plugged inaccessible to the guest and gives its memory back, as one operation. The
    /// content is lost. A guest decides how many runs there are: a backing that can take back its region as a whole
    /// needs [`PluggedRuns::region`] alone.
    ///
    /// # Errors
    /// [`Busy`] when that cannot be done now; then everything is plugged that was plugged before, with its content.
    fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy>;
}

/// Consecutive device blocks, with their addresses. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    blocks: BlockRange,
    block_size: u64,
    region: u64,
}

impl Span {
    pub(super) const fn new(fixed: &DeviceConfig, blocks: BlockRange) -> Span {
        Span { blocks, block_size: fixed.block_size, region: fixed.addr }
    }

    /// The device blocks by their numbers. Device block 0 is at the region's address.
    #[must_use]
    pub const fn blocks(self) -> BlockRange {
        self.blocks
    }

    /// Guest-physical address of the first byte.
    #[must_use]
    pub const fn addr(self) -> u64 {
        self.region + self.offset()
    }

    /// Guest-physical address of the byte after the last one. It does not wrap: see [`DeviceConfig`].
    #[must_use]
    pub const fn end(self) -> u64 {
        self.addr() + self.size()
    }

    /// Where the span begins in the region, in bytes.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.blocks.first() * self.block_size
    }

    /// Number of bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.blocks.count() * self.block_size
    }
}

/// Everything that is plugged in a region. It is a copy, so that another thread can work on it.
#[derive(Clone, Debug)]
pub struct PluggedRuns {
    fixed: DeviceConfig,
    plugged: BlockBitmap,
}

impl PluggedRuns {
    pub(super) const fn new(fixed: DeviceConfig, plugged: BlockBitmap) -> PluggedRuns {
        PluggedRuns { fixed, plugged }
    }

    /// The whole region, plugged or not.
    #[must_use]
    pub const fn region(&self) -> Span {
        Span::new(&self.fixed, BlockRange::new(0, self.fixed.blocks()))
    }

    /// The maximal runs, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Span> + '_ {
        self.plugged.runs().map(|run| Span::new(&self.fixed, run))
    }

    /// Number of plugged bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.plugged.count() * self.fixed.block_size
    }
}
