//! The kernels that carry out scripts: tidevm's own guest, and Linux with an agent. The records are the same for both.
//! `command/on_kernel.rs` says which commands each of them can carry out.
//!
//! Invariant: a counter that a kernel does not tell is shown nowhere, and never as 0.

use serde::{Deserialize, Serialize};

use crate::words::Table;

/// Version of the records in this crate. A record that changes raises it. The agent of a Linux guest says which version it
/// speaks, because it may be that of another tidevm: in an initrd of the user, or in a snapshot.
pub const RECORDS_VERSION: u32 = 1;

/// Folder of the agent in the first file system of a Linux guest. The name is no path that an initrd uses.
pub const AGENT_FOLDER: &str = ".tidevm";

/// Path of the agent there.
pub const AGENT_PATH: &str = "/.tidevm/agent";

/// The key of Linux's command line that names its first program in an initramfs.
pub const RDINIT: &str = "rdinit";

/// A kernel that a script runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kernel {
    /// tidevm's own guest.
    #[default]
    Tidevm,
    /// Linux, with the agent that tidevm puts into its initramfs.
    Linux,
}

/// Words of the kernels, for options.
pub const KERNELS: Table<Kernel> = &[("tidevm", Kernel::Tidevm), ("linux", Kernel::Linux)];
