//! `start`: who runs what, where and when.

use serde::{Deserialize, Serialize};

/// tidevm was called. What the host does not tell is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// [`FORMAT_VERSION`](crate::FORMAT_VERSION).
    pub format_version: u32,
    /// tidevm's version.
    pub version: String,
    /// The commit that tidevm was built from.
    pub commit: Option<String>,
    /// The program and its arguments.
    pub command_line: Vec<String>,
    /// The wall clock in UTC, as RFC 3339 writes it.
    pub date: String,
    /// The host's name.
    pub host: Option<String>,
    /// The release of the host's kernel.
    pub kernel: Option<String>,
    /// What KVM of this host builds on.
    pub kvm: Kvm,
    /// The machine, if the arguments describe one.
    pub machine: Option<Machine>,
}

/// What KVM of a host builds on, by the flags of its CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kvm {
    /// Intel's VMX.
    Vmx,
    /// AMD's SVM.
    Svm,
    /// Neither: KVM emulates the guest's privileged instructions, or there is no KVM.
    #[default]
    None,
}

/// A machine as the arguments describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// vCPUs.
    pub cpus: u8,
    /// Bytes of boot memory.
    pub memory: u64,
    /// The hotplug regions, in the order of the devices.
    pub regions: Vec<Region>,
    /// Bytes of each range of device memory.
    pub pmem: Vec<u64>,
    /// The kernel's file; null for tidevm's own guest.
    pub guest_kernel: Option<String>,
}

/// A hotplug region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its bytes.
    pub size: u64,
    /// Bytes of a device block.
    pub block_size: u64,
    /// Bytes that are requested at first.
    pub requested: u64,
    /// Its NUMA node.
    pub node: Option<u16>,
}
