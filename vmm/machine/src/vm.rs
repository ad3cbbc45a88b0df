//! A running VM: start, resize, call, wait, stop.
//!
//! | file | is |
//! | --- | --- |
//! | `start` | the order in which a VM is made |
//! | `apart` | a VM and its session in a thread of their own |
//! | `shared` | the parts that all threads of the VM share, and that live as long as the VM |
//! | `hardware` | the machine of KVM and its vCPUs; a reset makes them anew |
//! | `kvm_run` | what the last `KVM_RUN` left in the page shared with KVM |
//! | `devices` | the devices, and the event descriptors that connect them |
//! | `vcpu`, `exits` | one thread per vCPU; why it left the guest, counted |
//! | `look` | what the vCPUs do, for a report on a guest that does not answer |
//! | `events` | the event loop |
//! | `signals` | the thread for termination signals |
//! | `console` | where the serial port leads |

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Call, Op, Size};
use virtio_mem::device::ResizeError as DeviceError;

use crate::clock;
use crate::config::Config;
use crate::death::{Death, DeathKind, text};
use crate::error::StartError;
use crate::process::{BlockedSignals, Terminal};
use crate::state::{State, WaitError};
use crate::sync::lock;
use crate::virtio::control::{CallsQueueFull, MAX_UNREAD};

mod apart;
mod console;
mod devices;
mod events;
mod exits;
mod hardware;
mod kvm_run;
mod look;
mod shared;
mod signals;
mod start;
mod vcpu;

use events::EventLoop;
use hardware::Hardware;
use shared::VmShared;

pub use exits::ExitCounts;
pub use look::{Activity, LookResult, VcpuReport, VcpuState};
pub use vcpu::STOP_LIMIT;

/// Id of the first call. The guest answers with id 0 when it cannot read a call.
const FIRST_CALL: u32 = 1;

/// A running VM. Dropping it ends the guest at once; [`Vm::stop`] asks the guest to power off first.
///
/// As long as a VM lives, SIGHUP, SIGINT, SIGQUIT and SIGTERM do not act on the process. The first of them
/// ends every wait with [`WaitError::Signal`]. From then on the process has [`GRACE`](crate::GRACE) to end by
/// itself. After that, or at the next such signal, it is ended with status 128 + signal. The same signal within
/// a second of the first is not the next one, because `timeout` sends its signal twice.
#[derive(Debug)]
pub struct Vm {
    shared: Arc<VmShared>,
    hardware: Arc<Mutex<Hardware>>,
    next_call: AtomicU32,
    // Dropped in this order, after the vCPUs have ended.
    _events: EventLoop,
    _signal_loop: EventLoop,
    _terminal: Option<Arc<Terminal>>,
    _signals: BlockedSignals,
}

/// Why a target was refused; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// There is no such device.
    #[error("there is no hotplug device {device}: the machine has {count}")]
    NoDevice {
        /// Index of the requested device.
        device: usize,
        /// The number of devices.
        count: usize,
    },
    /// The target is not made of device blocks.
    #[error("{requested} is not a multiple of the device block, {block}")]
    Unaligned {
        /// The target.
        requested: Size,
        /// The device block.
        block: Size,
    },
    /// The target is larger than the region.
    #[error("{requested} does not fit into the region of {region_size}")]
    TooLarge {
        /// The target.
        requested: Size,
        /// The region.
        region_size: Size,
    },
}

/// The machine was configured to be started once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine was not made to be reset: Config::resets and Config::reboot are off")]
pub struct ResetRefused;

/// The guest has not read the earlier calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has left {unread} calls unread")]
pub struct CallsUnread {
    /// The number of calls that wait.
    pub unread: usize,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off.
    PoweredOff,
    /// The guest did not power off, and the VMM ended it.
    Forced {
        /// Whether the guest had been asked to power off. A guest that is still starting, or starts again, is
        /// not asked.
        asked: bool,
        /// The vCPUs of a guest that was asked and did not answer, before it was ended.
        vcpus: Vec<VcpuReport>,
    },
    /// The guest died.
    Died(Death),
}

impl Vm {
    /// Starts a VM. Returns when its vCPUs run; wait for [`State::ready`] next. With [`Config::confinement`] the
    /// calling thread can do little else from then on: see [`Vm::apart`].
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind, except that the thread may be locked in.
    pub fn start(config: Config) -> Result<Self, StartError> {
        start::start(config)
    }

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

    /// Sends a call to the guest and returns its id for [`Vm::answer`].
    ///
    /// # Errors
    /// [`CallsUnread`] when the guest does not read its calls.
    pub fn call(&self, op: Op) -> Result<u32, CallsUnread> {
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
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

    /// Sets a device's target and has the guest told. Returns at once, also while the device serves requests;
    /// the state shows the guest's progress.
    ///
    /// # Errors
    /// [`ResizeError`]; nothing changed.
    pub fn resize(&self, device: usize, requested: Size) -> Result<(), ResizeError> {
        let devices = &self.shared.devices.mem;
        let count = devices.len();
        let mem = devices.get(device).ok_or(ResizeError::NoDevice { device, count })?;
        mem.target.set(&mem.device, requested).map_err(|error| match error {
            DeviceError::Misaligned { block_size } => {
                ResizeError::Unaligned { requested, block: Size(block_size) }
            }
            DeviceError::BeyondRegion { region_size } => {
                ResizeError::TooLarge { requested, region_size: Size(region_size) }
            }
        })?;
        self.shared.check_budget();
        Ok(())
    }

    /// Resets the machine as its reset button does (QEMU's `system_reset`), also without [`Config::reboot`], which is
    /// about resets that the guest makes. Returns at once. When [`State::resets`] rises, the guest starts again with
    /// fresh memory: nothing is plugged, and the devices request what they requested. Calls that were not answered
    /// end. Requests before that moment are one reset. A guest that has ended stays so.
    ///
    /// # Errors
    /// [`ResetRefused`]; nothing changed.
    pub fn reset(&self) -> Result<(), ResetRefused> {
        if !self.shared.config.can_reset() {
            return Err(ResetRefused);
        }
        self.shared.state.want_reset();
        self.shared.tell_of_reset();
        Ok(())
    }

    /// The host memory that a device's region really holds, resident and swapped out. To ask for several
    /// devices, use [`Vm::held_by_each`]: the host's answer is about all of them.
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

    /// Whether the kernel is tidevm's own guest. Other kernels do not report and do not answer calls.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.shared.kernel.is_own_guest()
    }

    /// Exits since the start, one entry per vCPU.
    #[must_use]
    pub fn exits(&self) -> Vec<ExitCounts> {
        self.shared.exits()
    }

    /// What each vCPU does now. The vCPUs leave the guest for a moment; one that does not within a second is
    /// reported as [`LookResult::Silent`]. For a guest that does not answer.
    #[must_use]
    pub fn vcpus(&self) -> Vec<VcpuReport> {
        let seen = match self.hardware.try_lock() {
            Ok(hardware) => hardware.look(),
            Err(TryLockError::Poisoned(hardware)) => hardware.into_inner().look(),
            Err(TryLockError::WouldBlock) => vec![LookResult::Reset; self.shared.exits.len()],
        };
        look::reports(seen, self.shared.kernel.bytes())
    }

    /// The time now on the clock of all limits of this VM. It stands still while this process is stopped, so the
    /// difference of two times is how long the process ran between them.
    #[must_use]
    pub fn now(&self) -> Instant {
        clock::now()
    }

    /// Ends the VM: asks the guest to power off, waits at most `limit`, then ends it. A guest that resets instead
    /// has died: [`DeathKind::ResetAtEnd`].
    #[must_use]
    pub fn stop(self, limit: Duration) -> End {
        // Looked at first: a reset of the embedder that is over shows in the state.
        let resets_now = self.shared.state.wants_reset();
        let State { ready, resets, .. } = self.state();
        // A guest that is not up yet does not read calls, and has no state to lose.
        let asked = !resets_now && ready.is_some() && self.call(Op::PowerOff).is_ok();
        let mut vcpus = Vec::new();
        if asked && !self.shared.state.wait_for_end(limit, resets) {
            vcpus = self.vcpus();
        }
        self.end();
        self.find_unseen_reset(asked, resets);
        let state = self.shared.state.snapshot();
        match state.death {
            Some(death) => End::Died(death),
            None if state.powered_off => End::PoweredOff,
            None => End::Forced { asked, vcpus },
        }
    }

    /// Records a reset that the guest made of the end, after `resets` earlier ones. The vCPUs have ended, so the event
    /// loop may not have come to it.
    fn find_unseen_reset(&self, asked: bool, resets: u64) {
        let due = self.shared.reset_due.load(Ordering::Acquire);
        let kind = if due && !self.shared.config.reboot {
            DeathKind::UnwantedReset
        } else if asked && (due || self.state().resets != resets) {
            DeathKind::ResetAtEnd
        } else {
            return;
        };
        let text = text::last_lines(&self.shared.bus.serial_tail());
        self.shared.state.change(|state| state.died(Death { kind, text }));
    }

    /// Ends the vCPUs, for good.
    fn end(&self) {
        // Set before the lock is taken, because a reset holds the lock while it works, and stops when it sees
        // this.
        self.shared.over.store(true, Ordering::Release);
        lock(&self.hardware).end();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.end();
        self.shared.devices.serial.flush();
    }
}

#[cfg(test)]
mod tests;
