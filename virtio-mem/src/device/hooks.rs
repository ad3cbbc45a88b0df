//! The place for everything beside the backing that has to know which device blocks are plugged.
//!
//! Mirrors QEMU's `RamDiscardManager` and its listeners (`include/system/memory.h`, used by `hw/vfio/` and
//! `migration/ram.c`). A [`Hook`] that maps memory for a device (VFIO, vhost-user) or keeps a log of dirty pages sees
//! exactly what the guest may use. `tests/library/hooks.rs` has worked examples: an IOMMU with few mappings, a dirty log, and a
//! memfd as the backing.
//!
//! The order is QEMU's. A plug comes to the backing first, because an IOMMU pins pages that have to be accessible, and is
//! taken back if a hook fails. An unplug comes to the backing first too, because a backing may refuse and then nothing
//! has to be mapped again. Until the hook has unmapped it, a device reaches pages that belong to nobody else: they are
//! pinned, or the mapping faults.

use super::{Backing, Busy, PluggedRuns, Span};

/// Something that follows what is plugged.
pub trait Hook {
    /// The guest is about to get `span`, which is accessible on the host.
    ///
    /// # Errors
    /// [`Busy`] when the span cannot be mapped now; then nothing has changed, and the guest does not get it.
    fn map(&mut self, span: Span) -> Result<(), Busy>;

    /// The guest has lost `span`, all of which was mapped. It may be a part of what was mapped at a time, or more.
    fn unmap(&mut self, span: Span);
}

/// Two hooks: the first one maps first.
impl<A: Hook, B: Hook> Hook for (A, B) {
    fn map(&mut self, span: Span) -> Result<(), Busy> {
        self.0.map(span)?;
        let mapped = self.1.map(span);
        if mapped.is_err() {
            self.0.unmap(span);
        }
        mapped
    }

    fn unmap(&mut self, span: Span) {
        self.1.unmap(span);
        self.0.unmap(span);
    }
}

/// A backing with a hook.
///
/// ```
/// use virtio_mem::device::hooks::{Hook, Hooked};
/// use virtio_mem::{Backing, Busy, Device, DeviceConfig, PluggedRuns, Request, RequestKind, Span};
///
/// /// Memory that is always there.
/// struct Host;
/// impl Backing for Host {
///     fn plug(&mut self, _: Span) -> Result<(), Busy> { Ok(()) }
///     fn unplug(&mut self, _: Span) -> Result<(), Busy> { Ok(()) }
///     fn unplug_all(&mut self, _: &PluggedRuns) -> Result<(), Busy> { Ok(()) }
/// }
///
/// /// Counts the bytes that a device of the guest may reach.
/// struct Mapped(u64);
/// impl Hook for Mapped {
///     fn map(&mut self, span: Span) -> Result<(), Busy> {
///         self.0 += span.size();
///         Ok(())
///     }
///     fn unmap(&mut self, span: Span) {
///         self.0 -= span.size();
///     }
/// }
///
/// let mut device = Device::new(DeviceConfig::new(4 << 30, 1 << 30, 2 << 20))?;
/// let mut memory = Hooked::new(Host, Mapped(0));
/// device.resize(64 << 20)?;
/// for (kind, mapped) in [(RequestKind::Plug, 64 << 20), (RequestKind::UnplugAll, 0)] {
///     device.handle(&Request { kind, addr: 4 << 30, nb_blocks: 32 }.to_bytes(), &mut memory);
///     assert_eq!(memory.hook.0, mapped);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Hooked<B, H> {
    /// The backing.
    pub backing: B,
    /// The hook.
    pub hook: H,
    /// What a hook refused and the backing did not take back. The guest does not have it.
    stuck: Option<Span>,
}

impl<B: Backing, H: Hook> Hooked<B, H> {
    /// `backing` with `hook`, for a device that has nothing plugged.
    #[must_use]
    pub const fn new(backing: B, hook: H) -> Self {
        Self { backing, hook, stuck: None }
    }

    /// System reset: the memory of the whole region was taken back, and `plugged` was plugged before.
    pub fn reset(&mut self, plugged: &PluggedRuns) {
        self.stuck = None;
        plugged.runs().for_each(|run| self.hook.unmap(run));
    }

    /// Has the backing take back what is stuck.
    fn take_back(&mut self) -> Result<(), Busy> {
        if let Some(span) = self.stuck {
            self.backing.unplug(span)?;
            self.stuck = None;
        }
        Ok(())
    }
}

impl<B: Backing, H: Hook> Backing for Hooked<B, H> {
    fn plug(&mut self, span: Span) -> Result<(), Busy> {
        self.take_back()?;
        self.backing.plug(span)?;
        let mapped = self.hook.map(span);
        if mapped.is_err() && self.backing.unplug(span).is_err() {
            self.stuck = Some(span);
        }
        mapped
    }

    fn unplug(&mut self, span: Span) -> Result<(), Busy> {
        self.backing.unplug(span)?;
        self.hook.unmap(span);
        Ok(())
    }

    fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
        self.take_back()?;
        self.backing.unplug_all(plugged)?;
        plugged.runs().for_each(|run| self.hook.unmap(run));
        Ok(())
    }
}
