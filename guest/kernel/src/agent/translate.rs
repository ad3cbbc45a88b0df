//! The one translation between the words of memory management (`tidevm_mm`) and the records that leave the
//! guest (`tidevm_abi`). Neither crate knows the other. Every match from one to the other is here, except those
//! of the command line's values, which `boot::cmdline` translates before there is an agent.
//!
//! Invariant: a wrong request of the virtio-mem driver, such as to take a memory block offline that is not
//! online, is a bug of the guest and panics. Every failure that the host or a user can cause is a record.

use tidevm_abi::{self as abi, Failure, PmemFailure, ResizeState, Size};
use tidevm_mm::{
    self as mm, AddAndOnlineError, AddError, Holder, MemoryBlockStats, MemremapError, MemunmapError,
    OfflineAndRemoveError, OfflineError, OnlineError, PAGE_SIZE, PgmapInfo, RemoveError, SECTION_SIZE,
    ZoneType,
};

use crate::agent::{pressure, workload};
use crate::mem::platform;
use crate::virtio::mem::counts;
use crate::virtio::mem::faults::{self, DriverFault};

/// The zone, as records name it.
pub fn zone_name(zone: ZoneType) -> abi::ZoneName {
    match zone {
        ZoneType::Dma32 => abi::ZoneName::Dma32,
        ZoneType::Normal => abi::ZoneName::Normal,
        ZoneType::Movable => abi::ZoneName::Movable,
    }
}

/// The step that a test makes fail: one of memory management, or else one of the virtio-mem driver.
pub fn fault_step(step: abi::FaultStep) -> Result<mm::FaultStep, DriverFault> {
    Ok(match step {
        abi::FaultStep::MapDirect => mm::FaultStep::MapDirect,
        abi::FaultStep::MapMemmap => mm::FaultStep::MapMemmap,
        abi::FaultStep::AllocMemmap => mm::FaultStep::AllocMemmap,
        abi::FaultStep::Online => mm::FaultStep::Online,
        abi::FaultStep::Isolate => mm::FaultStep::Isolate,
        abi::FaultStep::Migrate => mm::FaultStep::Migrate,
        abi::FaultStep::PageTable => mm::FaultStep::PageTable,
        abi::FaultStep::Answer => return Err(DriverFault::Answer),
        abi::FaultStep::Notify => return Err(DriverFault::Notify),
        abi::FaultStep::Device => return Err(DriverFault::Device),
    })
}

/// The counters, with the milestones of boot.
pub fn stats(stats: &mm::Stats, boot: abi::BootTimes) -> abi::Stats {
    let node = |node: usize| {
        let initialised: u32 = stats.deferred_sections[node].iter().sum();
        let local = stats.deferred_sections[node][node];
        abi::NodeStats {
            zones: stats.nodes[node].map(zone_stats),
            init_local: local.into(),
            init_remote: (initialised - local).into(),
        }
    };
    abi::Stats {
        kernel: abi::Kernel::Tidevm,
        zones: stats.zones.map(zone_stats),
        nr_nodes: stats.nr_nodes as u8,
        nodes: core::array::from_fn(node),
        memmap_boot_pages: stats.memmap_boot_pages,
        memmap_altmap_pages: stats.memmap_altmap_pages,
        blocks_online: stats.blocks_online,
        deferred_pages: stats.deferred_pages(),
        pages_migrated: stats.pages_migrated,
        migrate_failed: stats.migrate_failed,
        pcp_drains: stats.pcp_drains,
        pcp_stranded: stats.pcp_stranded,
        memmaps_written: stats.memmaps_written,
        faults_injected: platform::faults_injected() + faults::injected(),
        device_spanned: stats.device.spanned,
        device_pages: stats.device.pages,
        device_refs: stats.device.refs,
        alloc_failed: stats.alloc_failed_movable + stats.alloc_failed_kernel,
        alloc_waited: pressure::waited(),
        alloc_gave_up: pressure::gave_up(),
        driver_mismatches: counts::MISMATCHES.read(),
        driver_errors: counts::ERRORS.read(),
        driver_overdue: counts::OVERDUE.read(),
        driver_resets: counts::RESETS.read(),
        boot,
    }
}

fn zone_stats(zone: mm::ZoneStats) -> abi::ZoneStats {
    abi::ZoneStats {
        name: zone_name(zone.zone),
        spanned: zone.spanned,
        present: zone.present,
        managed: zone.managed,
        free: zone.all_free(),
        pcp: zone.pcp,
    }
}

/// Memory blocks as a run: one, or neighbours that are deferred.
pub fn block_run(block: &MemoryBlockStats) -> abi::BlockRun {
    abi::BlockRun {
        addr: block.first.start().address().get(),
        count: block.count.into(),
        size: Size(u64::from(block.sections) * SECTION_SIZE),
        boot: block.boot,
        state: match block.state {
            mm::BlockState::Online => abi::BlockState::Online,
            mm::BlockState::Deferred => abi::BlockState::Deferred,
            // Nothing of any other memory block can be allocated.
            _ => abi::BlockState::Offline,
        },
        zone: block.zone.map(|zone| zone_name(zone.zone_type())),
        node: block.node.get(),
        plugged: Some(Size(u64::from(block.plugged) * PAGE_SIZE)),
        memmap: Some(abi::Memmap { pages: block.memmap.into(), on_memory: block.memmap_on_memory }),
    }
}

/// Why a memory block was not added: memory for its page tables or its memmap is missing. The driver adds only memory
/// that is not there, so nothing else can be the reason.
pub fn not_added(_: AddError) -> ResizeState {
    ResizeState::NoMemory
}

/// Why memory was not added and put online.
pub fn not_added_and_online(error: AddAndOnlineError) -> ResizeState {
    match error {
        AddAndOnlineError::Add(error) => not_added(error),
        AddAndOnlineError::Online(error) => not_online(error),
    }
}

/// Why memory that was added was not put online: only memory can be missing, as in [`not_added`].
pub fn not_online(_: OnlineError) -> ResizeState {
    ResizeState::NoMemory
}

/// Why a range of memory blocks was not removed.
pub fn not_removed(error: OfflineAndRemoveError) -> Failure {
    match error {
        OfflineAndRemoveError::Remove(RemoveError::Granularity) => Failure::Granularity,
        OfflineAndRemoveError::Remove(RemoveError::Mixed) => Failure::Mixed,
        OfflineAndRemoveError::Remove(_) => Failure::NotBlocks,
        OfflineAndRemoveError::Offline(nr, error) => {
            let addr = nr.start().address().get();
            match error {
                OfflineError::Unmovable(stuck) | OfflineError::NoRoom(stuck) => {
                    Failure::Stuck { addr, pages: stuck.pages.into() }
                }
                OfflineError::Busy => Failure::Stuck { addr, pages: 0 },
                _ => Failure::NotBlocks,
            }
        }
    }
}

/// Why the memory block of a virtio-mem device, or a part of it, was not taken offline.
///
/// # Panics
/// When the driver asked for something that cannot be, such as a memory block that is not online.
pub fn not_offline(error: OfflineError) -> ResizeState {
    match error {
        OfflineError::Unmovable(stuck) => ResizeState::Unmovable {
            pages: u64::from(stuck.pages),
            first: stuck.first.map(|page| {
                page.map(|(pfn, holder)| abi::UnmovablePage {
                    pfn: u64::from(pfn.get()),
                    owner: owner(holder),
                })
            }),
        },
        OfflineError::NoRoom(_) => ResizeState::NoRoom,
        // Isolations wait for each other, so only an injected fault leads here.
        OfflineError::Busy => ResizeState::Unmovable { pages: 0, first: [None; 4] },
        other => panic!("the driver asked for an impossible offline: {other:?}"),
    }
}

fn owner(holder: Holder) -> abi::Owner {
    match holder {
        Holder::Reserved => abi::Owner::Reserved,
        Holder::Tagged(handle) => abi::Owner::Workload(handle),
        Holder::PageTable => abi::Owner::PageTable,
        Holder::Memmap => abi::Owner::Memmap,
        Holder::Owned { index, .. } => {
            workload::handle_of(index).map_or(abi::Owner::Kernel, abi::Owner::Workload)
        }
        // `Kernel`, `Unclaimed`, `Lent`, and what later versions of `mm` tell apart.
        _ => abi::Owner::Kernel,
    }
}

/// A range of device memory that is mapped.
pub fn pmem_use(info: &PgmapInfo) -> abi::PmemUse {
    let pages = u64::from(info.pages.pages());
    abi::PmemUse {
        pages,
        // Every page has one reference of its own.
        users: info.refs.saturating_sub(pages),
        memmap_pages: info.memmap_pages.into(),
        altmap: info.altmap,
    }
}

/// Why a range of device memory was not mapped.
pub fn not_mapped(error: MemremapError) -> PmemFailure {
    match error {
        MemremapError::Empty | MemremapError::Misaligned => PmemFailure::Misaligned,
        MemremapError::OutOfRange => PmemFailure::OutOfRange,
        MemremapError::Conflict(_) => PmemFailure::Conflict,
        // The kernel computes the memmap's part of the altmap; the rest is the caller's reserve.
        MemremapError::AltmapTooSmall { .. } | MemremapError::AltmapTooLarge => PmemFailure::AltmapTooLarge,
        MemremapError::TooMany => PmemFailure::TooMany,
        MemremapError::NoPageTable => PmemFailure::NoPageTable,
        MemremapError::NoMemory => PmemFailure::NoMemory,
        other => panic!("`mm` refuses device memory for a reason that the kernel does not know: {other}"),
    }
}

/// Why a range of device memory was not unmapped.
pub fn not_unmapped(error: MemunmapError) -> PmemFailure {
    match error {
        MemunmapError::InUse { refs, first } => {
            PmemFailure::InUse { refs, first: first.map(|(pfn, user)| (pfn.get().into(), user.tag)) }
        }
        // `NotMapped`, and `Initialising`, which is not mapped yet.
        _ => PmemFailure::NotMapped,
    }
}
