//! The thread that sizes a VM, and the handle by which others have it do so.
//!
//! The thread is started with the VM, because none can be started later. It sleeps until it is given bounds, until the state of
//! the VM changes, or until the policy wants another look. While there is nothing to size it does not listen to changes.
//!
//! Invariant: the engine is used under its lock, by the thread and by the handles. None of them waits under it.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidevm_autosize::{Bounds, Pace};
use tidevm_machine::{Beside, Changes, Companion, Purpose, VmHandle};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::engine::Engine;
use crate::status::Status;

/// The name of the thread.
const THREAD: &str = "sizer";

const WISHES: u64 = 0;
const CHANGES: u64 = 1;
const OVER: u64 = 2;

/// Has a VM sized. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sizer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pace: Pace,
    sizing: Mutex<Sizing>,
    /// Raised when a handle has changed something.
    wishes: EventFd,
}

/// Whether the VM is sized.
#[derive(Debug)]
enum Sizing {
    Off,
    /// From the start of the VM on.
    Asked(Bounds),
    On(Box<Engine>),
}

impl Sizer {
    /// Sizes nothing yet. With `bounds` it does so from the start of the VM on.
    ///
    /// # Errors
    /// The host provides no descriptor.
    pub fn new(pace: Pace, bounds: Option<Bounds>) -> io::Result<Self> {
        let wishes = EventFd::new(EFD_NONBLOCK)?;
        let sizing = bounds.map_or(Sizing::Off, Sizing::Asked);
        Ok(Self { shared: Arc::new(Shared { pace, sizing: Mutex::new(sizing), wishes }) })
    }

    /// The thread, to be started beside the VM.
    #[must_use]
    pub fn beside(&self) -> Companion {
        let sizer = self.clone();
        let body = move |vm: VmHandle, beside: Beside| {
            if let Err(error) = sizer.serve(&vm, beside) {
                log::error!("the machine is not sized any more: {error}");
            }
        };
        Companion { name: THREAD, purpose: Purpose::Watch, body: Box::new(body) }
    }

    /// Sizes `vm` within `bounds` from now on, whatever was set before. A hold ends.
    pub fn start(&self, vm: &VmHandle, bounds: Bounds) {
        let mut sizing = self.lock();
        match &mut *sizing {
            Sizing::On(engine) => engine.set_bounds(bounds, self.shared.pace, vm),
            Sizing::Off | Sizing::Asked(_) => *sizing = self.engine(vm, bounds),
        }
        drop(sizing);
        self.tell();
    }

    /// Leaves the size of the VM alone from now on.
    pub fn stop(&self) {
        let mut sizing = self.lock();
        match &mut *sizing {
            Sizing::On(engine) => engine.end(),
            Sizing::Off | Sizing::Asked(_) => *sizing = Sizing::Off,
        }
        drop(sizing);
        self.tell();
    }

    /// Leaves the present target of `vm` in force until [`Sizer::release`].
    pub fn hold(&self, vm: &VmHandle) {
        self.change(|engine| engine.hold(vm));
    }

    /// Ends a hold.
    pub fn release(&self, vm: &VmHandle) {
        self.change(|engine| engine.release(vm));
    }

    /// How `vm` is sized, if it is.
    #[must_use]
    pub fn status(&self, vm: &VmHandle) -> Option<Status> {
        match &mut *self.lock() {
            Sizing::On(engine) => engine.status(vm),
            Sizing::Off | Sizing::Asked(_) => None,
        }
    }

    fn engine(&self, vm: &VmHandle, bounds: Bounds) -> Sizing {
        Sizing::On(Box::new(Engine::new(bounds, self.shared.pace, vm)))
    }

    /// Has the engine change, if there is one.
    fn change(&self, change: impl FnOnce(&mut Engine)) {
        if let Sizing::On(engine) = &mut *self.lock() {
            change(engine);
        }
        self.tell();
    }

    /// Wakes the thread.
    fn tell(&self) {
        // Fails when the counter is full. The event is raised then.
        if let Err(error) = self.shared.wishes.write(1) {
            log::debug!("event: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sizing> {
        self.shared.sizing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, vm: &VmHandle, beside: Beside) -> io::Result<()> {
        let mut ears = Ears::new(vm.subscribe()?, &self.shared.wishes)?;
        let mut sizing = self.lock();
        if let Sizing::Asked(bounds) = *sizing {
            *sizing = self.engine(vm, bounds);
        }
        drop(sizing);
        let Some(over) = beside.lock_in() else { return Ok(()) };
        ears.add(&over, OVER)?;
        loop {
            let (on, wait) = match &mut *self.lock() {
                Sizing::On(engine) => {
                    let wait = engine.turn(vm);
                    (engine.is_on(), wait)
                }
                Sizing::Off | Sizing::Asked(_) => (false, None),
            };
            ears.hear_changes(on)?;
            if ears.wait(wait, &self.shared.wishes)? {
                return Ok(());
            }
        }
    }
}

/// What the thread listens to.
struct Ears {
    epoll: Epoll,
    changes: Changes,
    changes_heard: bool,
}

impl Ears {
    fn new(changes: Changes, wishes: &EventFd) -> io::Result<Self> {
        let ears = Self { epoll: Epoll::new()?, changes, changes_heard: false };
        ears.add(wishes, WISHES)?;
        Ok(ears)
    }

    fn add(&self, source: &impl AsRawFd, data: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, data);
        self.epoll.ctl(ControlOperation::Add, source.as_raw_fd(), event)
    }

    /// Listens to changes of the VM, or not.
    fn hear_changes(&mut self, hear: bool) -> io::Result<()> {
        if hear != self.changes_heard {
            let operation = if hear { ControlOperation::Add } else { ControlOperation::Delete };
            let event = EpollEvent::new(EventSet::IN, CHANGES);
            self.epoll.ctl(operation, self.changes.as_raw_fd(), event)?;
            self.changes_heard = hear;
        }
        Ok(())
    }

    /// Waits until something happens, at most `limit`. Returns whether the VM ends.
    fn wait(&self, limit: Option<Duration>, wishes: &EventFd) -> io::Result<bool> {
        // A millisecond more, so that the time is over then.
        let millis = limit.map_or(-1, |limit| i32::try_from(limit.as_millis() + 1).unwrap_or(i32::MAX));
        let mut ready = [EpollEvent::default(); 3];
        let count = match self.epoll.wait(millis, &mut ready) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let raised = |data| ready[..count].iter().any(|event| event.data() == data);
        if raised(CHANGES) {
            self.changes.clear();
        }
        if raised(WISHES) {
            // Fails when nothing was wished.
            drop(wishes.read());
        }
        Ok(raised(OVER))
    }
}
