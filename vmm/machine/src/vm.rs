//! A running VM: start, resize, call, wait, stop.
//!
//! | file | is |
//! | --- | --- |
//! | `handle` | what several threads may do with a VM at once |
//! | `start` | the order in which a VM is made |
//! | `apart` | a VM and its session in a thread of their own |
//! | `shared` | the parts that all threads of the VM share, and that live as long as the VM |
//! | `hardware` | the machine of KVM and its vCPUs; a reset makes them anew |
//! | `kvm_run` | what the last `KVM_RUN` left in the page shared with KVM |
//! | `devices` | the devices, and the event descriptors that connect them |
//! | `vcpu`, `exits` | one thread per vCPU; why it left the guest, counted |
//! | `sipi` | the wait of a vCPU for its start by another one |
//! | `look` | what the vCPUs do, for a report on a guest that does not answer |
//! | `events` | the event loop |
//! | `disks` | the threads of the disks |
//! | `input` | input for the serial port, and the keys that are for the VMM |
//! | `signals` | the thread for termination signals |
//! | `companion` | threads of the embedder that are locked in with the VM |
//! | `pause` | a guest that stands still |
//! | `saver`, `save` | where a machine can be saved, and the states of its vCPUs; what is saved when |
//! | `restore` | in which order the parts of a snapshot come back |
//! | `console` | where the serial port leads |

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidevm_abi::{Op, Size};

use crate::config::Config;
use crate::death::{Death, DeathKind, text};
use crate::error::StartError;
use crate::process::{BlockedSignals, Terminal};
use crate::state::State;
use crate::sync::lock;

mod apart;
mod companion;
mod console;
mod devices;
mod disks;
mod events;
mod exits;
mod handle;
mod hardware;
mod input;
mod kvm_run;
mod look;
mod pause;
mod restore;
mod save;
mod saver;
mod shared;
mod signals;
mod sipi;
mod start;
mod vcpu;

use events::EventLoop;

pub use companion::{Beside, Companion, Purpose};
pub use exits::ExitCounts;
pub use handle::{IntervalRefused, NoStatistics, Nudger, VmHandle};
pub use look::{Activity, LookResult, VcpuReport, VcpuState};
pub use vcpu::STOP_LIMIT;

/// A running VM. Dropping it ends the guest at once; [`Vm::stop`] asks the guest to power off first.
///
/// As long as a VM lives, SIGHUP, SIGINT, SIGQUIT and SIGTERM do not act on the process. The first of them
/// ends every wait with [`WaitError::Signal`]. From then on the process has [`GRACE`](crate::GRACE) to end by
/// itself. After that, or at the next such signal, it is ended with status 128 + signal. The same signal within
/// a second of the first is not the next one, because `timeout` sends its signal twice.
#[derive(Debug)]
pub struct Vm {
    handle: VmHandle,
    // Dropped in this order, after the vCPUs have ended.
    _companions: Vec<companion::Running>,
    _disks: Vec<disks::DiskThread>,
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

/// The guest has ended, or the VM is being ended: nothing can stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has ended, or is being ended")]
pub struct NothingToPause;

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
        Self::start_with(config, Vec::new())
    }

    /// [`Vm::start`], with `companions`: threads that run beside the VM, locked in with it, until it ends.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind, except that the thread may be locked in.
    pub fn start_with(config: Config, companions: Vec<Companion>) -> Result<Self, StartError> {
        start::start(config, companions)
    }

    /// A handle of this VM, for a thread beside the one that ends it.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        self.handle.clone()
    }

    /// Ends the VM: asks the guest to power off, waits at most `limit`, then ends it. A guest that resets instead
    /// has died: [`DeathKind::ResetAtEnd`].
    #[must_use]
    pub fn stop(self, limit: Duration) -> End {
        // A guest that stands still cannot power off.
        self.resume_to_end();
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

impl Deref for Vm {
    type Target = VmHandle;

    fn deref(&self) -> &VmHandle {
        &self.handle
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
