//! A guest that stands still: its vCPUs have left it and wait, until it is resumed.
//!
//! Mirrors Firecracker's `PATCH /vm` and QEMU's `stop`. Differs on purpose: devices serve what is in their queues already,
//! because such work is bounded and a look at the VM should show its result. The guest's time stamp counter runs on.
//!
//! A vCPU thread reads the wish before each entry into the guest. A kick brings it there, and is repeated until the
//! thread has parked, because a kick between the reading and the entry is lost. Before it parks, the thread lets KVM
//! complete the last exit of its vCPU (`super::vcpu`). A parked thread still answers looks and saves and obeys a stop: each
//! wakes it, and it parks again if nothing else is asked.
//!
//! A reset of the guest is carried out while it stands still, as QEMU's `system_reset` is, and the new guest stands still
//! too: its vCPUs find the wish before they enter it for the first time.
//!
//! Invariants:
//!
//! - A thread that is marked as parked does not enter the guest before the guest is resumed.
//! - [`State::paused`](crate::State::paused) is the wish, because both change under the lock of the threads. If they
//!   differed, a guest could stand still while the limits of all waits pass.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::state::SharedState;
use crate::sync::lock;

/// The wish that the guest stands still, and the threads that obey it.
#[derive(Debug)]
pub(super) struct Pause {
    /// Read without the lock, before each entry into the guest. Written with it.
    wanted: AtomicBool,
    threads: Mutex<Threads>,
    wake: Condvar,
    /// Told of the wish under the lock of `threads`. Its own locks are taken after that one.
    state: Arc<SharedState>,
}

#[derive(Debug)]
struct Threads {
    /// By vCPU.
    parked: Vec<bool>,
    /// The VM ends: its guest does not stand still any more.
    barred: bool,
}

impl Pause {
    /// For `vcpus` threads of the guest with `state`. The guest runs.
    pub(super) fn new(vcpus: usize, state: Arc<SharedState>) -> Self {
        let threads = Threads { parked: vec![false; vcpus], barred: false };
        Self { wanted: AtomicBool::new(false), threads: Mutex::new(threads), wake: Condvar::new(), state }
    }

    /// Called by the thread of vCPU `index` before each entry into the guest. Returns whether it waited; then the
    /// thread asks again for everything that may keep it out of the guest.
    pub(super) fn hold(&self, index: usize) -> bool {
        // Pairs with the store of `begin`.
        if !self.wanted.load(Ordering::Acquire) {
            return false;
        }
        let mut threads = lock(&self.threads);
        if !self.wanted.load(Ordering::Relaxed) {
            return false;
        }
        threads.parked[index] = true;
        drop(self.wake.wait(threads).unwrap_or_else(PoisonError::into_inner));
        true
    }

    /// Has the guest stand still from now on. Returns whether it may.
    pub(super) fn begin(&self) -> bool {
        let threads = lock(&self.threads);
        if !threads.barred {
            self.wanted.store(true, Ordering::Release);
            self.state.set_paused(true);
        }
        !threads.barred
    }

    /// Lets the guest run.
    pub(super) fn end(&self) {
        self.release(&mut lock(&self.threads));
    }

    /// Lets the guest run, for good.
    pub(super) fn bar(&self) {
        let mut threads = lock(&self.threads);
        threads.barred = true;
        self.release(&mut threads);
    }

    fn release(&self, threads: &mut Threads) {
        self.wanted.store(false, Ordering::Release);
        threads.parked.fill(false);
        self.wake.notify_all();
        self.state.set_paused(false);
    }

    /// Whether the guest is to stand still.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    /// Whether the thread of vCPU `index` has parked.
    pub(super) fn is_parked(&self, index: usize) -> bool {
        lock(&self.threads).parked[index]
    }

    /// Has parked threads ask again for everything that may keep them out of the guest.
    pub(super) fn look_up(&self) {
        drop(lock(&self.threads));
        self.wake.notify_all();
    }
}
