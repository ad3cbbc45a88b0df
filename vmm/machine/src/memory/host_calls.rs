//! Calls to the host that change guest memory, and the one hook before each of them: a test may look at the memory,
//! and may let the call fail.
//!
//! Mirrors Linux's fault injection (`lib/fault-inject.c`). Three kinds of tests use the hook:
//!
//! | tests | use | which acts on |
//! | --- | --- | --- |
//! | of this crate | `watch`: a function that is asked before each call | the calls of its thread |
//! | of this crate, in a process of their own | `watch_all`: the same | all calls of the process |
//! | of other packages, with the feature `hosted` | `fail`: one later call fails | all calls of the process, because the event loop makes them |
//!
//! A program that is not tested has nothing of this file: [`about_to`] is a constant there.
//!
//! Invariants: every call that changes guest memory asks [`about_to`] first. A slot that fails here was not changed;
//! a protection that fails may have been changed in part, as with the host's own failures. `fail` acts on the calls that
//! plug and unplug, and on none that [`exempt`] covers.

use std::io;

use super::range::OffsetRange;

/// A kind of call that can fail on demand.
#[cfg(any(test, feature = "hosted"))]
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

/// A call to the host. Offsets are those of the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryCall {
    Open(OffsetRange),
    Close(OffsetRange),
    Discard(OffsetRange),
    /// A slot with its guest-physical address and its size.
    AddSlot(u64, u64),
    RemoveSlot(u32),
}

impl MemoryCall {
    /// The failure of this call.
    pub(crate) fn failed(self, error: io::Error) -> FailedCall {
        let call = match self {
            Self::Open(_) | Self::Close(_) => "mprotect",
            Self::Discard(_) => "madvise",
            Self::AddSlot(..) | Self::RemoveSlot(_) => "KVM_SET_USER_MEMORY_REGION",
        };
        FailedCall { call, error }
    }
}

/// A call to the host that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {error}")]
pub struct FailedCall {
    /// Its name: that of a system call, or of a request to KVM.
    pub call: &'static str,
    /// The host's error.
    pub error: io::Error,
}

impl From<FailedCall> for io::Error {
    fn from(failed: FailedCall) -> Self {
        failed.error
    }
}

/// Asked before each call.
///
/// # Errors
/// A test lets the call fail; the caller does not make it.
#[cfg(not(any(test, feature = "hosted")))]
pub(crate) const fn about_to(_call: MemoryCall) -> Result<(), FailedCall> {
    Ok(())
}

/// As long as it lives, `fail` acts on no call of this thread: the start and the reset of a VM have no way to go on
/// after a failure, and a process may test several VMs at a time.
#[must_use]
#[derive(Debug)]
pub(crate) struct Exempt(());

/// Makes an [`Exempt`].
#[cfg(not(feature = "hosted"))]
pub(crate) const fn exempt() -> Exempt {
    Exempt(())
}

#[cfg(any(test, feature = "hosted"))]
pub(crate) use on_demand::about_to;
#[cfg(feature = "hosted")]
pub(crate) use on_demand::exempt;
#[cfg(feature = "hosted")]
pub use on_demand::{fail, failed};
#[cfg(test)]
pub(crate) use on_demand::{watch, watch_all};

#[cfg(any(test, feature = "hosted"))]
mod on_demand {
    use std::io;

    use super::{FailedCall, HostCall, MemoryCall};

    impl MemoryCall {
        fn kind(self) -> HostCall {
            match self {
                Self::Open(_) => HostCall::Open,
                Self::Close(_) => HostCall::Close,
                Self::Discard(_) => HostCall::Discard,
                Self::AddSlot(..) => HostCall::AddSlot,
                Self::RemoveSlot(_) => HostCall::RemoveSlot,
            }
        }
    }

    /// Asked before each call.
    ///
    /// # Errors
    /// A test lets the call fail; the caller does not make it.
    pub(crate) fn about_to(call: MemoryCall) -> Result<(), FailedCall> {
        let fails = false;
        #[cfg(test)]
        let fails = fails || thread::fails(call) || all_threads::fails(call);
        #[cfg(feature = "hosted")]
        let fails = fails || process::fails(call.kind());
        if !fails {
            return Ok(());
        }
        Err(call.failed(io::Error::from_raw_os_error(match call.kind() {
            HostCall::Open | HostCall::Close | HostCall::AddSlot => libc::ENOMEM,
            HostCall::Discard => libc::EAGAIN,
            HostCall::RemoveSlot => libc::EBUSY,
        })))
    }

    #[cfg(test)]
    pub(crate) use all_threads::watch_all;
    #[cfg(feature = "hosted")]
    pub(crate) use process::exempt;
    #[cfg(feature = "hosted")]
    pub use process::{fail, failed};
    #[cfg(test)]
    pub(crate) use thread::watch;

    #[cfg(test)]
    mod thread {
        use std::cell::RefCell;

        use super::MemoryCall;

        /// Returns whether the call fails.
        type Watch = Box<dyn FnMut(MemoryCall) -> bool>;

        thread_local! {
            static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
        }

        /// From now on `watch` is asked before each call of this thread whether the call fails.
        pub(crate) fn watch(watch: impl FnMut(MemoryCall) -> bool + 'static) {
            drop(WATCH.replace(Some(Box::new(watch))));
        }

        pub(super) fn fails(call: MemoryCall) -> bool {
            WATCH.with_borrow_mut(|watch| watch.as_mut().is_some_and(|watch| watch(call)))
        }
    }

    #[cfg(test)]
    mod all_threads {
        use std::sync::OnceLock;

        use super::MemoryCall;

        /// Returns whether the call fails.
        type Watch = Box<dyn Fn(MemoryCall) -> bool + Send + Sync>;

        static WATCH: OnceLock<Watch> = OnceLock::new();

        /// From now on `watch` is asked before each call of this process whether the call fails. Called once.
        pub(crate) fn watch_all(watch: impl Fn(MemoryCall) -> bool + Send + Sync + 'static) {
            assert!(WATCH.set(Box::new(watch)).is_ok(), "the process is watched already");
        }

        pub(super) fn fails(call: MemoryCall) -> bool {
            WATCH.get().is_some_and(|watch| watch(call))
        }
    }

    #[cfg(feature = "hosted")]
    mod process {
        use std::cell::Cell;
        use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

        use super::super::Exempt;
        use super::HostCall;

        impl HostCall {
            /// All of them.
            pub const ALL: [Self; 5] =
                [Self::Open, Self::Close, Self::Discard, Self::AddSlot, Self::RemoveSlot];
        }

        /// How many more calls succeed before one fails; negative when none fails.
        static LEFT: [AtomicI64; 5] = [const { AtomicI64::new(-1) }; 5];
        static FAILED: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

        thread_local! {
            static EXEMPT: Cell<bool> = const { Cell::new(false) };
        }

        /// Makes an [`Exempt`].
        pub(crate) fn exempt() -> Exempt {
            EXEMPT.set(true);
            Exempt(())
        }

        impl Drop for Exempt {
            fn drop(&mut self) {
                EXEMPT.set(false);
            }
        }

        pub(super) fn fails(call: HostCall) -> bool {
            if EXEMPT.get() {
                return false;
            }
            let left =
                LEFT[call as usize].fetch_update(Relaxed, Relaxed, |left| (left >= 0).then(|| left - 1));
            let fails = left == Ok(0);
            FAILED[call as usize].fetch_add(u64::from(fails), Relaxed);
            fails
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
}
