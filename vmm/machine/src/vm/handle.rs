//! What several threads may do with one VM at once: a session and a control plane, for instance.
//!
//! A handle is cheap to clone. It does not keep the guest alive: when the [`Vm`](super::Vm) ends, the state that a handle
//! shows stays as it was at the end, and a new target or call has no effect on anything.
//!
//! Invariant: no method but [`VmHandle::wait`], [`VmHandle::answer`] and [`VmHandle::vcpus`] waits for the guest, and each of
//! these has a limit.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Call, Op, Size};
use virtio_mem::device::ResizeError as DeviceError;

use super::exits::ExitCounts;
use super::hardware::Hardware;
use super::look::{self, LookResult, VcpuReport};
use super::shared::VmShared;
use super::{CallsUnread, NothingToPause, ResetRefused, ResizeError};
use crate::clock;
use crate::config::Config;
use crate::snapshot::opened::Snapshot;
use crate::state::{Changes, SharedState, State, WaitError};
use crate::sync::lock;
use crate::transcript::{Alarms, Heard};
use crate::virtio::block::DiskCounts;
use crate::virtio::control::{CallsQueueFull, MAX_UNREAD};
use crate::virtio::mem::RequestCounts;

mod balloon;

pub use balloon::{IntervalRefused, NoStatistics};

/// A running VM, for any number of threads. See [`Vm`](super::Vm), which ends it.
#[derive(Clone, Debug)]
pub struct VmHandle {
    pub(super) shared: Arc<VmShared>,
    pub(super) hardware: Arc<Mutex<Hardware>>,
}

/// Has the waits of a VM look again: see [`VmHandle::nudger`].
#[derive(Clone, Debug)]
pub struct Nudger(Arc<SharedState>);

impl Nudger {
    /// Every wait looks again.
    pub fn nudge(&self) {
        self.0.nudge();
    }
}

impl VmHandle {
    /// A copy of the guest's state as it is now.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state.snapshot()
    }

    /// Waits at most `limit` for `find` to return a value; `what` names it in the error. A value is returned
    /// even when the guest has ended.
    ///
    /// # Errors
    /// [`WaitError`]: too late, or the guest ended first, or a signal came.
    pub fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        find: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, WaitError> {
        self.shared.state.wait(limit, what, find)
    }

    /// Sends a call to the guest and returns its id for [`VmHandle::answer`].
    ///
    /// # Errors
    /// [`CallsUnread`] when the guest does not read its calls.
    pub fn call(&self, op: Op) -> Result<u32, CallsUnread> {
        let id = self.shared.next_call.fetch_add(1, Ordering::Relaxed);
        // Held over both steps, so that a reset forgets the call and its answer together.
        let mut control = lock(&self.shared.devices.control);
        // Registered first, because the answer may come at once. PowerOff has no answer.
        if op != Op::PowerOff {
            self.shared.state.expect_answer(id);
        }
        control.call(Call { id, op }).map_err(|CallsQueueFull| {
            self.shared.state.forget_answer(id);
            CallsUnread { unread: MAX_UNREAD }
        })?;
        Ok(id)
    }

    /// Waits at most `limit` for the answer to a call and takes it. After an error the call is forgotten.
    ///
    /// # Errors
    /// [`WaitError`]: too late, or the guest ended or was reset first, or a signal came.
    pub fn answer(&self, id: u32, limit: Duration, what: &str) -> Result<Answer, WaitError> {
        self.shared.state.take_answer(id, limit, what)
    }

    /// Waits at most `limit` for the answer to a call and takes it, or the reason why it will not come. `None`: it has not
    /// come, and the call is still open.
    #[must_use]
    pub fn await_answer(&self, id: u32, limit: Duration) -> Option<Result<Answer, WaitError>> {
        self.shared.state.await_answer(id, limit)
    }

    /// As [`VmHandle::answer`], until `stop` returns true. Then the result is `None`, and the answer can still be taken.
    ///
    /// # Errors
    /// As [`VmHandle::answer`].
    pub fn answer_unless(
        &self,
        id: u32,
        limit: Duration,
        what: &str,
        stop: impl FnMut(&State) -> bool,
    ) -> Result<Option<Answer>, WaitError> {
        self.shared.state.take_answer_unless(id, limit, what, stop)
    }

    /// Takes the answer to a call, if it has come, or the reason why it will not come.
    #[must_use]
    pub fn try_answer(&self, id: u32) -> Option<Result<Answer, WaitError>> {
        self.shared.state.try_take_answer(id)
    }

    /// Forgets a call. A later answer to it is a bad record.
    pub fn forget(&self, id: u32) {
        self.shared.state.forget_answer(id);
    }

    /// Sets a device's target and has the guest told. Returns at once, also while the device serves requests;
    /// the state shows the guest's progress.
    ///
    /// # Errors
    /// [`ResizeError`]; nothing changed.
    pub fn resize(&self, device: usize, requested: Size) -> Result<(), ResizeError> {
        self.set_target(device, requested, None).map(drop)
    }

    /// As [`VmHandle::resize`], unless another target was set after the one with the number `after`
    /// ([`MemStatus::targets`](crate::MemStatus::targets)). Returns the number of the new target, or `None` if nothing changed.
    /// For a program that steps back when somebody else resizes.
    ///
    /// # Errors
    /// [`ResizeError`]; nothing changed.
    pub fn resize_after(
        &self,
        device: usize,
        requested: Size,
        after: u64,
    ) -> Result<Option<u64>, ResizeError> {
        self.set_target(device, requested, Some(after))
    }

    fn set_target(
        &self,
        device: usize,
        requested: Size,
        after: Option<u64>,
    ) -> Result<Option<u64>, ResizeError> {
        let devices = &self.shared.devices.mem;
        let count = devices.len();
        let mem = devices.get(device).ok_or(ResizeError::NoDevice { device, count })?;
        let number = mem.target.set(&mem.device, requested, after).map_err(|error| match error {
            DeviceError::Misaligned { block_size } => {
                ResizeError::Unaligned { requested, block: Size(block_size) }
            }
            DeviceError::BeyondRegion { region_size } => {
                ResizeError::TooLarge { requested, region_size: Size(region_size) }
            }
        })?;
        self.shared.check_budget();
        Ok(number)
    }

    /// Resets the machine as its reset button does (QEMU's `system_reset`), also without [`Config::reboot`], which is
    /// about resets that the guest makes. Returns at once, with the number of this request. When
    /// [`State::reset_request`] is at least that, the guest starts again with fresh memory: nothing is plugged, and the
    /// devices request what they requested. Calls that were not answered end. Requests before that moment are one
    /// reset. A reset that the guest makes before the request is another one. A guest that stands still is reset too,
    /// and stands still until [`VmHandle::resume`]. A guest that has ended stays so.
    ///
    /// # Errors
    /// [`ResetRefused`]; nothing changed.
    pub fn reset(&self) -> Result<u64, ResetRefused> {
        if !self.shared.config.can_reset() {
            return Err(ResetRefused);
        }
        let request = self.shared.state.want_reset();
        self.shared.tell_of_reset();
        Ok(request)
    }

    /// The host memory that a device's region really holds, resident and swapped out. To ask for several
    /// devices, use [`VmHandle::held_by_each`]: the host's answer is about all of them.
    ///
    /// # Errors
    /// `/proc/self/smaps` cannot be read, or there is no such device.
    pub fn held(&self, device: usize) -> io::Result<Size> {
        let no_such = || io::Error::new(io::ErrorKind::NotFound, format!("no hotplug device #{device}"));
        self.held_by_each()?.get(device).copied().ok_or_else(no_such)
    }

    /// The host memory that the region of each device really holds, read at once.
    ///
    /// # Errors
    /// `/proc/self/smaps` cannot be read.
    pub fn held_by_each(&self) -> io::Result<Vec<Size>> {
        self.shared.memory.held()
    }

    /// Has every change of the state written to an event descriptor, for a thread that waits for more than this VM. The
    /// subscription ends with the value.
    ///
    /// # Errors
    /// The host provides no event descriptor.
    pub fn subscribe(&self) -> io::Result<Changes> {
        self.shared.state.subscribe()
    }

    /// A way to have every wait look again, for one that waits for more than the state. It keeps nothing else of the VM.
    #[must_use]
    pub fn nudger(&self) -> Nudger {
        Nudger(Arc::clone(&self.shared.state))
    }

    /// Has the guest stand still: its vCPUs leave it, and run none of its code until [`VmHandle::resume`]. Its disks begin no
    /// request until then. Returns whether all vCPUs have left it and no request of a disk is under way; call it again a moment
    /// later if not. No limit of a wait passes meanwhile.
    ///
    /// # Errors
    /// The VM is being ended, or its guest has ended.
    pub fn pause(&self) -> Result<bool, NothingToPause> {
        if self.state().ended() || !self.shared.pause.begin() {
            return Err(NothingToPause);
        }
        // Resumed meanwhile: no vCPU is waited for.
        if !self.shared.pause.is_wanted() {
            return Ok(true);
        }
        let _turn = self.shared.looks.turn();
        let parked = match self.hardware.try_lock() {
            Ok(hardware) => hardware.park(),
            Err(TryLockError::Poisoned(hardware)) => hardware.into_inner().park(),
            // A reset is made. Its vCPUs find the wish before they enter the guest.
            Err(TryLockError::WouldBlock) => false,
        };
        Ok(parked && self.shared.devices.busy_disk().is_none())
    }

    /// Lets a guest that stands still run on.
    pub fn resume(&self) {
        self.shared.pause.end();
        self.shared.devices.kick_disks();
    }

    /// Lets the guest run, for good, because the VM ends.
    pub(super) fn resume_to_end(&self) {
        self.shared.pause.bar();
        self.shared.devices.kick_disks();
    }

    /// The description that the VM was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// What the embedder gave to [`VmHandle::save`] when this machine was saved; nothing for one that was not restored.
    #[must_use]
    pub fn remembered(&self) -> &[u8] {
        self.shared.config.restore.as_ref().map_or(&[], Snapshot::embedder)
    }

    /// Boot memory.
    #[must_use]
    pub fn boot_memory(&self) -> Size {
        self.shared.config.memory
    }

    /// Device memory, all ranges together.
    #[must_use]
    pub fn device_memory(&self) -> Size {
        Size(self.shared.config.pmem.iter().map(|size| size.0).sum())
    }

    /// Whether the guest answers calls: tidevm's own, and Linux with [`Config::agent`].
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.reports() || self.shared.config.agent
    }

    /// Whether the guest's virtio-mem drivers report, and its memory management tells when it is short. Only those of tidevm's
    /// own guest do.
    #[must_use]
    pub fn reports(&self) -> bool {
        self.shared.kernel.is_own_guest()
    }

    /// Whether the guest can answer a call now: it has an agent, is up, and does not stand still.
    #[must_use]
    pub fn takes_calls(&self) -> bool {
        let state = self.state();
        self.has_agent() && state.ready.is_some() && !state.paused && !state.ended()
    }

    /// Makes a call if the guest can answer one now (see [`VmHandle::takes_calls`]) and has room for it. Returns its number.
    #[must_use]
    pub fn try_call(&self, op: Op) -> Option<u32> {
        if self.takes_calls() { self.call(op).ok() } else { None }
    }

    /// Exits since the start, one entry per vCPU.
    #[must_use]
    pub fn exits(&self) -> Vec<ExitCounts> {
        self.shared.exits()
    }

    /// Requests to virtio-mem devices since the start, one entry per device. Waits for no device.
    #[must_use]
    pub fn mem_requests(&self) -> Vec<RequestCounts> {
        self.shared.devices.mem.iter().map(|mem| mem.counters.read()).collect()
    }

    /// What the guest wrote to its console, from the byte with the number `from` on, as far as it is kept: see
    /// [`ConsoleWatch::kept`](crate::ConsoleWatch::kept).
    #[must_use]
    pub fn heard(&self, from: u64) -> Heard {
        self.shared.devices.serial.heard(from)
    }

    /// What the guest's kernel told of its own trouble since the last call; nothing without
    /// [`ConsoleWatch::alarms`](crate::ConsoleWatch::alarms).
    #[must_use]
    pub fn take_alarms(&self) -> Alarms {
        self.shared.devices.serial.take_alarms()
    }

    /// Requests to disks since the start, one entry per disk. Waits for no disk.
    #[must_use]
    pub fn disk_requests(&self) -> Vec<DiskCounts> {
        self.shared.devices.disks.iter().map(|disk| disk.counters.read()).collect()
    }

    /// What each vCPU does now. The vCPUs leave the guest for a moment; one that does not within a second is
    /// reported as [`LookResult::Silent`]. Threads that call this at once take turns. For a guest that does not answer.
    #[must_use]
    pub fn vcpus(&self) -> Vec<VcpuReport> {
        let _turn = self.shared.looks.turn();
        let seen = match self.hardware.try_lock() {
            Ok(hardware) => hardware.look(),
            Err(TryLockError::Poisoned(hardware)) => hardware.into_inner().look(),
            Err(TryLockError::WouldBlock) => vec![LookResult::Reset; self.shared.exits.len()],
        };
        look::reports(seen, self.shared.kernel.bytes())
    }

    /// The time now on the clock of all limits of this VM. It stands still while this process is stopped
    /// and while the guest is paused, so the
    /// difference of two times is how long the process ran between them.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.shared.state.now()
    }

    /// Does `work` between two parts of a wait. If the process is stopped meanwhile, the clock of limits stands still as it
    /// does within each part. It also does so for work of more than a second.
    pub fn amid_wait<T>(&self, work: impl FnOnce() -> T) -> T {
        clock::amid_wait(work)
    }

    /// When the VM was first started, on the same clock. A reset does not change it.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.shared.started
    }
}
