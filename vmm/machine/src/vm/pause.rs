//! A guest that stands still: its vCPUs have left it and wait, until it is resumed.
//!
//! Mirrors Firecracker's `PATCH /vm` and QEMU's `stop`. Differs on purpose: devices serve what is in their queues already,
//! because such work is bounded and a look at the VM should show its result. The guest's time stamp counter runs on.
//!
//! A vCPU thread reads the wish before each entry into the guest. A kick brings it there, and is repeated until the
//! thread has parked, because a kick between the reading and the entry is lost. A parked thread still answers looks and
//! obeys a stop: both wake it, and it parks again if nothing else is asked.
//!
//! Invariant: a thread that is marked as parked does not enter the guest before the guest is resumed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::sync::lock;

/// The wish that the guest stands still, and the threads that obey it.
#[derive(Debug)]
pub(super) struct Pause {
    /// Read without the lock, before each entry into the guest. Written with it.
    wanted: AtomicBool,
    threads: Mutex<Threads>,
    wake: Condvar,
}

#[derive(Debug)]
struct Threads {
    /// By vCPU.
    parked: Vec<bool>,
    /// The VM ends: its guest does not stand still any more.
    barred: bool,
}

impl Pause {
    /// For `vcpus` threads. The guest runs.
    pub(super) fn new(vcpus: usize) -> Self {
        let threads = Threads { parked: vec![false; vcpus], barred: false };
        Self { wanted: AtomicBool::new(false), threads: Mutex::new(threads), wake: Condvar::new() }
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
        }
        !threads.barred
    }

    /// Lets the guest run.
    pub(super) fn end(&self) {
        let mut threads = lock(&self.threads);
        self.wanted.store(false, Ordering::Release);
        threads.parked.fill(false);
        self.wake.notify_all();
    }

    /// Lets the guest run, for good.
    pub(super) fn bar(&self) {
        lock(&self.threads).barred = true;
        self.end();
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
