//! Device memory: what the VMM can ask of the guest, and what the guest tells.

use serde::{Deserialize, Serialize};

use crate::Handle;

/// What the VMM can ask of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PmemOp {
    /// Tell what is known of a range of device memory: [`Answer::Pmem`](crate::Answer::Pmem).
    Look {
        /// Which.
        device: u8,
    },
    /// Map ranges of device memory, all or none: [`Answer::PmemMapped`](crate::Answer::PmemMapped).
    Map {
        /// Bit `n` is the `n`-th range of the memory map.
        devices: u8,
        /// Their memmaps lie in themselves.
        altmap: bool,
        /// Pages at the start of each that are left alone, with `altmap`.
        reserve: u32,
        /// Most CPUs that initialise struct pages, at least 1.
        cpus: u32,
    },
    /// Unmap a range of device memory: [`Answer::PmemUnmapped`](crate::Answer::PmemUnmapped).
    Unmap {
        /// Which.
        device: u8,
    },
    /// Use pages of a range of device memory that nobody uses, and fill them: [`Answer::Hogged`](crate::Answer::Hogged). The
    /// handle is good for [`Op::Verify`](crate::Op::Verify) and [`Op::Release`](crate::Op::Release).
    Hold {
        /// Name for later calls.
        handle: Handle,
        /// Which range.
        device: u8,
        /// Number of 4 KiB pages wanted.
        pages: u64,
    },
}

/// A range of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pmem {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is mapped as, if it is.
    pub mapped: Option<PmemUse>,
}

/// How a range of device memory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemUse {
    /// Pages that can be used.
    pub pages: u64,
    /// References to them by users.
    pub users: u64,
    /// Pages of its memmap.
    pub memmap_pages: u64,
    /// Whether they lie in the range itself.
    pub altmap: bool,
}

/// What mapping took, summed up over the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemMapped {
    /// Pages that can be used.
    pub pages: u64,
    /// Struct pages written under the memory hotplug lock.
    pub locked_pages: u64,
    /// How long that lock was held, in nanoseconds.
    pub locked_ns: u64,
    /// From the call until all pages could be used, in nanoseconds.
    pub total_ns: u64,
    /// CPUs that initialised struct pages.
    pub cpus: u32,
}

/// Why nothing was done with a range of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PmemFailure {
    /// The memory map has no such range.
    NoDevice,
    /// It is mapped already, or about to be.
    Mapped,
    /// It is not mapped.
    NotMapped,
    /// It is not whole memory blocks, or the reserve is not whole pageblocks.
    Misaligned,
    /// It lies beyond the addresses that the guest has struct pages for.
    OutOfRange,
    /// There is other memory.
    Conflict,
    /// Reserve and memmap leave nothing of it.
    AltmapTooLarge,
    /// Too many ranges are mapped.
    TooMany,
    /// No page for a page table.
    NoPageTable,
    /// No room for the memmap.
    NoMemory,
    /// Pages of it are in use.
    InUse {
        /// References.
        refs: u64,
        /// Frame number of the first such page, and who uses it.
        first: Option<(u64, Handle)>,
    },
}
