//! Counters and sizes, as numbers to read: [`Stats`], [`ZoneInfo`], [`PcpInfo`].
//!
//! Mirrors the numbers behind Linux's `/proc/zoneinfo`, `/proc/vmstat` and `/proc/buddyinfo`. Differs from
//! Linux on purpose: there are no per-CPU counters to be folded, because no hot path counts an event.
//!
//! Invariant: events only grow; all other numbers are those of the state they name, exact whenever no
//! CPU is inside `mm`.

use crate::Mm;
use crate::addr::{Order, Pfn};
use crate::geometry::MAX_NODES;
use crate::node::{ZoneId, ZoneType};
use crate::pageblock::MigrateType;
use crate::pgmap::DeviceStats;
use crate::platform::Platform;
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::zone::Watermark;

/// Counters of one zone, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZoneStats {
    /// Which zone.
    pub zone: ZoneType,
    /// Pages between its first and its last, holes included.
    pub spanned: u64,
    /// Pages that exist, plugged or not, memmap included.
    pub present: u64,
    /// Pages that the allocator has, in use or free.
    pub managed: u64,
    /// Managed pages that are free and not initialised yet.
    pub deferred: u64,
    /// Pages on the free lists, isolated ones excluded.
    pub free: u64,
    /// Pages on per-CPU lists.
    pub pcp: u64,
    /// Pageblocks that are isolated.
    pub nr_isolate_pageblock: u64,
}

impl ZoneStats {
    /// A zone without memory.
    const fn none(zone: ZoneType) -> Self {
        Self {
            zone,
            spanned: 0,
            present: 0,
            managed: 0,
            deferred: 0,
            free: 0,
            pcp: 0,
            nr_isolate_pageblock: 0,
        }
    }

    /// Pages that are free, initialised or not.
    #[must_use]
    pub const fn all_free(&self) -> u64 {
        self.free + self.deferred
    }

    fn plus(self, other: Self) -> Self {
        Self {
            zone: self.zone,
            spanned: self.spanned + other.spanned,
            present: self.present + other.present,
            managed: self.managed + other.managed,
            deferred: self.deferred + other.deferred,
            free: self.free + other.free,
            pcp: self.pcp + other.pcp,
            nr_isolate_pageblock: self.nr_isolate_pageblock + other.nr_isolate_pageblock,
        }
    }
}

/// Levels that follow from the size of one zone, and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZoneInfo {
    /// Free pages below which the zone serves no ordinary request.
    pub min: u64,
    /// Free pages below which ordinary requests try another zone first.
    pub low: u64,
    /// Free pages below which memory is short.
    pub high: u64,
    /// Pages kept from requests that could use a higher zone, by the highest zone that they may use (Linux
    /// `protection`).
    pub protection: [u64; ZoneType::COUNT],
    /// Its first frame; 0 for a zone without memory.
    pub start_pfn: Pfn,
}

/// One CPU's lists of one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PcpInfo {
    /// Pages on them, those of pageblocks included.
    pub count: u32,
    /// Number of single pages at which a batch of them is flushed.
    pub high: u32,
    /// Pages that are refilled or flushed together.
    pub batch: u32,
}

/// Counters of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// One entry per zone, in the order of [`ZoneType::ALL`]: the sums over all nodes.
    pub zones: [ZoneStats; ZoneType::COUNT],
    /// One more than the highest node that has or had memory or CPUs (Linux `nr_node_ids`).
    pub nr_nodes: usize,
    /// The same as `zones` per node, and zeros beyond `nr_nodes`.
    pub nodes: [[ZoneStats; ZoneType::COUNT]; MAX_NODES],
    /// Deferred sections of boot memory that are initialised now: by their node, and by the node of the CPU
    /// that initialised them.
    pub deferred_sections: [[u32; MAX_NODES]; MAX_NODES],
    /// Pages of the memmap of hot-added and of device memory that were allocated from older memory.
    pub memmap_boot_pages: u64,
    /// Sections whose memmap is mapped by small pages, because memory was too fragmented for a large page.
    pub memmaps_by_base_pages: u64,
    /// Pages of the memmap of hot-added and of device memory that lie in that memory itself.
    pub memmap_altmap_pages: u64,
    /// Memory blocks that are online, initialised or deferred. Each section of boot memory is one. A memory block that a
    /// CPU initialises just now may count twice.
    pub blocks_online: u64,
    /// Times that all struct pages of a section were written, since boot.
    pub memmaps_written: u64,
    /// Pages migrated since boot.
    pub pages_migrated: u64,
    /// Migrations that failed since boot.
    pub migrate_failed: u64,
    /// Times that a zone's per-CPU lists were drained on all CPUs, since boot.
    pub pcp_drains: u64,
    /// Times that a zone's per-CPU lists were disabled, since boot.
    pub pcp_disables: u64,
    /// Pages of isolated pageblocks that were found on per-CPU lists after every free that began before the
    /// isolation had ended, since boot.
    pub pcp_stranded: u64,
    /// Times that changed per-CPU limits were published to the CPUs, since boot.
    pub pcp_limit_updates: u64,
    /// Requests for movable pages that no zone could serve, since boot (Linux `allocstall_movable`).
    pub alloc_failed_movable: u64,
    /// All other requests that no zone could serve, since boot.
    pub alloc_failed_kernel: u64,
    /// Device memory.
    pub device: DeviceStats,
}

impl Stats {
    /// Pages that are free and not initialised yet, of all zones. A caller that asks whether
    /// there is enough memory adds them to the free ones (Linux does not, and refuses requests that would
    /// fit).
    #[must_use]
    pub fn deferred_pages(&self) -> u64 {
        self.zones.iter().map(|zone| zone.deferred).sum()
    }
}

/// Events and totals of the whole machine, which no zone has.
pub(crate) struct Counters {
    pub(crate) memmap_boot_pages: AtomicU64,
    pub(crate) memmap_altmap_pages: AtomicU64,
    pub(crate) memmaps_by_base_pages: AtomicU64,
    pub(crate) memmaps_written: AtomicU64,
    pub(crate) pages_migrated: AtomicU64,
    pub(crate) migrate_failed: AtomicU64,
    pub(crate) pcp_drains: AtomicU64,
    pub(crate) pcp_disables: AtomicU64,
    pub(crate) pcp_stranded: AtomicU64,
    pub(crate) pcp_limit_updates: AtomicU64,
    pub(crate) alloc_failed_movable: AtomicU64,
    pub(crate) alloc_failed_kernel: AtomicU64,
}

impl Counters {
    pub(crate) const fn new() -> Self {
        Self {
            memmap_boot_pages: AtomicU64::new(0),
            memmap_altmap_pages: AtomicU64::new(0),
            memmaps_by_base_pages: AtomicU64::new(0),
            memmaps_written: AtomicU64::new(0),
            pages_migrated: AtomicU64::new(0),
            migrate_failed: AtomicU64::new(0),
            pcp_drains: AtomicU64::new(0),
            pcp_disables: AtomicU64::new(0),
            pcp_stranded: AtomicU64::new(0),
            pcp_limit_updates: AtomicU64::new(0),
            alloc_failed_movable: AtomicU64::new(0),
            alloc_failed_kernel: AtomicU64::new(0),
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Reads all counters. Together they are exact only when no other CPU is inside `mm`.
    pub fn stats(&self) -> Stats {
        let counters = &self.counters;
        let mut nodes = [ZoneType::ALL.map(ZoneStats::none); MAX_NODES];
        for node in self.nodes.ids() {
            nodes[node.index()] = ZoneType::ALL.map(|zone| self.zone_stats(node.zone(zone)));
        }
        let sum = |zone: ZoneType| {
            nodes.iter().map(|zones| zones[zone.index()]).fold(ZoneStats::none(zone), ZoneStats::plus)
        };
        Stats {
            zones: ZoneType::ALL.map(sum),
            nr_nodes: self.nodes.ids().count(),
            nodes,
            deferred_sections: self.deferred.initialised(),
            memmaps_written: self.memmaps_written(),
            memmap_boot_pages: counters.memmap_boot_pages.load(Relaxed),
            memmaps_by_base_pages: counters.memmaps_by_base_pages.load(Relaxed),
            memmap_altmap_pages: counters.memmap_altmap_pages.load(Relaxed),
            // Deferred ones first: a section that leaves them meanwhile is online then.
            blocks_online: self.deferred_blocks() + u64::from(self.sparse.blocks_online()),
            pages_migrated: counters.pages_migrated.load(Relaxed),
            migrate_failed: counters.migrate_failed.load(Relaxed),
            pcp_drains: counters.pcp_drains.load(Relaxed),
            pcp_disables: counters.pcp_disables.load(Relaxed),
            pcp_stranded: counters.pcp_stranded.load(Relaxed),
            pcp_limit_updates: counters.pcp_limit_updates.load(Relaxed),
            alloc_failed_movable: self.alloc_failed_movable(),
            alloc_failed_kernel: counters.alloc_failed_kernel.load(Relaxed),
            device: self.pgmaps.stats(),
        }
    }

    /// Pages that movable requests can take before memory is short: those above the high watermark and the lowmem
    /// reserve of each zone. Takes no lock.
    ///
    /// Mirrors Linux `si_mem_available`, without page cache. Differs on purpose: free pages of one zone do not make up for the
    /// pages that another one keeps. Pages on per-CPU lists do not count there either.
    pub fn available_pages(&self) -> u64 {
        ZoneId::all().map(|zone| self.zone(zone).available()).sum()
    }

    /// [`Stats::memmaps_written`]. Takes no lock.
    pub fn memmaps_written(&self) -> u64 {
        self.counters.memmaps_written.load(Relaxed)
    }

    /// [`Stats::alloc_failed_movable`]. Takes no lock.
    pub fn alloc_failed_movable(&self) -> u64 {
        self.counters.alloc_failed_movable.load(Relaxed)
    }

    /// Free buddy blocks of `zone` by order and migrate type (Linux `/proc/pagetypeinfo`).
    pub fn free_blocks(&self, zone: ZoneId) -> [[u32; MigrateType::COUNT]; Order::COUNT] {
        self.lock_zone(zone, &self.irq_off()).free_blocks()
    }

    /// Levels that follow from the size of `zone`, and its place.
    pub fn zone_info(&self, zone: ZoneId) -> ZoneInfo {
        let zone = self.zone(zone);
        ZoneInfo {
            min: zone.watermark(Watermark::Min),
            low: zone.watermark(Watermark::Low),
            high: zone.watermark(Watermark::High),
            protection: ZoneType::ALL.map(|highest| zone.lowmem_reserve(highest)),
            start_pfn: zone.spanned().start(),
        }
    }

    /// The lists of `zone` of every CPU, in the order of the CPUs' numbers.
    pub fn pcp_info(&self, zone: ZoneId) -> impl Iterator<Item = PcpInfo> {
        self.cpus().iter().map(move |cpu| {
            let lists = cpu.zone(zone);
            let limits = lists.limits();
            PcpInfo { count: lists.count(), high: limits.high, batch: limits.batch.into() }
        })
    }

    /// Memory blocks that are deferred or being initialised.
    fn deferred_blocks(&self) -> u64 {
        ZoneId::all().map(|zone| u64::from(self.deferred.left(zone))).sum()
    }

    fn zone_stats(&self, id: ZoneId) -> ZoneStats {
        let zone = self.zone(id);
        let [deferred, free] = zone.deferred_and_free();
        ZoneStats {
            zone: id.zone_type(),
            spanned: zone.spanned().pages().into(),
            present: zone.present(),
            managed: zone.managed(),
            deferred,
            free,
            pcp: self.pcp_pages(id),
            nr_isolate_pageblock: zone.nr_isolate_pageblock(),
        }
    }
}
