//! The virtio-mem driver (virtio 1.3, section 5.15): a loop around the step machine of `virtio_mem::Driver`.
//! Requests go to the device, all other actions to memory management.
//!
//! Mirrors Linux `drivers/virtio/virtio_mem.c`. It runs as a job of the boot CPU, one action per step. It
//! keeps the last failure in terms of memory management, for the report to the VMM: the step machine only
//! knows the failure's kind.

mod range;

use alloc::boxed::Box;
use core::fmt;

use tidevm_abi::{MAX_PHYS_ADDR, Report, Resize, ResizeState, Size};
use tidevm_mm::{MemoryContent, MhpFlags, NodeId, PhysAddr, SECTION_SIZE, SectionNr};
use virtio_drivers::transport::{InterruptStatus, Transport};
use virtio_mem::wire::{self, Config};
use virtio_mem::{Action, ConfigError, Driver, DriverConfig, Idle, IdleReason, Outcome, Response};

use self::range::{PAGEBLOCK_SIZE, Parts, Stopped};
use super::Device;
use super::queue::Requests;
use crate::agent::{pressure, translate, workload};
use crate::boot::cmdline::CommandLine;
use crate::boot::numa;
use crate::console::println;
use crate::cpu::time::Instant;
use crate::job::{Job, Progress};
use crate::mailbox;
use crate::mem::{MM, lending, stamps};

const QUEUE: u16 = 0;
const VERSION_1: u64 = 1 << 32;
/// A device that takes longer to answer is reported.
const PATIENCE_MILLIS: u64 = 10_000;
/// An action on memory blocks that takes longer lets other jobs of this CPU run. Moving pages may take long.
const TURN_MILLIS: u64 = 50;
/// A memmap is this part of the memory that it describes: 64 bytes per page.
const MEMMAP_SHARE: u64 = 64;

/// Why a device cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// The device is not reset in time, or does not agree on features.
    Features,
    /// There is no request queue.
    Queue(virtio_drivers::Error),
    /// The configuration changes with every read.
    Restless,
    /// The driver cannot use the configuration; with address and size of the region.
    Config(ConfigError, u64, u64),
    /// The region ends above the addresses that the guest uses; with address and size of the region.
    OutOfReach(u64, u64),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Features => f.write_str("the device does not agree on features"),
            Self::Queue(error) => write!(f, "no request queue: {error}"),
            Self::Restless => f.write_str("the configuration changes all the time"),
            Self::Config(error, addr, size) => write!(f, "region of {size:#x} bytes at {addr:#x}: {error}"),
            Self::OutOfReach(addr, size) => {
                write!(
                    f,
                    "region of {size:#x} bytes at {addr:#x}: this guest uses addresses below {MAX_PHYS_ADDR:#x}"
                )
            }
        }
    }
}

/// One virtio-mem device's driver.
pub struct MemDriver<T> {
    device: Device<T>,
    requests: Requests<{ wire::REQUEST_SIZE }, { wire::RESPONSE_SIZE }>,
    driver: Driver,
    /// The configuration space as it was read last.
    config: [u8; wire::CONFIG_SIZE],
    region: u64,
    /// Sizes of the parts that the region is divided into.
    geometry: DriverConfig,
    /// The node of the memory that the device plugs.
    node: NodeId,
    /// The memory that the device plugs is zero.
    zeroed: bool,
    /// When to report that the device has not answered.
    patience: Option<Instant>,
    /// When to try again without an event. Set once per pause, and none while the driver is at work.
    retry_at: Option<Instant>,
    /// The last failure.
    stuck: Option<ResizeState>,
    reported: Option<Resize>,
    /// Ticks that this driver has worked since the last configuration notification.
    worked: u64,
    /// [`workload::ended`] at the last step. When a workload ends, the pages that stopped the driver may be
    /// gone.
    workloads_ended: u64,
}

impl<T: Transport> MemDriver<T> {
    /// Binds the device.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn new(mut device: Device<T>, command_line: &CommandLine) -> Result<Box<Self>, Unusable> {
        let wanted = VERSION_1 | 1 << wire::F_UNPLUGGED_INACCESSIBLE | 1 << wire::F_ACPI_PXM;
        let features = device.negotiate(wanted).ok_or(Unusable::Features)?;
        let requests = Requests::new(&mut device.transport, QUEUE).map_err(Unusable::Queue)?;
        device.transport.finish_init();
        let mut bytes = [0; wire::CONFIG_SIZE];
        let (config, generation) =
            read_config(&device, &mut bytes, (0..wire::CONFIG_SIZE).step_by(4)).ok_or(Unusable::Restless)?;
        if config.addr.checked_add(config.region_size).is_none_or(|end| end > MAX_PHYS_ADDR) {
            return Err(Unusable::OutOfReach(config.addr, config.region_size));
        }
        let domain = (features & 1 << wire::F_ACPI_PXM != 0).then_some(config.node_id);
        let geometry = geometry(command_line, &config);
        let driver = Driver::new(geometry, config, generation)
            .map_err(|error| Unusable::Config(error, config.addr, config.region_size))?;
        Ok(Box::new(Self {
            device,
            requests,
            driver,
            config: bytes,
            region: config.addr,
            geometry,
            node: numa::node_of(domain, config.addr),
            zeroed: command_line.mm.content == MemoryContent::Zero,
            patience: None,
            retry_at: None,
            stuck: None,
            reported: None,
            worked: 0,
            workloads_ended: workload::ended(),
        }))
    }

    /// Carries out an action that needs no request to the device.
    fn carry_out(&mut self, action: Action) -> Outcome {
        match action {
            // Each word costs an exit, and the other fields do not change or follow from the requests.
            Action::ReadConfig => read_config(
                &self.device,
                &mut self.config,
                wire::RUN_TIME_OFFSETS.into_iter().flat_map(|field| [field, field + 4]),
            )
            .map_or(Outcome::Failed(IdleReason::DeviceError), |(config, generation)| {
                Outcome::Config(Config { plugged_size: self.driver.plugged_size(), ..config }, generation)
            }),
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
        let flags = MhpFlags { content, memmap_on_memory: self.geometry.memmap_size > 0 };
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
        move || self.device.line.has_fired() || end.has_passed()
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
        };
        let state = match reason {
            None => ResizeState::Reached,
            Some(IdleReason::HostBusy) => ResizeState::HostBusy,
            Some(IdleReason::DeviceError) => ResizeState::DeviceError,
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
        }
        // A pause that has begun goes on: the job loop calls an idle job in each of its passes, and on a busy CPU a
        // pause that began anew each time would never end.
        self.retry_at = self.retry_at.or(retry_at);
        Progress::Idle(self.retry_at)
    }

    /// Passes the response to the request under way to the step machine. `None` when it is not there yet.
    fn poll_response(&mut self) -> Option<()> {
        let bytes = self.requests.poll()?;
        self.patience = None;
        // A response that is too short does not tell whether the device carried the request out.
        let outcome =
            bytes.map_or(Outcome::NoResponse, |bytes| Outcome::Response(Response::from_bytes(&bytes)));
        self.driver.complete(outcome);
        Some(())
    }

    fn wait_for_response(&mut self) -> Progress {
        if self.patience.is_some_and(Instant::has_passed) {
            println!("virtio-mem at {:#x}: no answer for {PATIENCE_MILLIS} ms; still waiting", self.region);
            self.patience = None;
        }
        Progress::Idle(self.patience)
    }
}

impl<T: Transport + Send> Job for MemDriver<T> {
    fn step(&mut self) -> Progress {
        let (began, reported) = (Instant::now(), self.reported);
        let progress = self.advance();
        self.worked += Instant::now().0 - began.0;
        if self.reported != reported {
            stamps::target_reached(self.worked);
        }
        progress
    }
}

impl<T: Transport> MemDriver<T> {
    /// Carries out the next action, or looks at what came of the last one.
    fn advance(&mut self) -> Progress {
        if self.device.interrupts().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
            self.worked = 0;
            self.driver.config_changed();
            self.retry_at = None;
        }
        if self.requests.is_busy() && self.poll_response().is_none() {
            return self.wait_for_response();
        }
        let ended = workload::ended();
        if self.retry_at.is_some_and(Instant::has_passed) || ended != self.workloads_ended {
            self.retry_at = None;
            self.workloads_ended = ended;
            self.driver.retry();
        }
        match self.driver.next() {
            Action::Idle(idle) => self.idle(idle),
            Action::Send(request) => {
                self.requests.send(&mut self.device.transport, request.to_bytes());
                self.patience = Some(Instant::in_millis(PATIENCE_MILLIS));
                Progress::Idle(self.patience)
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

/// Reads the words of the configuration space at offsets `words` into `bytes`. Returns the configuration and its
/// generation, which is that of all words that were read. `None` when the generation changes with every read.
fn read_config(
    device: &Device<impl Transport>,
    bytes: &mut [u8; wire::CONFIG_SIZE],
    words: impl Iterator<Item = usize> + Clone,
) -> Option<(Config, u32)> {
    const TRIES: u32 = 100;
    let transport = &device.transport;
    for _ in 0..TRIES {
        let before = transport.read_config_generation();
        for offset in words.clone() {
            let value: u32 = transport.read_config_space(offset).ok()?;
            bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
        if transport.read_config_generation() == before {
            return Some((Config::from_bytes(bytes), before));
        }
    }
    None
}

/// The parts that the device's region is divided into: as the command line says, as far as that fits the
/// region.
fn geometry(command_line: &CommandLine, config: &Config) -> DriverConfig {
    let memmap_size =
        if command_line.mm.memmap_on_memory { command_line.memory_block.0 / MEMMAP_SHARE } else { 0 };
    let wanted = DriverConfig {
        memory_block_size: command_line.memory_block.0,
        memmap_size,
        min_block_size: PAGEBLOCK_SIZE,
    };
    let fit = wanted.fit(config, SECTION_SIZE);
    if fit != wanted {
        println!(
            "virtio-mem: region of {:#x} bytes at {:#x}: memory blocks of {} MiB do not fit; they have {} MiB, \
             their memmaps lie in {} memory",
            config.region_size,
            config.addr,
            wanted.memory_block_size >> 20,
            fit.memory_block_size >> 20,
            if fit.memmap_size > 0 { "the new" } else { "older" }
        );
    }
    fit
}

/// The kind of a failure, for the step machine.
fn kind_of(state: ResizeState) -> IdleReason {
    match state {
        ResizeState::Unmovable { .. } => IdleReason::Unmovable,
        ResizeState::NoRoom => IdleReason::NoRoom,
        _ => IdleReason::NoMemory,
    }
}
