//! Threads of the embedder that run beside a VM and are locked in with it: a control plane, for instance.
//!
//! A VM is locked in before its guest runs, and from then on no thread can be started and no file opened. So a thread that is
//! to serve others meanwhile is started with the VM. It opens what it needs, passes [`Beside::lock_in`], and serves.
//!
//! Invariant: every companion is locked in before the guest runs, and has ended when the VM is dropped, except one that
//! reads: a read of a terminal or a pipe need not end.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::VmHandle;
use super::devices::{event, share};
use crate::confine::rules::Kind;
use crate::confine::thread::{Gate, spawn};
use crate::error::StartError;

/// What a companion is for. It decides which system calls the thread keeps, and whether the VM waits for its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It serves the clients of a control plane, whose socket it has opened. It returns soon after the event of
    /// [`Beside::lock_in`], because the VM waits for that.
    Serve,
    /// It uses the VM and waits for events, and ends as one that serves does.
    Watch,
    /// It reads what a person or a program types. The VM does not wait for it.
    Read,
}

/// A thread that runs beside a VM.
pub struct Companion {
    /// The name of the thread, of at most 15 bytes.
    pub name: &'static str,
    /// What it is for.
    pub purpose: Purpose,
    /// What it does.
    pub body: Box<dyn FnOnce(VmHandle, Beside) + Send>,
}

impl fmt::Debug for Companion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Companion").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a companion passes when it has opened all that it needs.
#[derive(Debug)]
pub struct Beside {
    gate: Gate,
    over: EventFd,
}

impl Beside {
    /// Locks the thread in, and lets the VM start. Returns the event that is raised when the VM ends. `None` when the thread
    /// could not be locked in; then it has to return, and the VM does not start.
    #[must_use]
    pub fn lock_in(self) -> Option<EventFd> {
        self.gate.pass().then_some(self.over)
    }
}

/// A companion that runs. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Running {
    /// `None` for one that is not waited for.
    thread: Option<JoinHandle<()>>,
    over: EventFd,
}

/// Starts `companion` beside the VM of `vm`, locked in.
///
/// # Errors
/// The host provides no thread or descriptor, or the thread was not locked in.
pub(super) fn start(companion: Companion, vm: &VmHandle) -> Result<Running, StartError> {
    let over = event()?;
    let raised = share(&over)?;
    let Companion { name, purpose, body } = companion;
    let vm = vm.clone();
    let confinement = vm.config().confinement;
    let serve = move |gate| {
        // The VM does without a companion that panicked.
        if catch_unwind(AssertUnwindSafe(|| body(vm, Beside { gate, over: raised }))).is_err() {
            log::error!("the thread {name} beside the VM panicked; nothing answers there any more");
        }
    };
    let kind = match purpose {
        Purpose::Serve => Kind::Api,
        Purpose::Watch => Kind::Sizer,
        Purpose::Read => Kind::Input,
    };
    let thread = spawn("start a thread beside the VM", name.to_owned(), confinement, kind, serve)?;
    Ok(Running { thread: (purpose != Purpose::Read).then_some(thread), over })
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.over.write(1) {
            log::error!("a thread beside the VM cannot be stopped: {error}");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // Panics were caught and reported in the thread itself.
            drop(thread.join());
        }
    }
}
