//! The virtio-mem device: [`virtio_mem::device`] decides on its requests, [`crate::memory`] carries them out.
//!
//! Mirrors virtio 1.3, section 5.15. Every chain that can be read at all goes back, and the device goes on. A
//! request that is too short is answered with ERROR. A chain without room for the answer, and one whose
//! buffers the request itself unplugged, goes back with length 0.
//!
//! The bitmap of [`Device`] is the truth about the contract with the guest: see [`crate::memory`]. The
//! configuration space that the driver reads and the [`MemStatus`] that the embedder reads are derived from
//! it, in [`Mem::publish`] alone.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidevm_abi::Size;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use virtio_mem::device::{Busy, Device, DeviceConfig, Refusal as Why, Refused};
use virtio_mem::wire::{F_UNPLUGGED_INACCESSIBLE, REQUESTED_SIZE_OFFSET, ResponseType};
use vmm_sys_util::eventfd::EventFd;

use crate::config::HotplugConfig;
use crate::memory::Memory;
use crate::state::{HostFault, MemStatus, Refusal, SharedState};
use crate::virtio::mmio::{Effect, Registers};
use crate::virtio::{RegisterDevice, Transport};

mod backing;
mod requests;
mod saved;
mod serving;
mod target;

pub use backing::RegionMemory;

pub(crate) use requests::RequestCounters;
pub use requests::{ANSWERS, LATENCY_BOUNDS, Latency, REQUEST_KINDS, RequestCounts};
pub use saved::MemState;
pub use serving::serve;
pub use target::Target;

/// Most requests that a driver can have in the queue.
const QUEUE_SIZE: u16 = 128;

/// Where the driver reads the target.
const TARGET: u64 = VIRTIO_MMIO_CONFIG as u64 + REQUESTED_SIZE_OFFSET as u64;

/// Most requests that are served in one turn of the event loop. Then everything else that the loop waits for has
/// its turn.
const REQUESTS_PER_TURN: u16 = 8;

/// The time after which no further request is served in the same turn. One request may take longer: it is not
/// divided.
const TURN: Duration = Duration::from_millis(5);

/// One virtio-mem device.
#[derive(Debug)]
pub struct Mem {
    transport: Transport,
    device: Device,
    memory: Arc<Memory>,
    /// Its index, which is that of its region.
    index: usize,
    backing: Arc<Mutex<RegionMemory>>,
    state: Arc<SharedState>,
    kick: EventFd,
    target: Arc<Target>,
    counters: Arc<RequestCounters>,
    /// See [`TURN`].
    turn: Duration,
    /// See [`MemStatus::generation`].
    generation: u32,
    /// See [`MemStatus::seen`].
    seen: Option<u32>,
    /// [`Served::retry_after`] was returned for the retry that is due.
    retry_announced: bool,
    /// How many drivers are gone. Requests of an earlier driver are not answered.
    driver: u64,
}

/// What remains to be done after the queue was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// A request was answered BUSY, and the driver shall be told to retry after this time: [`Mem::retry`].
    pub retry_after: Option<Duration>,
    /// Something was unplugged, so that the host may be able to do what it could not do for another device.
    pub freed: bool,
    /// There may be more requests. Other devices have their turn first.
    pub more: bool,
}

impl Mem {
    /// Device `index`, which serves hotplug region `index` of `memory`. `interrupt` reaches the driver.
    /// `kick` is written when the queue has requests.
    ///
    /// # Errors
    /// The configuration contradicts itself; [`crate::Config::validate`] finds that first.
    pub(crate) fn new(
        index: usize,
        config: &HotplugConfig,
        memory: Arc<Memory>,
        state: Arc<SharedState>,
        interrupt: EventFd,
        kick: EventFd,
    ) -> io::Result<Self> {
        let addr = memory.regions()[index].start().0;
        let mut fixed = DeviceConfig::new(addr, config.size.0, config.device_block.0);
        (fixed.node_id, fixed.extent) = (config.node, config.extent.0);
        let mut device = Device::new(fixed).map_err(io::Error::other)?;
        let target = Arc::new(Target::new(index, fixed, Arc::clone(&state), kick.try_clone()?));
        device.resize(config.requested.0).map_err(io::Error::other)?;
        let required = 1 << F_UNPLUGGED_INACCESSIBLE;
        let bytes = device.config().to_bytes();
        let registers = Registers::new(VIRTIO_ID_MEM, device.features(), required, &[QUEUE_SIZE], &bytes)
            .map_err(io::Error::other)?;
        let backing = RegionMemory::new(Arc::clone(&memory), index);
        let transport = Transport::new(registers, interrupt);
        let mut mem = Self {
            transport,
            device,
            memory,
            index,
            backing: Arc::new(Mutex::new(backing)),
            state,
            kick,
            target,
            counters: Arc::default(),
            turn: TURN,
            generation: 0,
            seen: None,
            retry_announced: false,
            driver: 0,
        };
        mem.publish(None);
        Ok(mem)
    }

    /// Where others set the target.
    #[must_use]
    pub fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target)
    }

    /// What is counted of requests.
    #[must_use]
    pub(crate) fn counters(&self) -> Arc<RequestCounters> {
        Arc::clone(&self.counters)
    }

    /// What carries requests out. It is locked before the device, and as long as a request is under way: see [`serve`].
    #[must_use]
    pub fn backing(&self) -> Arc<Mutex<RegionMemory>> {
        Arc::clone(&self.backing)
    }

    /// Takes the target that was set last, if there is a new one, and tells the driver. The same size again is a
    /// target of its own: the driver looks at it anew, and tries again what had failed.
    fn apply_target(&mut self) {
        if self.take_target() {
            self.publish(None);
            self.transport.notify_config();
        }
    }

    /// Takes the target that was set last, with a generation of its own. Returns whether there was a new one.
    fn take_target(&mut self) -> bool {
        let Some(requested) = self.target.take() else { return false };
        if let Err(error) = self.device.resize(requested) {
            log::error!("a target that was checked is refused: {error}");
        }
        // The driver is told of every target, also of the same size again: it is how an embedder says that the host is able
        // again.
        self.device.cause_gone();
        self.retry_announced = false;
        self.generation = self.transport.registers.next_generation();
        true
    }

    /// Tells a driver that was answered BUSY to try again, after the pause. A reset cancels that.
    pub fn retry(&mut self) {
        if self.device.retry() {
            self.transport.notify_config();
        }
    }

    /// The same at once: the host may be able to do now what it could not do.
    pub fn cause_gone(&mut self) {
        if self.device.cause_gone() {
            self.transport.notify_config();
        }
    }

    /// System reset: no driver, nothing plugged, the same target (virtio 1.3, section 5.15.6.2).
    /// [`Memory::reset`] takes the memory itself. Returns what others see from now on; the caller puts it into the
    /// shared state, in one step with all else that a reset changes. The caller holds the lock of the state, so
    /// that no target comes between.
    pub fn reset(&mut self) -> MemStatus {
        // The driver that would be told is gone.
        self.take_target();
        self.transport.registers.reset();
        self.driver += 1;
        self.device.reset();
        self.seen = None;
        self.transport.registers.set_config(&self.device.config().to_bytes());
        self.status()
    }

    /// Derives from the device what others see: the configuration space that the driver reads, and the
    /// [`MemStatus`] in the shared state.
    fn publish(&mut self, refused: Option<Refusal>) {
        self.transport.registers.set_config(&self.device.config().to_bytes());
        let index = self.index;
        self.state.change(|state| {
            let status = self.status();
            let mem = &mut state.mem[index];
            let (report, refused) = (mem.report.take(), refused.or(mem.refused.take()));
            *mem = MemStatus { report, refused, ..status };
        });
    }

    /// The device as it is now, without reports and refusals. The caller holds the lock of the state: see
    /// [`Target`].
    fn status(&self) -> MemStatus {
        let config = self.device.config();
        let pending = self.target.pending();
        MemStatus {
            region: config.addr,
            region_size: Size(config.region_size),
            block_size: Size(config.block_size),
            requested: Size(pending.unwrap_or(config.requested_size)),
            targets: self.target.count(),
            target_pending: pending.is_some(),
            generation: self.generation,
            seen: self.seen,
            usable: Size(config.usable_region_size),
            plugged: Size(config.plugged_size),
            driver: self.transport.registers.running(),
            report: None,
            refused: None,
        }
    }
}

#[cfg(feature = "hosted")]
impl Mem {
    /// From now on each call of [`Mem::serve`] serves one request, whatever the host's load.
    pub(crate) fn serve_singly(&mut self) {
        self.turn = Duration::ZERO;
    }

    /// The device's registers.
    pub(crate) fn registers(&self) -> &Registers {
        &self.transport.registers
    }
}

impl RegisterDevice for Mem {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.registers.read(offset, data);
        // A target that is read in parts is seen with its first part. If it changes before the last part is read,
        // the driver has to look again.
        let seen = Some(self.transport.registers.generation());
        if (offset..offset.saturating_add(data.len() as u64)).contains(&TARGET) && self.seen != seen {
            self.seen = seen;
            self.publish(None);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let memory = Arc::clone(&self.memory);
        match self.transport.write(|| memory.view(), offset, data) {
            Effect::None => Ok(()),
            Effect::StatusChanged => {
                if !self.transport.registers.running() {
                    self.driver += 1;
                    self.seen = None;
                    self.device.driver_gone();
                }
                self.publish(None);
                Ok(())
            }
            Effect::Notify(_) => self.kick.write(1),
        }
    }
}

/// What others see of a refused request. The host's part in it stands apart from the text.
fn refusal(answer: ResponseType, mut refused: Refused) -> Refusal {
    let mut host = None;
    if let Why::Busy(busy) = refused.why
        && busy.errno != 0
    {
        host = Some(HostFault { call: busy.cause, errno: busy.errno });
        refused.why = Why::Busy(Busy::default());
    }
    Refusal { text: format!("{answer:?}: {refused}"), host }
}

#[cfg(test)]
impl Mem {
    /// How long the driver waits for the host, in milliseconds.
    pub(crate) fn pause_ms(&self) -> Option<u32> {
        self.device.retry_after_ms()
    }
}

#[cfg(test)]
mod tests;
