//! The virtio-mem driver (virtio 1.3, section 5.15): a loop around the step machine of `virtio_mem::Driver`.
//! Requests go to the device, all other actions to memory management.
//!
//! Mirrors Linux `drivers/virtio/virtio_mem.c`. It runs as a job of the boot CPU, one action per step. It
//! keeps the last failure in terms of memory management, for the report to the VMM: the step machine only
//! knows the failure's kind.
//!
//! A device that does not answer keeps only its own driver waiting. See `link`.

pub mod counts;
pub mod faults;
mod link;
mod range;
pub mod rebind;
mod start;

use alloc::boxed::Box;

use tidevm_abi::{Answer, Failure, Report, Resize, ResizeState, Size};
use tidevm_mm::{MemoryContent, MhpFlags, NodeId, PhysAddr, SECTION_SIZE, SectionNr};
use virtio_drivers::transport::{InterruptStatus, Transport};
use virtio_mem::wire;
use virtio_mem::{Action, Driver, DriverConfig, Idle, IdleReason, Outcome};

use self::faults::DriverFault;
use self::link::Link;
use self::range::{Parts, Stopped};
pub use self::start::Unusable;
use self::start::{start, wanted};
use super::Device;
use crate::agent::{pressure, translate, workload};
use crate::boot::cmdline::CommandLine;
use crate::boot::numa;
use crate::console::println;
use crate::cpu::time::Instant;
use crate::job::{Job, Progress};
use crate::mailbox::{self, Requester};
use crate::mem::{MM, lending, stamps};

/// An action on memory blocks that takes longer lets other jobs of this CPU run. Moving pages may take long.
const TURN_MILLIS: u64 = 50;

/// One virtio-mem device's driver.
pub struct MemDriver<T> {
    link: Link<T>,
    /// Its number, in the order in which devices were bound.
    index: usize,
    driver: Driver,
    /// The configuration space as it was read last.
    config: [u8; wire::CONFIG_SIZE],
    region: u64,
    /// Sizes of the parts that a region is divided into as the command line says.
    wanted: DriverConfig,
    /// Sizes of the parts that this region is divided into.
    geometry: DriverConfig,
    /// The node of the memory that the device plugs.
    node: NodeId,
    /// The memory that the device plugs is zero.
    zeroed: bool,
    /// When to try again without an event. Set once per pause, and none while the driver is at work.
    retry_at: Option<Instant>,
    /// The last failure.
    stuck: Option<ResizeState>,
    reported: Option<Resize>,
    /// The call for another driver, while this one gives up its memory.
    rebinding: Option<Requester>,
    /// Mismatches and errors of the device that were counted.
    counted: (u64, u64),
    /// Ticks that this driver has worked in earlier steps since the last configuration notification.
    worked: u64,
    /// When the present step began.
    began: Instant,
    /// [`workload::ended`] at the last step. When a workload ends, the pages that stopped the driver may be
    /// gone.
    workloads_ended: u64,
}

impl<T: Transport> MemDriver<T> {
    /// Binds the device, the `index`-th one.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn new(device: Device<T>, index: usize, command_line: &CommandLine) -> Result<Box<Self>, Unusable> {
        let link = Link::new(device).map_err(Unusable::Link)?;
        let mut config = [0; wire::CONFIG_SIZE];
        let wanted = wanted(command_line);
        let (driver, geometry) = start(&link, &mut config, wanted)?;
        let fixed = wire::Config::from_bytes(&config);
        let domain = link.has_node().then_some(fixed.node_id);
        rebind::announce(index);
        Ok(Box::new(Self {
            link,
            index,
            driver,
            config,
            region: fixed.addr,
            wanted,
            geometry,
            node: numa::node_of(domain, fixed.addr),
            zeroed: command_line.mm.content == MemoryContent::Zero,
            retry_at: None,
            stuck: None,
            reported: None,
            rebinding: None,
            counted: (0, 0),
            worked: 0,
            began: Instant::now(),
            workloads_ended: workload::ended(),
        }))
    }

    /// Carries out an action that needs no request to the device.
    fn carry_out(&mut self, action: Action) -> Outcome {
        match action {
            // Each word costs an exit. The other fields do not change, and no size is larger than the region.
            Action::ReadConfig => {
                let is_large = wire::Config::from_bytes(&self.config).region_size > u32::MAX.into();
                let words = |field| [Some(field), is_large.then_some(field + 4)].into_iter().flatten();
                let words = wire::RUN_TIME_OFFSETS.into_iter().flat_map(words);
                let read = self.link.read_config(&mut self.config, words);
                read.map_or(Outcome::Failed(IdleReason::DeviceError), |(config, generation)| {
                    Outcome::Config(config, generation)
                })
            }
            Action::AddMemoryBlocks { addr, size, fresh } => self.add(addr, size, fresh),
            Action::OnlineDeviceBlocks { addr, size } => {
                let blocks = Parts::new(addr % SECTION_SIZE, size);
                let online = MM.hotplug().online_pageblocks(SectionNr::of(PhysAddr::new(addr)), blocks);
                self.came(online.map_err(translate::not_online))
            }
            Action::OfflineDeviceBlocks { addr, size } => {
                let blocks = Parts::new(addr % SECTION_SIZE, size);
                let offline = MM.hotplug().offline_pageblocks(SectionNr::of(PhysAddr::new(addr)), blocks);
                self.note(offline.map_err(translate::not_offline))
            }
            Action::RemoveMemoryBlocks { addr, size } => self.remove(addr, size),
            Action::Send(_) | Action::Idle(_) => unreachable!("handled by the step"),
        }
    }

    fn add(&mut self, addr: u64, size: u64, fresh: bool) -> Outcome {
        let content = if fresh && self.zeroed { MemoryContent::Zero } else { MemoryContent::Unknown };
        let flags = MhpFlags::new(content).with_memmap_on_memory(self.geometry.memmap_size > 0);
        let memory_block = self.geometry.memory_block_size;
        let added = range::add(self.node, (addr, size), memory_block, flags, self.turn());
        if added.as_ref().map_or_else(|stopped| stopped.done > 0, |()| true) {
            pressure::memory_came();
        }
        self.end(added)
    }

    fn remove(&mut self, addr: u64, size: u64) -> Outcome {
        let removed = range::remove((addr, size), self.geometry.memory_block_size, self.turn());
        self.end(removed)
    }

    /// Says when an action on memory blocks is to stop: other jobs have waited for long, or there is a new target.
    fn turn(&self) -> impl Fn() -> bool {
        let end = Instant::in_millis(TURN_MILLIS);
        move || self.link.device.source.has_fired() || end.has_passed()
    }

    /// Notes how far an action on memory blocks came, and why it did not come further.
    fn end(&mut self, result: Result<(), Stopped>) -> Outcome {
        let Err(Stopped { done, failed }) = result else { return Outcome::Done };
        self.stuck = failed.or(self.stuck);
        Outcome::Part { done, failed: failed.map(kind_of) }
    }

    /// Notes that memory came, or why it did not.
    fn came(&mut self, result: Result<(), ResizeState>) -> Outcome {
        if result.is_ok() {
            pressure::memory_came();
        }
        self.note(result)
    }

    fn note(&mut self, result: Result<(), ResizeState>) -> Outcome {
        match result {
            Ok(()) => Outcome::Done,
            Err(state) => {
                self.stuck = Some(state);
                Outcome::Failed(kind_of(state))
            }
        }
    }

    fn idle(&mut self, idle: Idle) -> Progress {
        let (reason, retry_at) = match idle {
            Idle::Reached => (None, None),
            Idle::Retry { after_ms, reason } => (Some(reason), Some(Instant::in_millis(u64::from(after_ms)))),
            Idle::Blocked(reason) => (Some(reason), None),
            Idle::Detached => unreachable!("another driver is bound then"),
        };
        let state = match reason {
            None => ResizeState::Reached,
            Some(IdleReason::HostBusy) => ResizeState::HostBusy,
            Some(IdleReason::DeviceError) => ResizeState::DeviceError,
            Some(IdleReason::Granularity) => {
                ResizeState::Granularity { unit: Size(self.geometry.min_block_size) }
            }
            // The last failure has details that its kind does not have, such as page numbers.
            Some(kind) => self.stuck.filter(|&stuck| kind_of(stuck) == kind).unwrap_or(match kind {
                IdleReason::NoRoom => ResizeState::NoRoom,
                IdleReason::Unmovable => ResizeState::Unmovable { pages: 0, first: [None; 4] },
                _ => ResizeState::NoMemory,
            }),
        };
        let resize = Resize {
            region: self.region,
            plugged: Size(self.driver.plugged_size()),
            requested: Size(self.driver.requested_size()),
            generation: self.driver.generation(),
            state,
        };
        if self.reported != Some(resize) {
            self.reported = Some(resize);
            mailbox::report(Report::Resize(resize));
            stamps::target_reached(self.worked + (Instant::now().0 - self.began.0));
        }
        // A pause that has begun goes on: the job loop calls an idle job in each of its passes, and on a busy CPU a
        // pause that began anew each time would never end.
        self.retry_at = self.retry_at.or(retry_at);
        Progress::Idle(self.retry_at)
    }

    /// Passes the responses that are there to the step machine. Returns whether all requests came back.
    fn take_responses(&mut self) -> bool {
        while let Some((request, outcome)) = self.link.poll() {
            let is_forgotten = faults::acts(DriverFault::Answer);
            let outcome = if is_forgotten { Outcome::Failed(IdleReason::HostBusy) } else { outcome };
            self.driver.complete_request(request, outcome);
        }
        self.link.under_way() == 0
    }

    /// The requests are lost: the device was reset, or is to be.
    fn lose_requests(&mut self, lost: usize) {
        (0..lost).for_each(|_| self.driver.complete(Outcome::NoResponse));
        self.driver.config_changed();
    }

    /// Waits for responses, and looks after a device that does not answer.
    fn wait_for_responses(&mut self) -> Progress {
        let (lost, was_down) = (self.link.under_way(), self.link.is_down());
        let is_reset = self.link.look_after(self.region);
        if is_reset || self.link.is_down() && !was_down {
            self.lose_requests(lost);
        }
        if is_reset { Progress::Again } else { Progress::Idle(self.link.look_at()) }
    }

    /// The driver has given up its memory for another one, or could not.
    fn rebind(&mut self, requester: Requester, idle: Idle) -> Progress {
        let answer = if idle == Idle::Detached {
            self.bind_again().map_or_else(
                |reason| {
                    println!("virtio-mem at {:#x}: not bound again: {reason}", self.region);
                    self.driver.attach();
                    Answer::Failed(Failure::NoDriver)
                },
                |()| Answer::Done,
            )
        } else {
            self.driver.attach();
            let pages = if let Some(ResizeState::Unmovable { pages, .. }) = self.stuck { pages } else { 0 };
            Answer::Failed(Failure::Stuck { addr: self.region, pages })
        };
        requester.answer(answer);
        Progress::Again
    }

    /// Resets the device, and starts with what it finds.
    fn bind_again(&mut self) -> Result<(), Unusable> {
        self.link.start().map_err(Unusable::Link)?;
        (self.driver, self.geometry) = start(&self.link, &mut self.config, self.wanted)?;
        (self.reported, self.stuck, self.counted) = (None, None, (0, 0));
        Ok(())
    }

    /// Adds to the counts of all drivers what this one has counted.
    fn count(&mut self) {
        let (mismatches, errors) = (self.driver.mismatches(), self.driver.device_errors());
        if (mismatches, errors) == self.counted {
            return;
        }
        if mismatches > self.counted.0 {
            println!(
                "virtio-mem at {:#x}: the plugged size is not what the driver believes; it asks for the state",
                self.region
            );
        }
        counts::MISMATCHES.add(mismatches - self.counted.0);
        counts::ERRORS.add(errors - self.counted.1);
        self.counted = (mismatches, errors);
    }
}

impl<T: Transport + Send> Job for MemDriver<T> {
    fn step(&mut self) -> Progress {
        self.began = Instant::now();
        let progress = self.advance();
        self.count();
        self.worked += Instant::now().0 - self.began.0;
        progress
    }
}

impl<T: Transport> MemDriver<T> {
    /// Carries out the next action, or looks at what came of the last one.
    fn advance(&mut self) -> Progress {
        if self.link.device.interrupts().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
            self.worked = 0;
            self.driver.config_changed();
            self.retry_at = None;
            let lost = self.link.under_way();
            if lost > 0 && self.link.needs_reset() {
                self.link.reset(self.region);
                self.lose_requests(lost);
            }
        }
        if self.link.is_down() || !self.take_responses() {
            self.link.send(|| self.driver.next_request());
            return self.wait_for_responses();
        }
        if let Some(requester) = rebind::take(self.index) {
            self.rebinding = Some(requester);
            self.retry_at = None;
            self.driver.detach();
        }
        let ended = workload::ended();
        if self.retry_at.is_some_and(Instant::has_passed) || ended != self.workloads_ended {
            self.retry_at = None;
            self.workloads_ended = ended;
            self.driver.retry();
        }
        match self.driver.next() {
            Action::Idle(idle) => match self.rebinding.take() {
                Some(requester) => self.rebind(requester, idle),
                None => self.idle(idle),
            },
            Action::Send(request) => {
                let mut first = Some(request);
                self.link.send(|| first.take().or_else(|| self.driver.next_request()));
                Progress::Idle(self.link.look_at())
            }
            Action::OfflineDeviceBlocks { .. } | Action::RemoveMemoryBlocks { .. } if !lending::hold() => {
                // Memory that is lent to the host cannot go offline, and comes back soon.
                Progress::Idle(Some(lending::look_again_at()))
            }
            action => {
                let outcome = self.carry_out(action);
                self.driver.complete(outcome);
                Progress::Again
            }
        }
    }
}

/// The kind of a failure, for the step machine.
fn kind_of(state: ResizeState) -> IdleReason {
    match state {
        ResizeState::Unmovable { .. } => IdleReason::Unmovable,
        ResizeState::NoRoom => IdleReason::NoRoom,
        _ => IdleReason::NoMemory,
    }
}
