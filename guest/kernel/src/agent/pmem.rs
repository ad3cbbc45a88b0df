//! Device memory: the ranges that the memory map names, mapped and unmapped on request.
//!
//! Mirrors Linux `drivers/nvdimm/pmem.c`, as far as that is about pages. Mapping is a job on every CPU that
//! takes part. Each job maps the next range that no other job has begun, under the memory hotplug lock, and
//! then initialises pages of all ranges that are begun, a few milliseconds per step, until none is left. When the
//! last job is dropped, the call is answered.
//!
//! Invariant: a range is [`State::Busy`] from the call that maps it to the answer, so two calls never map it.

pub mod pages;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Mutex;
use tidevm_abi::{Answer, Failure, MAX_PMEM, Pmem, PmemFailure, PmemMapped, PmemOp, Size};
use tidevm_mm::{
    DevAltmap, DevPagemap, MEMMAP_PAGES, NodeId, Pfn, PfnRange, PgmapInfo, PgmapNr, SECTION_PAGES,
};

use self::pages::DevicePages;
use crate::agent::translate;
use crate::agent::walk::{self, Task};
use crate::agent::workload::home_cpu;
use crate::cpu;
use crate::cpu::time::Instant;
use crate::job::{self, Job, Progress};
use crate::mailbox::{Reply, Requester};
use crate::mem::MM;

/// How long a CPU initialises pages before it looks at its other jobs, in milliseconds.
const STEP_MILLIS: u64 = 2;

/// A range of device memory in the memory map.
#[derive(Clone, Copy)]
struct Device {
    start: u64,
    end: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unmapped,
    /// Jobs are mapping it.
    Busy,
    Mapped(PgmapNr),
}

static DEVICES: Mutex<[Option<Device>; MAX_PMEM]> = Mutex::new([None; MAX_PMEM]);

/// Carries out `op`, or starts the job that answers `requester`.
pub fn carry_out(op: PmemOp, requester: Requester) -> Result<Option<Answer>, Failure> {
    match op {
        PmemOp::Look { device } => look(device).map(|pmem| Some(Answer::Pmem(pmem))),
        PmemOp::Map { devices, altmap, reserve, cpus } => {
            map(requester, devices, altmap.then_some(reserve), cpus)?;
            Ok(None)
        }
        PmemOp::Unmap { device } => unmap(device).map(|pages| Some(Answer::PmemUnmapped { pages })),
        PmemOp::Hold { handle, device, pages, partial } => {
            let set = DevicePages::register(handle, mapped(device)?)?;
            walk::start(requester, set, Task::take(pages, partial));
            Ok(None)
        }
    }
}

/// Records the ranges that the memory map names.
pub fn find(ranges: &[(u64, u64)]) {
    let mut devices = DEVICES.lock();
    for (slot, &(start, end)) in devices.iter_mut().zip(ranges) {
        *slot = Some(Device { start, end, state: State::Unmapped });
    }
}

impl Device {
    /// Its frames.
    ///
    /// # Errors
    /// It is not made of whole pages, or a frame number does not fit.
    fn frames(&self) -> Result<PfnRange, PmemFailure> {
        let frame = |address: u64| {
            if !address.is_multiple_of(tidevm_mm::PAGE_SIZE) {
                return Err(PmemFailure::Misaligned);
            }
            u32::try_from(address >> tidevm_mm::PAGE_SHIFT).map_err(|_| PmemFailure::OutOfRange)
        };
        let [start, end] = [frame(self.start)?, frame(self.end)?].map(Pfn::new);
        PfnRange::between(start, end).ok_or(PmemFailure::Misaligned)
    }

    fn pgmap(&self) -> Option<PgmapInfo> {
        match self.state {
            State::Mapped(nr) => MM.pgmap(nr),
            State::Unmapped | State::Busy => None,
        }
    }
}

/// Range `index` of the memory map.
fn device(index: u8) -> Result<Device, Failure> {
    let device = DEVICES.lock().get(usize::from(index)).copied().flatten();
    device.ok_or(Failure::Pmem(PmemFailure::NoDevice))
}

/// Describes a range.
///
/// # Errors
/// There is no such range.
pub fn look(index: u8) -> Result<Pmem, Failure> {
    let device = device(index)?;
    let mapped = device.pgmap().map(|info| translate::pmem_use(&info));
    Ok(Pmem { start: device.start, size: Size(device.end - device.start), mapped })
}

fn set_state(device: usize, state: State) {
    if let Some(device) = &mut DEVICES.lock()[device] {
        device.state = state;
    }
}

/// The pgmap of a range.
///
/// # Errors
/// There is no such range, or it is not mapped.
fn mapped(index: u8) -> Result<PgmapNr, Failure> {
    match device(index)?.state {
        State::Mapped(nr) => Ok(nr),
        State::Unmapped | State::Busy => Err(Failure::Pmem(PmemFailure::NotMapped)),
    }
}

/// The part that the jobs of one call share. It is dropped with the last job.
struct Mapping {
    began: Instant,
    /// By range: how to map it, if it is wanted.
    wanted: [Option<DevPagemap>; MAX_PMEM],
    /// The first range that no job has looked at.
    next: AtomicU32,
    /// By range: its pgmap, once a job has begun it.
    begun: Mutex<[Option<PgmapNr>; MAX_PMEM]>,
    failure: Mutex<Option<PmemFailure>>,
    reply: Reply,
}

/// Starts to map the ranges whose bits are set in `devices`, on up to `cpus` CPUs. With `altmap`, each range
/// holds its own memmap, behind that many reserved pages.
///
/// # Errors
/// A range does not exist, or is mapped already; nothing is done then.
fn map(requester: Requester, devices: u8, altmap: Option<u32>, cpus: u32) -> Result<(), Failure> {
    let wanted = claim(devices, altmap).map_err(Failure::Pmem)?;
    let jobs = (cpus.max(1) as usize).min(cpu::online());
    let mapping = Arc::new(Mapping {
        began: Instant::now(),
        wanted,
        next: AtomicU32::new(0),
        begun: Mutex::new([None; MAX_PMEM]),
        failure: Mutex::new(None),
        reply: Reply::to(requester),
    });
    for nth in 0..jobs {
        job::spawn(home_cpu(nth), Box::new(MapJob(mapping.clone())));
    }
    Ok(())
}

/// Makes all ranges of `devices` busy, or none, and returns how to map them.
fn claim(devices: u8, altmap: Option<u32>) -> Result<[Option<DevPagemap>; MAX_PMEM], PmemFailure> {
    let mut table = DEVICES.lock();
    let mut wanted = [None; MAX_PMEM];
    for index in (0..MAX_PMEM).filter(|index| devices >> index & 1 != 0) {
        let device = table[index].ok_or(PmemFailure::NoDevice)?;
        if device.state != State::Unmapped {
            return Err(PmemFailure::Mapped);
        }
        let range = device.frames()?;
        let free = range.pages() / SECTION_PAGES * MEMMAP_PAGES;
        let altmap = altmap.map(|reserve| DevAltmap { reserve, free });
        let mut map = DevPagemap::new(range, NodeId::FIRST);
        map.altmap = altmap;
        wanted[index] = Some(map);
    }
    for (device, _) in table.iter_mut().flatten().zip(&wanted).filter(|(_, wanted)| wanted.is_some()) {
        device.state = State::Busy;
    }
    Ok(wanted)
}

/// One CPU's part in a mapping.
struct MapJob(Arc<Mapping>);

impl Job for MapJob {
    fn step(&mut self) -> Progress {
        let mapping = &self.0;
        if mapping.begin_next() {
            return Progress::Again;
        }
        let until = Instant::in_millis(STEP_MILLIS);
        let begun = *mapping.begun.lock();
        let mut did_some = true;
        while did_some && !until.has_passed() {
            did_some = false;
            for nr in begun.into_iter().flatten() {
                did_some |= MM.memremap_init(nr) == Ok(true);
            }
        }
        if did_some { Progress::Again } else { Progress::Done }
    }
}

impl Mapping {
    /// Maps the next range that no job has begun; `false` when there is none.
    fn begin_next(&self) -> bool {
        let index = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        let Some(wanted) = self.wanted.get(index) else { return false };
        let Some(map) = wanted else { return true };
        let started = MM.hotplug().memremap_start(*map);
        match started {
            Ok(nr) => self.begun.lock()[index] = Some(nr),
            Err(error) => {
                self.failure.lock().get_or_insert(translate::not_mapped(error));
            }
        }
        true
    }
}

impl Drop for Mapping {
    /// Chooses the answer, once all pages of all ranges are initialised. If one range could not be mapped, the
    /// others are unmapped.
    fn drop(&mut self) {
        let failure = *self.failure.lock();
        let begun = *self.begun.lock();
        let mut sum = PmemMapped {
            pages: 0,
            locked_pages: 0,
            locked_ns: 0,
            total_ns: Instant::now().nanos() - self.began.nanos(),
            cpus: 0,
        };
        let mut cpus = 0;
        for index in (0..MAX_PMEM).filter(|&index| self.wanted[index].is_some()) {
            let Some(nr) = begun[index].filter(|_| failure.is_none()) else {
                if let Some(nr) = begun[index] {
                    MM.hotplug().memunmap_pages(nr).expect("a range that is still busy has no user");
                }
                set_state(index, State::Unmapped);
                continue;
            };
            let info = MM.pgmap(nr).expect("it was just mapped");
            assert!(info.live, "pgmap {nr:?} is not initialised by the jobs that began it: {info:?}");
            sum.pages += u64::from(info.pages.pages());
            sum.locked_pages += info.locked_pages;
            sum.locked_ns += info.locked_ns;
            cpus |= info.cpus;
            set_state(index, State::Mapped(nr));
        }
        sum.cpus = cpus.count_ones();
        self.reply.set(match failure {
            None => Answer::PmemMapped(sum),
            Some(why) => Answer::Failed(Failure::Pmem(why)),
        });
    }
}

/// Unmaps a range; returns the number of its pages.
///
/// # Errors
/// There is no such range, or it is not mapped, or in use.
fn unmap(index: u8) -> Result<u64, Failure> {
    let nr = mapped(index)?;
    let unmapped = MM.hotplug().memunmap_pages(nr);
    let pages = unmapped.map_err(|error| Failure::Pmem(translate::not_unmapped(error)))?;
    set_state(usize::from(index), State::Unmapped);
    Ok(pages.into())
}
