//! Carries out calls, the VMM's and those typed at the console: what is quick at once, the rest as jobs
//! that answer when they are through.

pub mod blocks;
pub mod churn;
pub mod pages;
pub mod pattern;
pub mod pmem;
pub mod race;
pub mod workload;

use alloc::sync::Arc;

use tidevm_abi::{Answer, Failure, Handle, Op};
use tidevm_mm::{ZoneStats, ZoneType};

use self::pages::{EachPage, Hog};
use self::workload::{NotMade, Workload};
use crate::cpu::{self, panic};
use crate::job;
use crate::mailbox::Requester;
use crate::mem::{MM, platform, stamps};

/// Most threads of one churn.
const MAX_CHURN_THREADS: u32 = 64;

/// Carries out `op`, or starts the job that does.
pub fn carry_out(op: Op, requester: Requester) {
    let started = match op {
        Op::Stats => Ok(Some(Answer::Stats(stats()))),
        Op::Check => Ok(Some(Answer::Checked { pages: MM.check() })),
        Op::Hog { handle, pages, kind, scattered, full } => {
            make(handle, kind, full, pages).map(|(workload, pages)| {
                job::spawn(workload_cpu(), Hog::new(requester, workload, pages, scattered));
                None
            })
        }
        Op::Pmem(op) => pmem::carry_out(op, requester),
        Op::Verify { handle } if pmem::pages::verify(requester, handle) => Ok(None),
        Op::Release { handle } if pmem::pages::release(requester, handle) => Ok(None),
        Op::Verify { handle } => find(handle).map(|workload| {
            job::spawn(workload_cpu(), EachPage::verify(requester, workload));
            None
        }),
        Op::Release { handle } => find(handle).map(|workload| {
            job::spawn(workload_cpu(), EachPage::release(requester, workload));
            None
        }),
        Op::Churn { handle, threads, millis } => {
            let threads = threads.clamp(1, MAX_CHURN_THREADS);
            make(handle, tidevm_abi::HogKind::Movable, false, churn::slots(threads)).map(|(workload, _)| {
                churn::start(requester, workload, threads, millis);
                None
            })
        }
        Op::Race { cycles } => race::start(requester, cycles).map(|()| None),
        Op::Inject { step, after } => {
            platform::inject(step, after);
            Ok(Some(Answer::Done))
        }
        Op::Blocks { from } => Ok(Some(blocks::blocks(from))),
        Op::Readd { addr, size } => blocks::readd(addr, size).map(Some),
        Op::PowerOff => panic::power_off(),
    };
    match started {
        Ok(None) => {}
        Ok(Some(answer)) => requester.answer(answer),
        Err(failure) => requester.answer(Answer::Failed(failure)),
    }
}

/// The CPU that runs workloads: the last, since the first has the drivers.
pub fn workload_cpu() -> usize {
    cpu::online() - 1
}

fn find(handle: Handle) -> Result<Arc<Workload>, Failure> {
    workload::find(handle).ok_or(Failure::UnknownHandle)
}

fn make(
    handle: Handle,
    kind: tidevm_abi::HogKind,
    full: bool,
    pages: u64,
) -> Result<(Arc<Workload>, u32), Failure> {
    // More than there is cannot fit; the table need not have room for it.
    let stats = MM.stats();
    let managed: u64 = stats.zones.iter().map(|zone| zone.managed).sum();
    let pages = pages.min(managed);
    let workload = Workload::new(handle, kind, full, pages).map_err(|error| match error {
        NotMade::HandleInUse => Failure::HandleInUse,
        NotMade::NoMemory => Failure::NoMemory,
    })?;
    Ok((workload, pages as u32))
}

fn stats() -> tidevm_abi::Stats {
    let stats = MM.stats();
    let zone = |zone: ZoneStats| tidevm_abi::ZoneStats {
        name: match zone.zone {
            ZoneType::Dma32 => tidevm_abi::ZoneName::Dma32,
            ZoneType::Normal => tidevm_abi::ZoneName::Normal,
            ZoneType::Movable => tidevm_abi::ZoneName::Movable,
        },
        spanned: zone.spanned,
        present: zone.present,
        managed: zone.managed,
        free: zone.all_free(),
        pcp: zone.pcp,
    };
    let node = |node: usize| {
        let initialised: u32 = stats.deferred_sections[node].iter().sum();
        let local = stats.deferred_sections[node][node];
        tidevm_abi::NodeStats {
            zones: stats.nodes[node].map(zone),
            init_local: local.into(),
            init_remote: (initialised - local).into(),
        }
    };
    tidevm_abi::Stats {
        zones: stats.zones.map(zone),
        nr_nodes: stats.nr_nodes as u8,
        nodes: core::array::from_fn(node),
        memmap_boot_pages: stats.memmap_boot_pages,
        memmap_altmap_pages: stats.memmap_altmap_pages,
        blocks_online: stats.blocks_online,
        pages_migrated: stats.pages_migrated,
        migrate_failed: stats.migrate_failed,
        pcp_drains: stats.pcp_drains,
        pcp_stranded: stats.pcp_stranded,
        memmaps_written: stats.memmaps_written,
        device_spanned: stats.device.spanned,
        device_pages: stats.device.pages,
        device_refs: stats.device.refs,
        boot: stamps::times(),
    }
}
