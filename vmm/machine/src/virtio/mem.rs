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
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidevm_abi::Size;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use virtio_mem::blocks::BlockRange;
use virtio_mem::device::{Backing, Busy, Device, DeviceConfig};
use virtio_mem::wire::{
    F_UNPLUGGED_INACCESSIBLE, REQUEST_SIZE, REQUESTED_SIZE_OFFSET, RESPONSE_SIZE, Request, Response,
    ResponseType,
};
use vmm_sys_util::eventfd::EventFd;

use crate::config::HotplugConfig;
use crate::memory::Memory;
use crate::memory::host_calls::FailedCall;
use crate::memory::range::GuestRange;
use crate::state::{HostFault, MemStatus, Refusal, SharedState};
use crate::virtio::mmio::{Effect, Registers};
use crate::virtio::{RegisterDevice, Transport};

mod requests;
mod target;

pub(crate) use requests::RequestCounters;
pub use requests::{ANSWERS, LATENCY_BOUNDS, Latency, REQUEST_KINDS, RequestCounts};
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

/// When to tell a driver that was answered BUSY to try again.
pub const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Most warnings about a host that refuses, in one [`WARNING_PERIOD`].
const MAX_WARNINGS: u32 = 4;

const WARNING_PERIOD: Duration = Duration::from_secs(60);

/// One virtio-mem device.
#[derive(Debug)]
pub struct Mem {
    transport: Transport,
    device: Device,
    region: RegionMemory,
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
    /// A request was answered BUSY, and the driver has not been told to retry since.
    retry_due: bool,
}

/// What remains to be done after the queue was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// A request was answered BUSY: see [`RETRY_AFTER`].
    pub busy: bool,
    /// There may be more requests. Other devices have their turn first.
    pub more: bool,
}

/// The memory of one region, as the [`Backing`] of the device.
#[derive(Debug)]
struct RegionMemory {
    memory: Arc<Memory>,
    index: usize,
    range: GuestRange,
    block_size: u64,
    /// The host's last refusal, if nothing has succeeded since. Only the first one is logged, because a guest may ask
    /// without end.
    refused: Option<HostFault>,
    /// Start of a [`WARNING_PERIOD`] and the warnings in it. A guest may let requests fail and succeed in turn.
    warned: Option<(Instant, u32)>,
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
        let range = memory.regions()[index];
        let fixed = DeviceConfig {
            addr: range.start().0,
            region_size: config.size.0,
            block_size: config.device_block.0,
            node_id: config.node,
        };
        let mut device = Device::new(fixed).map_err(io::Error::other)?;
        let target = Arc::new(Target::new(index, fixed, Arc::clone(&state), kick.try_clone()?));
        device.resize(config.requested.0).map_err(io::Error::other)?;
        let required = 1 << F_UNPLUGGED_INACCESSIBLE;
        let bytes = device.config().to_bytes();
        let registers = Registers::new(VIRTIO_ID_MEM, device.features(), required, &[QUEUE_SIZE], &bytes)
            .map_err(io::Error::other)?;
        let block_size = config.device_block.0;
        let region = RegionMemory { memory, index, range, block_size, refused: None, warned: None };
        let transport = Transport::new(registers, interrupt);
        let mut mem = Self {
            transport,
            device,
            region,
            state,
            kick,
            target,
            counters: Arc::default(),
            turn: TURN,
            generation: 0,
            seen: None,
            retry_due: false,
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
        self.generation = self.transport.registers.next_generation();
        true
    }

    /// Tells a driver that was answered BUSY to try again. A system reset cancels that.
    pub fn retry(&mut self) {
        if std::mem::take(&mut self.retry_due) {
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
        self.device.reset();
        self.seen = None;
        self.retry_due = false;
        self.transport.registers.set_config(&self.device.config().to_bytes());
        self.status()
    }

    /// Serves requests in the queue, as many as are due in one turn of the event loop.
    pub fn serve(&mut self) -> Served {
        let mut served = Served { busy: false, more: true };
        let start = Instant::now();
        let driver = self.transport.registers.running();
        self.apply_target();
        for request in 0..self.transport.batch(0).min(REQUESTS_PER_TURN) {
            if request > 0 && start.elapsed() >= self.turn {
                break;
            }
            let memory = Arc::clone(&self.region.memory);
            let Some(chain) = self.transport.pop(memory.view(), 0, REQUEST_SIZE, RESPONSE_SIZE) else {
                served.more = false;
                break;
            };
            let mut written = 0;
            // A request without room for its answer is not served: its driver would never learn the result.
            if chain.room() == RESPONSE_SIZE {
                let response = self.handle(chain.request());
                served.busy |= response.kind == ResponseType::Busy;
                written = chain.write(&memory.view(), &response.to_bytes());
            } else {
                self.publish(Some(format!("no room for an answer: {} bytes", chain.room()).into()));
            }
            self.transport.push(memory.view(), 0, &chain, written);
            self.apply_target();
        }
        served.more &= self.transport.batch(0) > 0;
        // A driver whose device broke has to reset it first.
        self.retry_due = (self.retry_due || served.busy) && self.transport.registers.running();
        if driver && !self.transport.registers.running() {
            let broken = "the queue cannot be used; the driver has to reset the device";
            self.publish(Some(broken.to_owned().into()));
        }
        self.transport.notify_used();
        served
    }

    fn handle(&mut self, request: &[u8]) -> Response {
        let start = Instant::now();
        let response = self.device.handle(request, &mut self.region);
        self.counters.count(
            Request::from_bytes(request).map(|request| request.kind),
            response.kind,
            start.elapsed(),
        );
        let refused = self.device.refused().filter(|_| response.kind != ResponseType::Ack);
        let host = self.region.refused.filter(|_| response.kind == ResponseType::Busy);
        let text = |refused| format!("{:?}: {refused}", response.kind);
        self.publish(refused.map(|refused| Refusal { text: text(refused), host }));
        response
    }

    /// Derives from the device what others see: the configuration space that the driver reads, and the
    /// [`MemStatus`] in the shared state.
    fn publish(&mut self, refused: Option<Refusal>) {
        self.transport.registers.set_config(&self.device.config().to_bytes());
        let index = self.region.index;
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
        let memory = Arc::clone(&self.region.memory);
        match self.transport.write(|| memory.view(), offset, data) {
            Effect::None => Ok(()),
            Effect::StatusChanged => {
                if !self.transport.registers.running() {
                    (self.seen, self.retry_due) = (None, false);
                }
                self.publish(None);
                Ok(())
            }
            Effect::Notify(_) => self.kick.write(1),
        }
    }
}

impl Backing for RegionMemory {
    fn plug(&mut self, range: BlockRange) -> Result<(), Busy> {
        let range = self.addresses(range)?;
        let result = self.memory.plug(self.index, range);
        self.outcome("plug", range, result)
    }

    fn unplug(&mut self, range: BlockRange) -> Result<(), Busy> {
        let range = self.addresses(range)?;
        let result = self.memory.unplug(self.index, range);
        self.outcome("unplug", range, result)
    }

    fn unplug_all(&mut self) -> Result<(), Busy> {
        let result = self.memory.unplug_all(self.index);
        self.outcome("unplug", self.range, result)
    }
}

impl RegionMemory {
    /// Logs the host's error if it is the first of several.
    fn outcome(&mut self, what: &str, range: GuestRange, result: Result<(), FailedCall>) -> Result<(), Busy> {
        let fault = result.as_ref().err().map(HostFault::from);
        let before = std::mem::replace(&mut self.refused, fault);
        result.map_err(|error| {
            if before.is_none() && self.may_warn() {
                log::warn!("cannot {what} {range}: {error}; silent until something succeeds");
            }
            Busy
        })
    }

    /// Counts a warning, and returns whether it is one of the first in its period.
    fn may_warn(&mut self) -> bool {
        let period = self.warned.filter(|(since, _)| since.elapsed() < WARNING_PERIOD);
        let (since, count) = period.unwrap_or((Instant::now(), 0));
        self.warned = Some((since, count.saturating_add(1)));
        count < MAX_WARNINGS
    }

    /// The addresses of some device blocks. The device checked that they are in the region, so nothing
    /// overflows.
    fn addresses(&self, range: BlockRange) -> Result<GuestRange, Busy> {
        let start = self.range.start().0 + range.first() * self.block_size;
        GuestRange::new(start..start + range.count() * self.block_size).ok_or(Busy)
    }
}

#[cfg(test)]
mod tests;
