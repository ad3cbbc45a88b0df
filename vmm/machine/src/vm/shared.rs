//! What the threads of a VM share.
//!
//! The embedder's thread, the event loop and each vCPU have an `Arc` of one [`VmShared`]. It owns everything
//! that outlives a reset. The parts that a reset makes anew belong to [`super::hardware`].

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::devices::{Devices, event};
use super::exits::{ExitCounters, ExitCounts};
use super::look::Looks;
use super::pause::Pause;
use super::saver::Saver;
use crate::boot::Image;
use crate::budget::Budget;
use crate::bus::Bus;
use crate::config::Config;
use crate::disk::Disk;
use crate::error::StartError;
use crate::limits::LimitFiles;
use crate::memory::Memory;
use crate::serial::Sink;
use crate::state::{MemStatus, SharedState};

/// Id of the first call. The guest answers with id 0 when it cannot read a call.
const FIRST_CALL: u32 = 1;

/// The parts of a VM that live as long as it.
#[derive(Debug)]
pub(super) struct VmShared {
    pub(super) config: Config,
    pub(super) kernel: Image,
    pub(super) memory: Arc<Memory>,
    pub(super) state: Arc<SharedState>,
    pub(super) devices: Devices,
    /// Leads from addresses to `devices`.
    pub(super) bus: Bus,
    /// Written when the guest or the embedder has asked for a reset: wakes the event loop.
    pub(super) reset: EventFd,
    /// The guest asked for a reset, and it was not carried out yet.
    pub(super) reset_due: AtomicBool,
    /// The state of vCPUs for embedders that ask for it.
    pub(super) looks: Looks,
    /// Whether the guest stands still.
    pub(super) pause: Pause,
    /// What a save needs, if the machine can be saved.
    pub(super) saver: Option<Saver>,
    /// While it is set, vCPUs leave the guest and wait for nothing, not even the console.
    pub(super) stop: Arc<AtomicBool>,
    /// The embedder ends the VM: a reset does not start it again.
    pub(super) over: AtomicBool,
    /// When the first disk was told that the VM is over.
    pub(super) disks_end: OnceLock<Instant>,
    /// Asked whenever the guest may use more.
    pub(super) budget: Budget,
    /// Looked at while a driver waits for the host.
    pub(super) limits: LimitFiles,
    /// One entry per vCPU, counted over all resets.
    pub(super) exits: Vec<ExitCounters>,
    /// Id of the next call.
    pub(super) next_call: AtomicU32,
    /// When the VM was first started.
    pub(super) started: Instant,
}

impl VmShared {
    /// A VM that does not run. `memory` and `disks` were made from `config`; the serial port's output goes to `sinks`, and `saver` was
    /// made for [`Config::save`].
    ///
    /// # Errors
    /// The host provides no event descriptors.
    pub(super) fn new(
        config: Config,
        kernel: Image,
        memory: Memory,
        disks: Vec<Disk>,
        sinks: (Sink, Option<Sink>),
        saver: Option<Saver>,
        started: Instant,
    ) -> Result<Self, StartError> {
        let memory = Arc::new(memory);
        // Each device fills its entry in.
        let mem = vec![MemStatus::default(); config.hotplug.len()];
        let state = Arc::new(SharedState::new(started, mem).limited(config.timeout));
        let stop = Arc::default();
        let budget = Budget::of_process();
        let devices = Devices::new(&config, &memory, &state, disks, sinks, &stop)?;
        Ok(Self {
            bus: Bus::new(devices.in_order(), Arc::clone(&devices.serial), config.watch.alarms),
            reset: event()?,
            reset_due: AtomicBool::new(false),
            looks: Looks::default(),
            saver,
            pause: Pause::new(config.cpus.into(), Arc::clone(&state)),
            over: AtomicBool::new(false),
            disks_end: OnceLock::new(),
            limits: LimitFiles::open(&budget),
            budget,
            exits: (0..config.cpus).map(|_| ExitCounters::default()).collect(),
            next_call: AtomicU32::new(FIRST_CALL),
            started,
            config,
            kernel,
            memory,
            state,
            devices,
            stop,
        })
    }

    /// Whether the guest asked for a reset that was not carried out yet.
    pub(super) fn guest_resets(&self) -> bool {
        self.reset_due.load(Ordering::Acquire)
    }

    /// Whether the guest or the embedder asked for a reset that was not carried out yet.
    pub(super) fn resets(&self) -> bool {
        self.guest_resets() || self.state.wants_reset()
    }

    /// Tells the event loop of a reset that was asked for.
    pub(super) fn tell_of_reset(&self) {
        // Fails only when the counter is full. The event loop knows of a reset then.
        if let Err(error) = self.reset.write(1) {
            log::debug!("reset: {error}");
        }
    }

    /// Warns if the guest may use more memory than the host's control group allows.
    pub(super) fn check_budget(&self) {
        let hotplug = self.state.snapshot().mem.into_iter().map(|mem| mem.requested);
        let all = hotplug.chain(self.config.pmem.iter().copied()).chain([self.config.memory]);
        if let Some(warning) = self.budget.warning(all.sum()) {
            log::warn!("{warning}");
        }
    }

    /// Exits since the VM was first started, one entry per vCPU.
    pub(super) fn exits(&self) -> Vec<ExitCounts> {
        self.exits.iter().map(ExitCounters::read).collect()
    }
}
