//! How much memory the guest has, in the words of Linux's `/proc/meminfo`.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::Size;

/// The first three lines of `/proc/meminfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meminfo {
    /// Memory that the allocator manages.
    pub total: Size,
    /// Memory that is free. Linux does not count pages on per-CPU lists, and tidevm's guest does.
    pub free: Size,
    /// Memory that a new workload can have.
    pub available: Size,
}

impl fmt::Display for Meminfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |size: Size| size.0 >> 10;
        let Self { total, free, available } = *self;
        write!(f, "MemTotal {} kB, MemFree {} kB, MemAvailable {} kB", kib(total), kib(free), kib(available))
    }
}
