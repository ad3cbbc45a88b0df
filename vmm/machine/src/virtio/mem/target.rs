//! A device's target on its way from the embedder to the device.
//!
//! The device's mutex is held for moments while requests are served, and as long as the machine is saved. An embedder that
//! sets a target must not wait for that. So it leaves the target here. It applies the target itself if the device is
//! free. Otherwise the event loop applies it before the next request.
//!
//! A target gets its generation when the device takes it, because the generation belongs to the configuration that
//! the driver reads.
//!
//! Invariants: [`MemStatus::requested`](crate::MemStatus) is the target that was set last, whether the device has
//! it yet or not. `MemStatus::target_pending` is set from then until the state has the target's generation. All
//! are written under the lock of the state. Lock order: device, state, target.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};

use tidevm_abi::Size;
use virtio_mem::device::{DeviceConfig, ResizeError};
use vmm_sys_util::eventfd::EventFd;

use super::Mem;
use crate::state::SharedState;
use crate::sync::lock;

/// The target of device `index`.
#[derive(Debug)]
pub struct Target {
    index: usize,
    fixed: DeviceConfig,
    state: Arc<SharedState>,
    /// Written when the event loop has to apply the target.
    kick: EventFd,
    /// Bytes; set and not yet taken by the device.
    pending: Mutex<Option<u64>>,
    /// See [`MemStatus::targets`](crate::MemStatus). Written under the lock of the state.
    set: AtomicU64,
}

impl Target {
    pub(super) fn new(index: usize, fixed: DeviceConfig, state: Arc<SharedState>, kick: EventFd) -> Self {
        Self { index, fixed, state, kick, pending: Mutex::new(None), set: AtomicU64::new(0) }
    }

    /// Sets the target of `device` and has the driver told. Never waits for requests that are being served. Returns the
    /// number of the target. With `after`, that is the number of the last target that the caller knows: if another one was set
    /// meanwhile, nothing changes, and there is no number.
    ///
    /// # Errors
    /// The size is not possible; nothing changed.
    pub fn set(
        &self,
        device: &Mutex<Mem>,
        requested: Size,
        after: Option<u64>,
    ) -> Result<Option<u64>, ResizeError> {
        let number = self.leave(requested, after)?;
        if number.is_none() {
            return Ok(None);
        }
        match device.try_lock() {
            Ok(mut device) => device.apply_target(),
            Err(TryLockError::Poisoned(device)) => device.into_inner().apply_target(),
            Err(TryLockError::WouldBlock) => {
                // Fails only when the counter is full. The event is pending then.
                if let Err(error) = self.kick.write(1) {
                    log::debug!("event: {error}");
                }
            }
        }
        Ok(number)
    }

    /// Leaves a target for the device; see [`Target::set`].
    pub(super) fn leave(&self, requested: Size, after: Option<u64>) -> Result<Option<u64>, ResizeError> {
        self.fixed.check_size(requested.0)?;
        Ok(self.state.change(|state| {
            let mem = &mut state.mem[self.index];
            if after.is_some_and(|after| after != mem.targets) {
                return None;
            }
            *lock(&self.pending) = Some(requested.0);
            (mem.requested, mem.target_pending) = (requested, true);
            mem.targets = self.set.fetch_add(1, Ordering::Relaxed) + 1;
            Some(mem.targets)
        }))
    }

    /// Leaves a target for the next turn of the device.
    ///
    /// # Errors
    /// The size is not possible; nothing changed.
    #[cfg(feature = "hosted")]
    pub(crate) fn set_later(&self, requested: Size) -> Result<(), ResizeError> {
        self.leave(requested, None).map(drop)
    }

    /// The target that is set and not yet taken.
    pub(super) fn pending(&self) -> Option<u64> {
        *lock(&self.pending)
    }

    /// How many targets were set.
    pub(super) fn count(&self) -> u64 {
        self.set.load(Ordering::Relaxed)
    }

    /// Takes the target that is set and not yet taken.
    pub(super) fn take(&self) -> Option<u64> {
        lock(&self.pending).take()
    }
}
