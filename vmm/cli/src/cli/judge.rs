//! The options of `tidevm judge`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `tidevm judge`.
#[derive(Debug, Args)]
pub struct Judge {
    /// The VMM whose virtio-mem device is judged
    #[arg(long, value_enum, default_value_t = Vmm::Tidevm)]
    pub vmm: Vmm,
    /// The VMM's program, instead of the one on the path; of tidevm, instead of this one
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// One JSON object per line on standard output
    #[arg(long, conflicts_with = "tap")]
    pub json: bool,
    /// TAP, version 14, on standard output
    #[arg(long)]
    pub tap: bool,
}

/// A VMM that can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// This program, or another version of it.
    Tidevm,
    /// QEMU's q35 with virtio-mem-pci.
    Qemu,
    /// Firecracker.
    Firecracker,
    /// Cloud Hypervisor.
    CloudHypervisor,
}
