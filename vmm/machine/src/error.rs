//! Why a VM does not start.

use std::io;
use std::path::PathBuf;

use tidevm_abi::Size;

use crate::boot::BootError;
use crate::config::ConfigError;
use crate::confine::ConfinementError;
use crate::confine::jail::JailError;
use crate::disk::DiskError;
use crate::hint;
use crate::memory::MemoryError;
use crate::snapshot::opened::RestoreError;
use crate::socket::SocketError;

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A file is no disk, or cannot be had.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host refuses to map the memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// More vCPUs than this host's KVM supports.
    #[error("--cpus {asked}: this host's KVM has at most {most}")]
    TooManyCpus {
        /// The configured number of vCPUs.
        asked: u8,
        /// The largest possible number of vCPUs.
        most: usize,
    },
    /// More memory than the vCPUs can address.
    #[error(
        "boot memory, hotplug regions and device memory end at {end}, beyond the {limit} that this host's CPU can \
         address: make --memory, --hotplug size= or --pmem size= smaller"
    )]
    Unaddressable {
        /// Where the last range would end.
        end: Size,
        /// The end of the address space.
        limit: Size,
    },
    /// The socket of the console cannot be had.
    #[error(transparent)]
    ConsoleSocket(#[from] SocketError),
    /// The console file cannot be written, or no process listens at the socket.
    #[error("--console {kind}:{path}: {error}")]
    Console {
        /// `file` or `connect`.
        kind: &'static str,
        /// The file or the socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// There is no KVM, or this user may not use it.
    #[error("cannot open /dev/kvm: {error}{hint}")]
    NoKvm {
        /// The system's error.
        error: io::Error,
        /// What would help, as the end of the message; empty when nothing is known to help.
        hint: String,
    },
    /// KVM is too old, or the device is not KVM.
    #[error("/dev/kvm lacks {0}; a Linux kernel of this decade has it")]
    Capability(&'static str),
    /// A step of setting up KVM failed.
    #[error("KVM cannot {what}: {error}{}", hint::for_step(.what, .error))]
    Kvm {
        /// The step.
        what: &'static str,
        /// KVM's error.
        error: io::Error,
    },
    /// The snapshot cannot be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The process cannot be locked in.
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    /// The process cannot move into its jail.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The host provides no thread, descriptor or the like.
    #[error("the host cannot {what}: {error}")]
    Host {
        /// The step.
        what: &'static str,
        /// The system's error.
        error: io::Error,
    },
}

impl StartError {
    /// Whether the host refuses, and another host or another limit could run the same VM. Otherwise the
    /// configuration has to change.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Boot(BootError::Unreadable { error, .. })
            | Self::Console { error, .. }
            | Self::ConsoleSocket(SocketError::Host { error, .. }) => is_refusal(error),
            Self::Disk(DiskError::Open { error, .. }) => is_refusal(error),
            Self::Disk(error) => matches!(error, DiskError::Host { .. } | DiskError::Limit { .. }),
            Self::Restore(RestoreError::Unreadable { error, .. }) => is_refusal(error),
            Self::Restore(error) => matches!(error, RestoreError::Host { .. }),
            Self::Jail(error) => error.is_refusal(),
            Self::Config(_) | Self::Boot(_) | Self::ConsoleSocket(_) => false,
            Self::Memory(_)
            | Self::TooManyCpus { .. }
            | Self::Unaddressable { .. }
            | Self::NoKvm { .. }
            | Self::Capability(_)
            | Self::Kvm { .. }
            | Self::Confinement(_)
            | Self::Host { .. } => true,
        }
    }
}

/// Whether the host refuses because it, or a limit of the process, has no more of something. No other request
/// of the same kind would succeed.
#[must_use]
pub fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory || error.raw_os_error().is_some_and(is_shortage)
}

/// [`is_refusal`] of an error number.
pub(crate) fn is_shortage(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOSPC)
}

/// /dev/kvm cannot be opened.
pub(crate) fn no_kvm(error: io::Error) -> StartError {
    let hint = hint::for_open(&error, hint::Access::of_process().as_ref(), hint::Host::of_process());
    StartError::NoKvm { error, hint }
}

/// For `map_err`: KVM failed at the step `what`.
pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StartError {
    move |error| StartError::Kvm { what, error: io::Error::from_raw_os_error(error.errno()) }
}

/// For `map_err`: the host failed at the step `what`.
pub(crate) fn host(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::Host { what, error }
}
