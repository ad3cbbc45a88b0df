//! The steps of a CPU: a grace period ends when every other CPU has been between two of them.
//!
//! Invariant: two threads do not take steps of one CPU at the same time.

use core::ptr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use tidevm_mm::hosted::{with_cpu, yield_now};

/// The steps of one CPU. They nest: the use of per-CPU lists is a step, alone or in a step of the job loop.
pub(super) struct Steps {
    /// How often it began or ended a step. It is in one while this is odd.
    count: AtomicU64,
    /// The thread that takes the step, or 0.
    thread: AtomicUsize,
    depth: AtomicU64,
}

impl Steps {
    pub(super) const fn new() -> Self {
        Self { count: AtomicU64::new(0), thread: AtomicUsize::new(0), depth: AtomicU64::new(0) }
    }

    /// A number of this thread.
    fn this_thread() -> usize {
        with_cpu(|own| ptr::from_ref(own).addr())
    }

    /// Begins a step of this thread.
    pub(super) fn begin(&self) {
        let this = Self::this_thread();
        if self.depth.load(SeqCst) == 0 {
            let before = self.thread.compare_exchange(0, this, SeqCst, SeqCst);
            assert!(before.is_ok(), "two threads are one CPU");
            self.count.fetch_add(1, SeqCst);
        }
        assert_eq!(self.thread.load(SeqCst), this, "two threads are one CPU");
        self.depth.fetch_add(1, SeqCst);
    }

    pub(super) fn end(&self) {
        if self.depth.fetch_sub(1, SeqCst) == 1 {
            self.thread.store(0, SeqCst);
            self.count.fetch_add(1, SeqCst);
        }
    }

    /// Whether no thread but this one takes a step.
    pub(super) fn are_own(&self) -> bool {
        [0, Self::this_thread()].contains(&self.thread.load(SeqCst))
    }

    /// Waits until the CPU has been between two steps.
    pub(super) fn synchronize(&self) {
        let seen = self.count.load(SeqCst);
        while seen % 2 == 1 && self.count.load(SeqCst) == seen {
            yield_now();
        }
    }

    /// As if a step that is under way ended here and another one began.
    pub(super) fn pass(&self) {
        if self.count.load(SeqCst) % 2 == 1 {
            self.count.fetch_add(2, SeqCst);
        }
    }
}
