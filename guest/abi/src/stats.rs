//! Counters of the guest's memory management, in Linux's words.

use serde::{Deserialize, Serialize};

use crate::MAX_NODES;

/// The zones, in the order of their addresses' permissions (Linux `enum zone_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZoneName {
    /// Boot memory below 4 GiB.
    Dma32,
    /// Boot memory above 4 GiB, and hot-added memory for the kernel.
    Normal,
    /// Hot-added memory for movable pages.
    Movable,
}

/// Number of zones in [`Stats`].
pub const NR_ZONES: usize = 3;

/// Counters of one zone, in pages (Linux `/proc/zoneinfo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneStats {
    /// Which zone.
    pub name: ZoneName,
    /// Pages between its first and last page, holes included.
    pub spanned: u64,
    /// Pages that exist.
    pub present: u64,
    /// Pages that the allocator manages.
    pub managed: u64,
    /// Pages on the buddy's free lists, isolated ones excluded.
    pub free: u64,
    /// Pages on per-CPU lists.
    pub pcp: u64,
}

/// Counters of one NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStats {
    /// One entry a zone, in the order of [`ZoneName`].
    pub zones: [ZoneStats; NR_ZONES],
    /// Sections of its boot memory that were left for later and initialised by CPUs of the node.
    pub init_local: u64,
    /// Such sections that CPUs of other nodes initialised.
    pub init_remote: u64,
}

/// Counters of the whole guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// One entry a zone, in the order of [`ZoneName`]: the sums over all nodes.
    pub zones: [ZoneStats; NR_ZONES],
    /// The nodes that there are: the first of [`Stats::nodes`].
    pub nr_nodes: u8,
    /// One entry a node.
    pub nodes: [NodeStats; MAX_NODES],
    /// Pages of hot-added memory's memmap that were taken from memory the guest already had.
    pub memmap_boot_pages: u64,
    /// Pages of hot-added memory's memmap that lie in the added memory itself.
    pub memmap_altmap_pages: u64,
    /// Memory blocks that are online.
    pub blocks_online: u64,
    /// Pages migrated since boot.
    pub pages_migrated: u64,
    /// Migrations that failed since boot.
    pub migrate_failed: u64,
    /// Forced drains of per-CPU lists since boot, counted once a zone, not once a CPU.
    pub pcp_drains: u64,
    /// Pages of isolated ranges that were found on per-CPU lists since boot, where nobody looks for
    /// them.
    pub pcp_stranded: u64,
    /// Sections whose struct pages were all written at once, since boot; the others' are written when
    /// their pages are first used.
    pub memmaps_written: u64,
    /// Pages from the first range of device memory that is mapped to the last, which is all that the
    /// Device zone has.
    pub device_spanned: u64,
    /// Pages of device memory that can be used.
    pub device_pages: u64,
    /// References to them: each is one, and so is each use.
    pub device_refs: u64,
    /// How long boot took.
    pub boot: BootTimes,
}

/// When boot reached what it is measured by, in microseconds since the kernel's first instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimes {
    /// All of boot memory is in the kernel's page tables.
    pub mapped: u64,
    /// The page allocator gives pages.
    pub first_allocation: u64,
    /// All of boot memory is with the page allocator; `None` while some of it is left for later.
    pub initialised: Option<u64>,
    /// Sections whose struct pages were all written before the first allocation.
    pub memmaps_written: u64,
}
