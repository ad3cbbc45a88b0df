//! The process that speaks with the VMM: takes calls, answers those about the kernel itself, and hands the others to workloads.
//!
//! Mirrors `guest/kernel/src/agent.rs` and `control.rs`. It sleeps until a call comes or a workload says something.
//!
//! Invariant: each call is answered once, also that of a workload whose process the kernel has ended.

use std::fs;
use std::io;
use std::thread::available_parallelism;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, reboot};
use tidevm_abi::kernel::RECORDS_VERSION;
use tidevm_abi::zoneinfo::{Zone, parse};
use tidevm_abi::{Answer, Call, Failure, Handle, HogKind, Meminfo, Op, Report, Size};

use crate::files::{self, Files};
use crate::port::Port;
use crate::workload::{Said, Workload};
use crate::zoneinfo;
use crate::{blocks, check, room, stats};

/// The process that the kernel never ends when memory is short (proc(5), `oom_score_adj`).
const NO_VICTIM: &str = "-1000";
/// Descriptors of a process: a workload has one for each MiB that it pins.
const DESCRIPTORS: u64 = 1 << 20;
/// Most workloads at a time, as in tidevm's own guest.
const MAX_WORKLOADS: usize = 64;
/// Most threads of a churn, as there.
const MAX_THREADS: u32 = 64;
/// How often files of the kernel are read again that changed while they were read.
const LOOKS: u32 = 20;
/// The virtio device type of virtio-mem, as sysfs writes it (virtio 1.3, section 5).
const MEM_DEVICE: &str = "0x0018";

/// Serves the VMM.
///
/// # Errors
/// The port or a file system of the kernel is missing, or the port is gone.
pub fn run() -> io::Result<()> {
    let files = Files::open()?;
    fs::write("self/oom_score_adj", NO_VICTIM)?;
    raise_descriptors();
    let port = Port::open(&files)?;
    let mut agent = Agent { files, port, workloads: Vec::new() };
    agent.port.send(&Report::Speaks { version: RECORDS_VERSION })?;
    agent.port.send(&Report::Ready {
        cpus: available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        mem_devices: agent.mem_devices(),
    })?;
    loop {
        agent.turn()?;
    }
}

/// Raises the limit as far as the kernel allows it.
fn raise_descriptors() {
    let most = files::proc("sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let most = DESCRIPTORS.min(most.unwrap_or(DESCRIPTORS));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }) {
        files::log(&format!("the limit of descriptors stays as it is: {error}"));
    }
}

struct Agent {
    files: Files,
    port: Port,
    workloads: Vec<Workload>,
}

impl Agent {
    /// Waits until something can be read, and reads it.
    fn turn(&mut self) -> io::Result<()> {
        let mut sources = vec![PollFd::new(&self.port, PollFlags::IN)];
        sources.extend(self.workloads.iter().map(|workload| PollFd::new(workload, PollFlags::IN)));
        match poll(&mut sources, None) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            result => result?,
        };
        let ready: Vec<bool> = sources.iter().map(|source| !source.revents().is_empty()).collect();
        drop(sources);
        // From the last one on, because a workload that has ended goes.
        for index in (0..self.workloads.len()).rev().filter(|index| ready[index + 1]) {
            match self.workloads[index].listen() {
                Said::Report(record) => self.port.forward(&record)?,
                Said::Ended(open) => {
                    drop(self.workloads.remove(index));
                    for id in open {
                        self.answer(id, Answer::Failed(Failure::Killed))?;
                    }
                }
            }
        }
        if ready[0] {
            match self.port.receive()? {
                Ok(call) => self.carry_out(&call)?,
                // No call has id 0; the VMM counts answers to it as bad records.
                Err(_) => self.answer(0, Answer::Failed(Failure::BadRecord))?,
            }
        }
        Ok(())
    }

    fn answer(&mut self, id: u32, answer: Answer) -> io::Result<()> {
        self.port.send(&Report::Done { id, answer })
    }

    /// Carries out a call, or has a workload do it, which answers.
    fn carry_out(&mut self, call: &Call) -> io::Result<()> {
        match self.begin(call) {
            Ok(Some(answer)) => self.answer(call.id, answer),
            Ok(None) => Ok(()),
            Err(failure) => self.answer(call.id, Answer::Failed(failure)),
        }
    }

    fn begin(&mut self, call: &Call) -> Result<Option<Answer>, Failure> {
        let told = |result: io::Result<Answer>| result.map(Some).map_err(|error| untold(&error));
        match call.op {
            Op::Stats => told(self.stats()),
            Op::Meminfo => told(meminfo()),
            Op::Blocks { from } => told(blocks::read(&self.files, from).map(|read| blocks::answer(&read))),
            Op::Check => self.check().map(Some),
            Op::Hog { handle, pages, partial, kind, scattered: false, full } => {
                let fits = fitting(kind, pages, partial)?;
                let op = Op::Hog { handle, pages: fits, partial, kind, scattered: false, full };
                self.start(handle, &Call { op, ..*call })
            }
            Op::Churn { handle, threads, millis } => {
                let op = Op::Churn { handle, threads: threads.clamp(1, MAX_THREADS), millis };
                self.start(handle, &Call { op, ..*call })
            }
            Op::Verify { handle } | Op::Release { handle } | Op::Corrupt { handle, .. } => {
                let workload = self.workloads.iter_mut().find(|workload| workload.handle == handle);
                workload.ok_or(Failure::UnknownHandle)?.call(call).map(|()| None)
            }
            Op::PowerOff => {
                power_off();
                Ok(None)
            }
            // A script with such a step is refused before the guest boots (`tidevm_abi::Command::refused_by`).
            _ => Err(Failure::Unsupported),
        }
    }

    fn start(&mut self, handle: Handle, call: &Call) -> Result<Option<Answer>, Failure> {
        if self.workloads.iter().any(|workload| workload.handle == handle) {
            return Err(Failure::HandleInUse);
        }
        if self.workloads.len() == MAX_WORKLOADS {
            return Err(Failure::NoMemory);
        }
        let workload = Workload::start(handle, call).map_err(|error| {
            files::log(&format!("no process for a workload: {error}"));
            Failure::NoMemory
        })?;
        self.workloads.push(workload);
        Ok(None)
    }

    fn stats(&self) -> io::Result<Answer> {
        let blocks = blocks::read(&self.files, 0)?;
        stats::stats(&zones()?, &blocks, &files::proc("vmstat")?).map(Answer::Stats)
    }

    /// Checks one picture after the other until two that follow each other are the same: files that are read while memory
    /// comes or goes do not belong together.
    fn check(&self) -> Result<Answer, Failure> {
        let look = || -> io::Result<_> {
            let total =
                zoneinfo::value(&files::proc("meminfo")?, "MemTotal:")? * 1024 / tidevm_abi::PAGE_SIZE;
            let sizes = zones()?.into_iter().map(|zone| Zone { free: 0, high: 0, pcp: 0, ..zone });
            Ok((sizes.collect::<Vec<_>>(), blocks::read(&self.files, 0)?, total))
        };
        let look = || look().map_err(|error| untold(&error));
        let mut before = look()?;
        for _ in 0..LOOKS {
            let now = look()?;
            if now == before {
                break;
            }
            before = now;
        }
        let (zones, blocks, total) = before;
        check::check(&zones, &blocks, total)
    }

    /// The virtio-mem devices that the kernel has found, with or without a driver.
    fn mem_devices(&self) -> u32 {
        let Ok(devices) = fs::read_dir(self.files.sys("bus/virtio/devices")) else { return 0 };
        let is_mem = |path: std::path::PathBuf| {
            fs::read_to_string(path.join("device")).is_ok_and(|kind| kind.trim() == MEM_DEVICE)
        };
        devices.flatten().filter(|entry| is_mem(entry.path())).count() as u32
    }
}

/// A file of the kernel does not say what it should.
fn untold(error: &io::Error) -> Failure {
    files::log(&format!("no answer: {error}"));
    Failure::Unsupported
}

fn zones() -> io::Result<Vec<Zone>> {
    files::proc("zoneinfo").map(|text| parse(text.lines()))
}

fn meminfo() -> io::Result<Answer> {
    let text = files::proc("meminfo")?;
    let size = |key| zoneinfo::value(&text, key).map(|kib| Size(kib * 1024));
    let (total, free, available) = (size("MemTotal:")?, size("MemFree:")?, size("MemAvailable:")?);
    Ok(Answer::Meminfo(Meminfo { total, free, available }))
}

/// The pages that a hog of `wanted` can have: all of them, unless it is `partial`.
fn fitting(kind: HogKind, wanted: u64, partial: bool) -> Result<u64, Failure> {
    let look = || room::most(kind, &zones()?, &files::proc("meminfo")?);
    match look().map_err(|error| untold(&error))? {
        room if wanted <= room => Ok(wanted),
        0 if partial => Err(Failure::NoMemory),
        room if partial => Ok(room),
        room => Err(Failure::DoesNotFit { pages: room }),
    }
}

/// Ends the guest, as `poweroff -f` does.
fn power_off() {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        files::log(&format!("the kernel does not power off: {error}"));
    }
}
