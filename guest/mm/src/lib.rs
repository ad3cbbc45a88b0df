//! Memory management for a kernel whose memory is added and removed while it runs.
//!
//! A page allocator in the manner of Linux (zones, buddy free lists, pageblocks with migrate
//! types, per-CPU lists, watermarks) and the life cycle of memory blocks around it: add, online,
//! offline with migration, remove; a memory block's memmap may lie in the memory block itself. The words
//! are Linux's.
//!
//! # Map
//! The table begins with the lowest layer; a file imports only from its own row and the rows before it.
//!
//! | layer | files |
//! |---|---|
//! | words | [`geometry`](MAX_NODES), [`addr`](PhysAddr), [`pageblock_set`](PageblockSet), `sync`, [`grace`](Passes), [`wakeup`](Wakeup), [`tlb_flush`](FlushTickets), [`copy_batch`](CopyBatch), `lock`, `variant`, [`options`](Options), [`platform`](Platform), `irq`, `steps` |
//! | metadata | [`page`](Page), `free_area`, [`node`](NodeId), [`sparse`](Sparse), `pageblock`, `altmap`, [`hotplug`](Hotplug), `pgmap` |
//! | allocation | [`memblock`](Memblock), `free_block`, `free_lists`, `zone`, `buddy`, `zonelist`, `fallback`, `pcplist`, `grow`, `page_alloc`, `page_reporting` |
//! | movement | `isolation`, `target`, `migrate`, `evacuate` |
//! | life cycle | `memmap`, `memmap_init`, `direct_map`, `boot_section`, `added_block`, `deferred`, `boot`, `memory_block`, `contig`, `zone_device` |
//! | beside | `check` (every invariant), `vmstat` (every counter), `hosted` (the door for simulated machines) |
//!
//! The kernel makes one static [`Mm`], fills a [`Memblock`] from its memory map and calls
//! [`Mm::boot`]; from then on [`Mm::alloc_pages`] works on every CPU. The steps that add and remove memory are
//! methods of [`Hotplug`], the guard of the lock that [`Mm::hotplug`] takes. Nothing here knows where
//! hot-added memory comes from: the driver of a memory device calls these steps, and `mm` never calls it.
//!
//! # Lock order
//! ```text
//! memory hotplug  >  deferred  >  zone  >  owners
//! ```
//! A CPU that holds a lock takes only locks to the right of it, and never two of a kind (Linux:
//! `mem_hotplug_lock`, the node's resize lock, `zone->lock`). Per-CPU lists have no lock: a CPU uses its own, and the
//! holder of the memory hotplug lock uses those of all CPUs after it has stopped them (see `pcplist`). The
//! locks under which `mm` calls the machine are those of the table at [`Platform`]. All locks but the first are held with
//! interrupts of the CPU off ([`Platform::irq_save`]). Calls to a
//! [`MovableOwner`] are made under the first lock only, so they may allocate and free too.
//!
//! A broken invariant panics with the values that differ. A mistake that a caller or the machine can make is
//! an error. Identifiers such as S3.1 are claims of `docs/features.toml`.
#![cfg_attr(not(any(test, feature = "hosted")), no_std)]

#[cfg(any(test, feature = "hosted"))]
extern crate std;

/// The name by which the files of the simulated machine know this crate.
#[cfg(test)]
extern crate self as tidevm_mm;

/// The simulated machine, compiled into the unit tests. For the crate `tidevm-mm-sim` this one is another crate than
/// the one that is tested.
#[cfg(test)]
#[path = "../../mm-sim/src/lib.rs"]
pub mod sim;

/// The program of README.md, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[doc = include_str!("../PLATFORM.md")]
pub mod implementing_platform {}

mod added_block;
mod addr;
mod altmap;
mod boot;
mod boot_section;
mod buddy;
mod check;
mod contig;
mod copy_batch;
mod deferred;
mod direct_map;
mod evacuate;
mod fallback;
mod free_area;
mod free_block;
mod free_lists;
mod geometry;
mod grace;
mod grow;
#[cfg(any(test, feature = "hosted"))]
pub mod hosted;
mod hotplug;
mod irq;
mod isolation;
mod lock;
mod memblock;
mod memmap;
mod memmap_init;
mod memory_block;
mod migrate;
mod node;
mod options;
mod page;
mod page_alloc;
mod page_reporting;
mod pageblock;
mod pageblock_set;
mod pcplist;
mod pgmap;
mod platform;
mod sparse;
#[cfg(test)]
mod steps;
mod sync;
mod target;
mod tlb_flush;
mod variant;
mod vmstat;
mod wakeup;
mod zone;
mod zone_device;
mod zonelist;

pub use added_block::MAX_BLOCK_SECTIONS;
pub use addr::{
    MAX_PAGE_ORDER, MEMMAP_PAGES, Order, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, Pfn,
    PfnRange, PhysAddr, PhysRange, SECTION_PAGEBLOCKS, SECTION_PAGES, SECTION_SIZE, SectionNr, SectionRange,
};
pub use boot::BootError;
pub use check::Checked;
pub use copy_batch::CopyBatch;
pub use geometry::{MAX_NODES, MAX_OWNERS, MAX_PGMAPS, MEMBLOCK_RANGES};
pub use grace::Passes;
pub use hotplug::Hotplug;
pub use isolation::{OfflineError, Stuck};
pub use memblock::{Memblock, MemblockFull, NodeOverlap};
pub use memory_block::{
    AddAndOnlineError, AddError, AddedPart, BlockState, MemoryBlockStats, MhpFlags, OfflineAndRemoveError,
    OnlineError, RemoveError, RemovedPart,
};
pub use migrate::MovableOwner;
pub use node::{NodeId, ZoneId, ZoneType};
pub use options::{DeviceInit, InitPolicy, MemoryContent, Options, PcpPolicy, RemovalPolicy};
pub use page::{DevUser, Holder, OwnerId, Page};
pub use page_alloc::{AllocError, Gfp};
pub use page_reporting::{CAPACITY as REPORTING_CAPACITY, Lent};
pub use pageblock::MigrateType;
pub use pageblock_set::PageblockSet;
pub use pcplist::{PcpDisabled, PerCpuPages};
pub use pgmap::{DeviceStats, PgmapInfo, PgmapNr};
pub use platform::{FaultStep, MemmapFrames, NoPageTable, Platform};
pub use sparse::{Section, SectionState, Sparse};
pub use tlb_flush::{FlushTicket, FlushTickets, ServedTickets};
pub use vmstat::{PcpInfo, Stats, ZoneInfo, ZoneStats};
pub use wakeup::Wakeup;
pub use zone_device::{DevAltmap, DevPage, DevPageError, DevPagemap, MemremapError, MemunmapError, NoPgmap};

use deferred::Deferred;
use hotplug::{HotplugHeld, hotplug_lock};
use lock::{Rank, SpinLock};
use migrate::Owners;
use options::OptionsWord;
use pgmap::Pgmaps;
use platform::Calls;
use vmstat::Counters;
use zone::Zone;
use zonelist::Nodes;

/// The memory management of one machine.
///
/// ```
/// use tidevm_mm::{Gfp, Order};
/// use tidevm_mm_sim::SimMachine;
///
/// // On a simulated machine. `Platform` has one of plain memory.
/// let mm = SimMachine::default().boot();
/// // Pages on the lists of CPUs are free too.
/// let free = || mm.stats().zones.iter().map(|zone| zone.all_free() + zone.pcp).sum::<u64>();
/// let before = free();
/// // One page that has to stay where it is, and 2 MiB that can move.
/// let page = mm.alloc_pages(Order::PAGE, Gfp::Kernel)?;
/// let block = mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable)?;
/// assert!(block.is_aligned(Order::PAGEBLOCK) && free() == before - 513);
/// mm.free_pages(page, Order::PAGE);
/// mm.free_pages(block, Order::PAGEBLOCK);
/// assert_eq!(free(), before);
/// // Panics unless every invariant holds.
/// mm.check();
/// # Ok::<(), tidevm_mm::AllocError>(())
/// ```
pub struct Mm<P: Platform> {
    platform: Calls<P>,
    sparse: Sparse,
    per_cpu: &'static [PerCpuPages],
    zones: [Zone; ZoneId::COUNT],
    nodes: Nodes,
    /// Serialises everything that changes which memory there is.
    hotplug: SpinLock<HotplugHeld>,
    owners: SpinLock<Owners>,
    /// Memory that is not initialised yet.
    deferred: Deferred,
    counters: Counters,
    pgmaps: Pgmaps,
    /// Given at boot.
    options: OptionsWord,
}

impl<P: Platform> Mm<P> {
    /// An `Mm` without memory, for a static. `per_cpu` has one element per CPU that may ever call, as many as there are.
    #[must_use]
    pub const fn new(platform: P, sparse: Sparse, per_cpu: &'static [PerCpuPages]) -> Self {
        Self {
            platform: Calls::new(platform),
            sparse,
            per_cpu,
            zones: Zone::all(),
            nodes: Nodes::new(),
            hotplug: hotplug_lock(),
            owners: SpinLock::new(Rank::Owners, Owners::new()),
            deferred: Deferred::new(),
            counters: Counters::new(),
            pgmaps: Pgmaps::new(),
            options: OptionsWord::new(),
        }
    }

    /// The machine below.
    pub const fn platform(&self) -> &P {
        self.platform.machine()
    }
}
