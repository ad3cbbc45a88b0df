//! Counters of the guest's memory management, in Linux's words: the record, and the tables of its counters.
//!
//! A new counter is a field and a row of the table below it. Sessions, JSON, `expect` and the guest's shell
//! iterate over the tables.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::counter::{Counter, Group};
use crate::either;
use crate::kernel::Kernel;
use crate::limits::MAX_NODES;

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

impl ZoneName {
    /// All of them, in the order of [`Stats::zones`].
    pub const ALL: [Self; NR_ZONES] = [Self::Dma32, Self::Normal, Self::Movable];

    /// Linux's spelling, which scripts, tables and JSON use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dma32 => "DMA32",
            Self::Normal => "Normal",
            Self::Movable => "Movable",
        }
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

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

impl ZoneStats {
    /// Its counters. Tables show them in columns that are headed by their keys.
    pub const COUNTERS: &[Counter<Self>] = &[
        Counter::new("spanned", |zone: &Self| zone.spanned).word("spanned").linux(),
        Counter::new("present", |zone: &Self| zone.present).word("present").linux(),
        Counter::new("managed", |zone: &Self| zone.managed).word("managed").linux(),
        Counter::new("free", |zone: &Self| zone.free).word("free").linux(),
        Counter::new("pcp", |zone: &Self| zone.pcp).linux(),
    ];

    /// A zone without pages.
    #[must_use]
    pub fn empty(name: ZoneName) -> Self {
        Self { name, spanned: 0, present: 0, managed: 0, free: 0, pcp: 0 }
    }
}

/// Counters of one NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStats {
    /// One entry per zone, in the order of [`ZoneName`].
    pub zones: [ZoneStats; NR_ZONES],
    /// Sections of its boot memory that were left for later and initialised by CPUs of the node.
    pub init_local: u64,
    /// Sections of its boot memory that were left for later and initialised by CPUs of other nodes.
    pub init_remote: u64,
}

impl NodeStats {
    /// Its counters, those of its zones excluded.
    pub const COUNTERS: &[Counter<Self>] = &[
        Counter::new("init_local", |node: &Self| node.init_local).word("init.local"),
        Counter::new("init_remote", |node: &Self| node.init_remote).word("init.remote"),
    ];
}

impl Default for NodeStats {
    fn default() -> Self {
        Self { zones: ZoneName::ALL.map(ZoneStats::empty), init_local: 0, init_remote: 0 }
    }
}

/// Counters of the whole guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The kernel that tells them. Counters that it does not tell are 0 here, and are not shown.
    pub kernel: Kernel,
    /// One entry per zone, in the order of [`ZoneName`]: the sums over all nodes.
    pub zones: [ZoneStats; NR_ZONES],
    /// Number of nodes that exist: they are the first of [`Stats::nodes`].
    pub nr_nodes: u8,
    /// One entry per node.
    pub nodes: [NodeStats; MAX_NODES],
    /// Pages of hot-added memory's memmap that were taken from memory the guest already had.
    pub memmap_boot_pages: u64,
    /// Pages of hot-added memory's memmap that lie in the added memory itself.
    pub memmap_altmap_pages: u64,
    /// Memory blocks that are online, those of boot memory included, initialised or deferred.
    pub blocks_online: u64,
    /// Pages that are free and deferred: not initialised yet, boot memory or plugged. Free pages include them.
    pub deferred_pages: u64,
    /// Pages migrated since boot.
    pub pages_migrated: u64,
    /// Migrations that failed since boot.
    pub migrate_failed: u64,
    /// Forced drains of per-CPU lists since boot, counted once per zone, not once per CPU.
    pub pcp_drains: u64,
    /// Pages of isolated ranges that were found on per-CPU lists since boot. Isolation does not look for
    /// free pages there.
    pub pcp_stranded: u64,
    /// Sections whose struct pages were all written at once, since boot. The struct pages of other sections
    /// are written when their pages are first used.
    pub memmaps_written: u64,
    /// Injected faults that made their step fail, since boot. One that still waits for its attempt does not count.
    pub faults_injected: u64,
    /// Pages from the first range of device memory that is mapped to the last: the span of the Device zone.
    pub device_spanned: u64,
    /// Pages of device memory that can be used.
    pub device_pages: u64,
    /// References to these pages: one for each page, and one for each use.
    pub device_refs: u64,
    /// Requests for pages that no zone could serve, since boot.
    pub alloc_failed: u64,
    /// Allocations of workloads that had to wait for memory, since boot.
    pub alloc_waited: u64,
    /// Those of them that found no memory in time.
    pub alloc_gave_up: u64,
    /// How often a virtio-mem device gave a plugged size that its driver did not believe in, since boot.
    pub driver_mismatches: u64,
    /// How often a virtio-mem device violated the specification or did not answer, since boot.
    pub driver_errors: u64,
    /// Deadlines that passed while a virtio-mem device did not answer, since boot.
    pub driver_overdue: u64,
    /// Virtio-mem devices that needed a reset and were reset, since boot.
    pub driver_resets: u64,
    /// How long boot took. Only tidevm's own guest tells it.
    pub boot: BootTimes,
}

impl Stats {
    /// Its counters, those of zones, nodes and boot excluded.
    pub const COUNTERS: &[Counter<Self>] = &[
        Counter::new("memmap_boot_pages", |stats: &Self| stats.memmap_boot_pages)
            .word("memmap.boot_pages")
            .label(Group::Memmap, "page in boot memory", "pages in boot memory"),
        Counter::new("memmap_altmap_pages", |stats: &Self| stats.memmap_altmap_pages)
            .word("memmap.altmap_pages")
            .label(Group::Memmap, "in hot-added memory", "in hot-added memory"),
        Counter::new("blocks_online", |stats: &Self| stats.blocks_online)
            .word("blocks.online")
            .linux()
            .label(Group::Blocks, "memory block online", "memory blocks online"),
        Counter::new("deferred_pages", |stats: &Self| stats.deferred_pages).word("deferred"),
        Counter::new("pages_migrated", |stats: &Self| stats.pages_migrated).word("migrated").linux().label(
            Group::Migration,
            "page migrated",
            "pages migrated",
        ),
        Counter::new("migrate_failed", |stats: &Self| stats.migrate_failed).linux().label(
            Group::Migration,
            "migration failed",
            "migrations failed",
        ),
        Counter::new("pcp_drains", |stats: &Self| stats.pcp_drains).word("pcp.drains").label(
            Group::PerCpuLists,
            "drain of per-CPU lists",
            "drains of per-CPU lists",
        ),
        Counter::new("pcp_stranded", |stats: &Self| stats.pcp_stranded).word("pcp.stranded"),
        Counter::new("memmaps_written", |stats: &Self| stats.memmaps_written),
        Counter::new("faults_injected", |stats: &Self| stats.faults_injected).word("faults.injected"),
        Counter::new("device_spanned", |stats: &Self| stats.device_spanned)
            .word("zone.Device.spanned")
            .label(Group::DeviceMemory, "page spanned", "pages spanned"),
        Counter::new("device_pages", |stats: &Self| stats.device_pages).word("device.pages").label(
            Group::DeviceMemory,
            "to use",
            "to use",
        ),
        Counter::new("device_refs", |stats: &Self| stats.device_refs).word("device.refs").label(
            Group::DeviceMemory,
            "reference",
            "references",
        ),
        Counter::new("alloc_failed", |stats: &Self| stats.alloc_failed).word("alloc.failed"),
        Counter::new("alloc_waited", |stats: &Self| stats.alloc_waited).word("alloc.waited"),
        Counter::new("alloc_gave_up", |stats: &Self| stats.alloc_gave_up).word("alloc.gave_up"),
        Counter::new("driver_mismatches", |stats: &Self| stats.driver_mismatches).word("driver.mismatches"),
        Counter::new("driver_errors", |stats: &Self| stats.driver_errors).word("driver.errors"),
        Counter::new("driver_overdue", |stats: &Self| stats.driver_overdue).word("driver.overdue"),
        Counter::new("driver_resets", |stats: &Self| stats.driver_resets).word("driver.resets"),
    ];
}

/// No memory at all, on one node.
impl Default for Stats {
    fn default() -> Self {
        Self {
            kernel: Kernel::Tidevm,
            zones: ZoneName::ALL.map(ZoneStats::empty),
            nr_nodes: 1,
            nodes: [NodeStats::default(); MAX_NODES],
            memmap_boot_pages: 0,
            memmap_altmap_pages: 0,
            blocks_online: 0,
            deferred_pages: 0,
            pages_migrated: 0,
            migrate_failed: 0,
            pcp_drains: 0,
            pcp_stranded: 0,
            memmaps_written: 0,
            faults_injected: 0,
            device_spanned: 0,
            device_pages: 0,
            device_refs: 0,
            alloc_failed: 0,
            alloc_waited: 0,
            alloc_gave_up: 0,
            driver_mismatches: 0,
            driver_errors: 0,
            driver_overdue: 0,
            driver_resets: 0,
            boot: BootTimes::default(),
        }
    }
}

impl fmt::Display for Stats {
    /// The labelled counters in one line, and in a second line those of device memory, if some is mapped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = None;
        for counter in Self::COUNTERS {
            let Some(label) = counter.label.filter(|_| counter.told_by(self.kernel)) else { continue };
            let group = label.group;
            if group == Group::DeviceMemory && self.device_spanned == 0 {
                continue;
            }
            let separator = match before {
                None => "",
                Some(before) if before == group => ", ",
                Some(_) if group == Group::DeviceMemory => "\n",
                Some(_) => "; ",
            };
            let title = if before == Some(group) { "" } else { group.title() };
            let number = (counter.read)(self);
            write!(f, "{separator}{title}{number} {}", either(number, label.one, label.text))?;
            before = Some(group);
        }
        Ok(())
    }
}

/// When boot reached its milestones, in microseconds since the kernel's first instructions.
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

#[cfg(test)]
pub(crate) mod tests;
