//! The virtio-mem driver: a loop around the step machine of `virtio_mem::Driver`. Requests go to
//! the device, everything else to memory management.
//!
//! It runs as a job of the boot CPU, one action a step. What stopped it last is kept here, in
//! terms of memory management, for the report to the VMM: the step machine knows only of which
//! kind it was.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use tidevm_abi::{self as abi, MAX_PHYS_ADDR, Report, Resize, ResizeState};
use tidevm_mm::{
    Holder, MemoryContent, MhpFlags, NodeId, OfflineError, PageblockSet, PhysAddr, SECTION_SIZE, SectionNr,
    ZoneType,
};
use virtio_drivers::transport::{InterruptStatus, Transport};
use virtio_mem::wire::{self, Config};
use virtio_mem::{Action, ConfigError, Driver, DriverConfig, Outcome, Response, Rest, Why};

use super::Device;
use super::queue::Requests;
use crate::cmdline::Options;
use crate::console::println;
use crate::control::report;
use crate::job::{Job, Step};
use crate::time::Instant;
use crate::{MM, numa, workload};

const QUEUE: u16 = 0;
const VERSION_1: u64 = 1 << 32;
/// A device that takes longer is reported.
const PATIENCE_MILLIS: u64 = 10_000;
const SUB_SECTION: u64 = SECTION_SIZE / 64;
/// Most sections of a memory block.
const MAX_SECTIONS: usize = (abi::MAX_MEMORY_BLOCK_SIZE / SECTION_SIZE) as usize;
/// A memmap is this part of what it describes: 64 bytes a page.
const MEMMAP_SHARE: u64 = 64;

/// Ticks of the time-stamp counter that the last memory block took, from when the device had plugged it
/// to when its pages could be allocated, or it was found that they could not.
static LAST_ADD: AtomicU64 = AtomicU64::new(0);

/// What it took to add the last memory block, in ticks. Where instructions are the clock (QEMU's `-icount
/// shift=0`), they are instructions.
pub fn last_add() -> u64 {
    LAST_ADD.load(Ordering::Relaxed)
}

/// Why a device cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// It is not reset, or does not agree on features.
    Features,
    /// There is no request queue.
    Queue(virtio_drivers::Error),
    /// Its configuration never holds still.
    Restless,
    /// Its configuration is none for this driver; with address and size of the region.
    Config(ConfigError, u64, u64),
    /// Its region ends beyond the addresses that the guest uses; with address and size of the region.
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
    region: u64,
    /// How the region is divided.
    geometry: DriverConfig,
    /// What the device plugs is on it.
    node: NodeId,
    /// What the device plugs is zero.
    zeroed: bool,
    /// When to report that the device has not answered.
    patience: Option<Instant>,
    /// When to try again by itself.
    retry_at: Option<Instant>,
    /// What the last failed step ran into.
    stuck: Option<ResizeState>,
    reported: Option<Resize>,
    /// [`workload::ended`] when the driver last looked: when one ends, what was in the way may be
    /// gone.
    workloads_ended: u64,
}

impl<T: Transport> MemDriver<T> {
    /// Binds the device.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn new(mut device: Device<T>, options: &Options) -> Result<Box<Self>, Unusable> {
        let wanted = VERSION_1 | 1 << wire::F_UNPLUGGED_INACCESSIBLE | 1 << wire::F_ACPI_PXM;
        let features = device.negotiate(wanted).ok_or(Unusable::Features)?;
        let requests = Requests::new(&mut device.transport, QUEUE).map_err(Unusable::Queue)?;
        device.transport.finish_init();
        let config = read_config(&device).ok_or(Unusable::Restless)?;
        if config.addr.checked_add(config.region_size).is_none_or(|end| end > MAX_PHYS_ADDR) {
            return Err(Unusable::OutOfReach(config.addr, config.region_size));
        }
        let domain = (features & 1 << wire::F_ACPI_PXM != 0).then_some(config.node_id);
        let geometry = geometry(options, &config);
        let driver = Driver::new(geometry, config)
            .map_err(|error| Unusable::Config(error, config.addr, config.region_size))?;
        Ok(Box::new(Self {
            device,
            requests,
            driver,
            region: config.addr,
            geometry,
            node: numa::node_of(domain, config.addr),
            zeroed: options.zeroed,
            patience: None,
            retry_at: None,
            stuck: None,
            reported: None,
            workloads_ended: workload::ended(),
        }))
    }

    /// Carries out what needs no device.
    fn carry_out(&mut self, action: Action) -> Outcome {
        match action {
            Action::ReadConfig => {
                read_config(&self.device).map_or(Outcome::Failed(Why::DeviceError), Outcome::Config)
            }
            Action::AddBlock { addr, start, size, fresh } => {
                let content = if fresh && self.zeroed { MemoryContent::Zero } else { MemoryContent::Unknown };
                let DriverConfig { memory_block_size, memmap_size, .. } = self.geometry;
                let flags = MhpFlags { content, memmap_on_memory: memmap_size > 0 };
                let plugged = Parts::new(start - addr, size);
                let whole = &plugged.0[..(memory_block_size / SECTION_SIZE) as usize];
                let began = Instant::now();
                let added = add(self.node, addr, whole, flags);
                LAST_ADD.store(Instant::now().0 - began.0, Ordering::Relaxed);
                self.note(added)
            }
            Action::OnlineSubBlocks { addr, size } => {
                let blocks = Parts::new(addr % SECTION_SIZE, size);
                let online = MM.hotplug().online_pageblocks(SectionNr::of(PhysAddr::new(addr)), blocks);
                self.note(online.map_err(|_| ResizeState::NoMemory))
            }
            Action::OfflineSubBlocks { addr, size } => {
                let blocks = Parts::new(addr % SECTION_SIZE, size);
                let offline = MM.hotplug().offline_pageblocks(SectionNr::of(PhysAddr::new(addr)), blocks);
                self.note(offline.map_err(offline_failed))
            }
            Action::RemoveBlock { addr } => self.note(remove(addr)),
            Action::Send(_) | Action::Rest(_) => unreachable!("handled by the step"),
        }
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

    fn rest(&mut self, rest: Rest) -> Step {
        let (why, retry_at) = match rest {
            Rest::Reached => (None, None),
            Rest::Retry { after_ms, why } => (Some(why), Some(Instant::in_millis(u64::from(after_ms)))),
            Rest::Blocked(why) => (Some(why), None),
        };
        let state = match why {
            None => ResizeState::Reached,
            Some(Why::HostBusy) => ResizeState::HostBusy,
            Some(Why::DeviceError) => ResizeState::DeviceError,
            // The step that failed knows more than its kind, such as which pages.
            Some(kind) => self.stuck.filter(|&stuck| kind_of(stuck) == kind).unwrap_or(match kind {
                Why::NoRoom => ResizeState::NoRoom,
                Why::Unmovable => ResizeState::Unmovable { pages: 0, first: [None; 4] },
                _ => ResizeState::NoMemory,
            }),
        };
        let resize = Resize {
            region: self.region,
            plugged: self.driver.plugged_size(),
            requested: self.driver.requested_size(),
            state,
        };
        if self.reported != Some(resize) {
            self.reported = Some(resize);
            report(Report::Resize(resize));
        }
        self.retry_at = retry_at;
        Step::Idle(retry_at)
    }

    /// Looks for the response to the request that is under way. `None` when it is not there yet.
    fn poll_response(&mut self) -> Option<()> {
        let bytes = self.requests.poll()?;
        self.patience = None;
        // A response that is too short says nothing of what the device did.
        let outcome =
            bytes.map_or(Outcome::NoResponse, |bytes| Outcome::Response(Response::from_bytes(&bytes)));
        self.driver.complete(outcome);
        Some(())
    }

    fn wait_for_response(&mut self) -> Step {
        if self.patience.is_some_and(Instant::has_passed) {
            println!("virtio-mem at {:#x}: no answer for {PATIENCE_MILLIS} ms; still waiting", self.region);
            self.patience = None;
        }
        Step::Idle(self.patience)
    }
}

impl<T: Transport + Send> Job for MemDriver<T> {
    fn step(&mut self) -> Step {
        if self.device.interrupts().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
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
            Action::Rest(rest) => self.rest(rest),
            Action::Send(request) => {
                self.requests.send(&mut self.device.transport, request.to_bytes());
                self.patience = Some(Instant::in_millis(PATIENCE_MILLIS));
                Step::Idle(self.patience)
            }
            action => {
                let outcome = self.carry_out(action);
                self.driver.complete(outcome);
                Step::Again
            }
        }
    }
}

/// The configuration, all fields of one generation; `None` when it never holds still.
fn read_config(device: &Device<impl Transport>) -> Option<Config> {
    const TRIES: u32 = 100;
    let transport = &device.transport;
    for _ in 0..TRIES {
        let before = transport.read_config_generation();
        let mut bytes = [0; wire::CONFIG_SIZE];
        for (index, word) in bytes.chunks_exact_mut(4).enumerate() {
            let value: u32 = transport.read_config_space(4 * index).ok()?;
            word.copy_from_slice(&value.to_le_bytes());
        }
        if transport.read_config_generation() == before {
            return Some(Config::from_bytes(&bytes));
        }
    }
    None
}

/// How to divide the device's region: as the command line says, as far as that fits.
fn geometry(options: &Options, config: &Config) -> DriverConfig {
    let memmap_size = if options.memmap_on_memory { options.memory_block / MEMMAP_SHARE } else { 0 };
    let wanted =
        DriverConfig { memory_block_size: options.memory_block, memmap_size, min_block_size: SUB_SECTION };
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

/// What of a memory block's sections is meant, an element a section, and how many of them it takes to say
/// so.
struct Parts([PageblockSet; MAX_SECTIONS], usize);

impl Parts {
    /// `size` bytes from `offset` on, which counts from the first section's start.
    fn new(offset: u64, size: u64) -> Self {
        let (first, end) = (offset / SUB_SECTION, (offset + size) / SUB_SECTION);
        let used = end.div_ceil(64) as usize;
        let mut sections = [PageblockSet::NONE; _];
        for (index, blocks) in (0_u64..).zip(&mut sections[..used]) {
            let at = |sub_section: u64| sub_section.saturating_sub(index * 64).min(64) as u32;
            *blocks = PageblockSet::range(at(first)..at(end));
        }
        Self(sections, used)
    }
}

impl AsRef<[PageblockSet]> for Parts {
    /// Up to the last of them of which something is meant.
    fn as_ref(&self) -> &[PageblockSet] {
        &self.0[..self.1]
    }
}

/// Adds a memory block to `node` and onlines it; all or nothing.
fn add(node: NodeId, addr: u64, plugged: &[PageblockSet], flags: MhpFlags) -> Result<(), ResizeState> {
    let section = SectionNr::of(PhysAddr::new(addr));
    let hotplug = MM.hotplug();
    hotplug.add_memory(node, section, plugged, flags).map_err(|_| ResizeState::NoMemory)?;
    hotplug.online(section, ZoneType::Movable).map_err(|_| {
        hotplug.remove_memory(section).expect("a block that is not online can be removed");
        ResizeState::NoMemory
    })
}

/// Offlines a memory block and removes it; all or nothing.
fn remove(addr: u64) -> Result<(), ResizeState> {
    let section = SectionNr::of(PhysAddr::new(addr));
    let offline = MM.hotplug().offline(section);
    offline.map_err(offline_failed)?;
    MM.hotplug().remove_memory(section).expect("a block that is offline can be removed");
    Ok(())
}

fn offline_failed(error: OfflineError) -> ResizeState {
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
        // Only a fault on purpose says so: isolations wait for each other.
        OfflineError::Busy => ResizeState::Unmovable { pages: 0, first: [None; 4] },
        other => panic!("the driver asked for what cannot be: {other:?}"),
    }
}

/// Of which kind a failure is, for the step machine.
fn kind_of(state: ResizeState) -> Why {
    match state {
        ResizeState::Unmovable { .. } => Why::Unmovable,
        ResizeState::NoRoom => Why::NoRoom,
        _ => Why::NoMemory,
    }
}

fn owner(holder: Holder) -> abi::Owner {
    match holder {
        Holder::Reserved => abi::Owner::Reserved,
        Holder::Kernel | Holder::Unclaimed => abi::Owner::Kernel,
        Holder::Tagged(handle) => abi::Owner::Workload(handle),
        Holder::PageTable => abi::Owner::PageTable,
        Holder::Memmap => abi::Owner::Memmap,
        Holder::Owned { index, .. } => {
            workload::handle_of(index).map_or(abi::Owner::Kernel, abi::Owner::Workload)
        }
    }
}
