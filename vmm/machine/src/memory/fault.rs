//! Failures of the host on demand, in the calls that plug and unplug hotplug regions.
//!
//! Mirrors Linux's fault injection (`lib/fault-inject.c`) with one failure at a time per call. Without the
//! feature `hosted` no call fails here, and nothing is left of this file.
//!
//! Invariant: a call that fails here was not made, as when the host refuses it.

#[cfg(not(feature = "hosted"))]
use std::io;

/// A call of the host that can fail on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCall {
    /// `mprotect` that makes memory reachable. Fails with `ENOMEM`, as at the limit of mappings.
    Open,
    /// `mprotect` that makes memory unreachable. Fails with `ENOMEM`.
    Close,
    /// `madvise` that gives memory back. Fails with `EAGAIN`.
    Discard,
    /// `KVM_SET_USER_MEMORY_REGION` that adds a memslot. Fails with `ENOMEM`.
    AddSlot,
    /// `KVM_SET_USER_MEMORY_REGION` that removes a memslot. Fails with `EBUSY`.
    RemoveSlot,
}

impl HostCall {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Open, Self::Close, Self::Discard, Self::AddSlot, Self::RemoveSlot];
}

#[cfg(feature = "hosted")]
pub use on_demand::{fail, failed, fault};

/// The failure of `call` if one is due; never without the feature `hosted`.
#[cfg(not(feature = "hosted"))]
pub const fn fault(_call: HostCall) -> io::Result<()> {
    Ok(())
}

#[cfg(feature = "hosted")]
mod on_demand {
    use std::io;
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

    use super::HostCall;

    /// How many more calls succeed before one fails; negative when none fails.
    static LEFT: [AtomicI64; 5] = [const { AtomicI64::new(-1) }; 5];
    static FAILED: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

    /// The failure of `call` if one is due.
    ///
    /// # Errors
    /// It is due.
    pub fn fault(call: HostCall) -> io::Result<()> {
        let left = LEFT[call as usize].fetch_update(Relaxed, Relaxed, |left| (left >= 0).then(|| left - 1));
        if left != Ok(0) {
            return Ok(());
        }
        FAILED[call as usize].fetch_add(1, Relaxed);
        Err(io::Error::from_raw_os_error(match call {
            HostCall::Open | HostCall::Close | HostCall::AddSlot => libc::ENOMEM,
            HostCall::Discard => libc::EAGAIN,
            HostCall::RemoveSlot => libc::EBUSY,
        }))
    }

    /// Makes `call` fail once, in this process, after `after` more calls that succeed. `None` takes that back.
    pub fn fail(call: HostCall, after: Option<u32>) {
        LEFT[call as usize].store(after.map_or(-1, i64::from), Relaxed);
    }

    /// How often `call` has failed on demand in this process.
    #[must_use]
    pub fn failed(call: HostCall) -> u64 {
        FAILED[call as usize].load(Relaxed)
    }
}
