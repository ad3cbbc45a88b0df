//! The agent carries out calls, the VMM's and those typed at the console: short ones at once, the rest as
//! jobs that answer when they end.

pub mod blocks;
mod churn;
mod pages;
mod pattern;
pub mod pmem;
pub mod pressure;
mod probe;
mod race;
pub mod translate;
mod walk;
pub mod workload;

use alloc::sync::Arc;

use tidevm_abi::{Answer, Failure, Handle, HogKind, Op};
use tidevm_mm::Checked;

use self::pages::SystemPages;
use self::pmem::pages::DevicePages;
use self::walk::{PageSet, Task};
use self::workload::Workload;
use crate::cpu::power;
use crate::mailbox::Requester;
use crate::mem::{MM, mappings, platform, stacks, stamps};
use crate::procfs;
use crate::virtio::mem::{faults, rebind};

/// Most threads of one churn.
const MAX_CHURN_THREADS: u32 = 64;

/// Carries out `op`, or starts the job that does; either answers `requester`.
pub fn carry_out(op: Op, requester: Requester) {
    match begin(op, requester) {
        Ok(Some(answer)) => requester.answer(answer),
        Ok(None) => {}
        Err(failure) => requester.answer(Answer::Failed(failure)),
    }
}

/// Returns the answer, or `None` when a job that was started answers later.
fn begin(op: Op, requester: Requester) -> Result<Option<Answer>, Failure> {
    let job_answers = |()| None;
    match op {
        Op::Stats => Ok(Some(Answer::Stats(translate::stats(&MM.stats(), stamps::times())))),
        Op::Check => Ok(Some(check())),
        Op::Hog { handle, pages, partial, kind, scattered, full } => {
            let (workload, wanted) = make_workload(handle, kind, full, pages, partial)?;
            let set = SystemPages::to_take(workload, wanted, scattered);
            walk::start(requester, set, Task::take(wanted.into(), partial));
            Ok(None)
        }
        Op::Verify { handle } => walk_pages(requester, handle, Task::VERIFY).map(job_answers),
        Op::Release { handle } => walk_pages(requester, handle, Task::RELEASE).map(job_answers),
        Op::Churn { handle, threads, millis } => {
            let threads = threads.clamp(1, MAX_CHURN_THREADS);
            let (workload, _) = make_workload(handle, HogKind::Movable, false, churn::slots(threads), true)?;
            churn::start(requester, workload, threads, millis);
            Ok(None)
        }
        Op::Race { cycles, held } => race::start(requester, cycles, held).map(job_answers),
        Op::Corrupt { handle, page, part } => {
            walk_pages(requester, handle, Task::corrupt(page, part)).map(job_answers)
        }
        Op::Probe(wait) => probe::start(requester, wait).map(job_answers),
        Op::Inject { step, after } => {
            match translate::fault_step(step) {
                Ok(step) => platform::inject(step, after),
                Err(step) => faults::inject(step, after),
            }
            Ok(Some(Answer::Done))
        }
        Op::Blocks { from } => Ok(Some(blocks::blocks(from))),
        Op::Readd { addr, size } => blocks::readd(requester, addr, size).map(job_answers),
        Op::Rebind { device } => rebind::ask(device, requester).map(job_answers),
        Op::Pmem(op) => pmem::carry_out(op, requester),
        Op::Meminfo => Ok(Some(Answer::Meminfo(procfs::memory()))),
        Op::Watch(watch) => Ok(Some(Answer::Pressure(pressure::watch(watch)))),
        Op::PowerOff => power::off(),
    }
}

/// Checks the stacks, the page tables and the memory management.
fn check() -> Answer {
    stacks::check();
    mappings::check();
    let Checked { pages, deferred, .. } = MM.check();
    Answer::Checked { pages, deferred }
}

/// Starts `task` on the pages of `handle`, in system or device memory.
fn walk_pages(requester: Requester, handle: Handle, task: Task) -> Result<(), Failure> {
    if let Some(set) = DevicePages::find(handle) {
        start_walk(requester, set, task)
    } else {
        let workload = workload::find(handle).ok_or(Failure::UnknownHandle)?;
        start_walk(requester, SystemPages::of(workload), task)
    }
}

/// Starts `task` on the pages of `set`, unless it frees them while another call takes or frees them.
fn start_walk(requester: Requester, set: impl PageSet + 'static, task: Task) -> Result<(), Failure> {
    if matches!(task, Task::Release { .. }) && !set.begin_change() {
        return Err(Failure::WorkloadBusy);
    }
    walk::start(requester, set, task);
    Ok(())
}

/// Makes a workload with room for `pages` pages, or, if it is `partial`, for all the memory that there is; returns it
/// and for how many.
fn make_workload(
    handle: Handle,
    kind: HogKind,
    full: bool,
    pages: u64,
    partial: bool,
) -> Result<(Arc<Workload>, u32), Failure> {
    // More pages than are managed, or can be later, cannot be taken, so the table needs no room for them.
    let managed: u64 = MM.stats().zones.iter().map(|zone| zone.managed).sum();
    let room = managed.max(pressure::most_pages());
    if pages > room && !partial {
        return Err(Failure::DoesNotFit { pages: room });
    }
    let pages = pages.min(room);
    // A handle has one meaning. `DevicePages::register` makes the same check for the other side.
    if DevicePages::find(handle).is_some() {
        return Err(Failure::HandleInUse);
    }
    let workload = Workload::new(handle, kind, full, pages)?;
    Ok((workload, pages as u32))
}
