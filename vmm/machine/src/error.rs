//! Why a VM does not start.

use std::io;
use std::path::PathBuf;

use tidevm_abi::Size;

use crate::boot::BootError;
use crate::config::ConfigError;
use crate::memory::MemoryError;

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
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
    /// The console file cannot be written, or no process listens at the socket.
    #[error("--console {kind}:{path}: {error}")]
    Console {
        /// `file` or `socket`.
        kind: &'static str,
        /// The file or the socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// There is no KVM, or this user may not use it.
    #[error("cannot open /dev/kvm: {error}. {}", advice(.error))]
    NoKvm {
        /// The system's error.
        error: io::Error,
    },
    /// KVM is too old, or the device is not KVM.
    #[error("/dev/kvm lacks {0}; a Linux kernel of this decade has it")]
    Capability(&'static str),
    /// A step of setting up KVM failed.
    #[error("KVM cannot {what}: {error}")]
    Kvm {
        /// The step.
        what: &'static str,
        /// KVM's error.
        error: io::Error,
    },
    /// The host provides no thread, descriptor or the like.
    #[error("the host cannot {what}: {error}")]
    Host {
        /// The step.
        what: &'static str,
        /// The system's error.
        error: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "Load the module of your CPU (modprobe kvm_intel or kvm_amd) and enable virtualization in the \
             firmware; inside a virtual machine or container, have it give you nested virtualization or the device. \
             From tidevm's sources, `cargo xtask nested -- tidevm ...` runs it on an emulated host"
        }
        io::ErrorKind::PermissionDenied => {
            "Add your user to the device's group (usermod -aG kvm USER, then log in again), or run as root"
        }
        _ => "See whether another hypervisor uses the CPU",
    }
}

impl StartError {
    /// The process's exit status: 2 when the request has to change, 3 when the host cannot run it.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Boot(_)
            | Self::Memory(_)
            | Self::TooManyCpus { .. }
            | Self::Unaddressable { .. }
            | Self::Console { .. } => 2,
            Self::NoKvm { .. } | Self::Capability(_) | Self::Kvm { .. } | Self::Host { .. } => 3,
        }
    }
}

/// For `map_err`: KVM failed at the step `what`.
pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StartError {
    move |error| StartError::Kvm { what, error: io::Error::from_raw_os_error(error.errno()) }
}

/// For `map_err`: the host failed at the step `what`.
pub(crate) fn host(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::Host { what, error }
}
