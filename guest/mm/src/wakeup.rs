//! Wake-ups: a CPU without work halts, and who has work for it gets it out of the halt.
//!
//! Mirrors Linux's `TIF_NEED_RESCHED` and `TIF_POLLING_NRFLAG`: a flag says that there is work, and only a CPU that
//! sleeps needs an interrupt. Differs on purpose: the flag names no work, so a CPU looks at all of its own.
//!
//! Invariants, which `sync/tests/wakeup.rs` proves in every execution that loom finds:
//! - Work is seen by a pass, or its CPU does not halt, or [`Wakeup::ring`] says that the CPU needs an interrupt.
//! - A pass that takes the flag back sees the work of each [`Wakeup::raise`] before.

use crate::grace::Passes;
use crate::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::{AtomicBool, fence};

/// Whether there may be work for one CPU that it has not looked at.
pub struct Wakeup {
    pending: AtomicBool,
}

impl Wakeup {
    /// That of a CPU which has looked at all its work.
    #[must_use]
    pub const fn new() -> Self {
        Self { pending: AtomicBool::new(false) }
    }

    /// There is work for the CPU. It goes through its work once more, if it does not sleep.
    #[inline]
    pub fn raise(&self) {
        // Not a store, which would end what an earlier caller published by its own.
        self.pending.swap(true, Release);
    }

    /// As [`raise`](Self::raise), by another CPU. Returns whether the CPU, whose passes are `passes`, may sleep, so that it
    /// needs an interrupt.
    #[inline]
    #[must_use]
    pub fn ring(&self, passes: &Passes) -> bool {
        self.raise();
        // Pairs with the fence in `may_halt`: either this CPU sees that the other one sleeps, or that one sees the flag.
        fence(SeqCst);
        passes.is_idle()
    }

    /// This CPU is about to look at all its work.
    #[inline]
    pub fn begin_pass(&self) {
        // The flag goes before the work is looked at, or a flag for work that comes meanwhile would go unseen.
        self.pending.swap(false, Acquire);
    }

    /// This CPU, whose passes are `passes`, has no more work: it sleeps from now on. Returns whether it may halt. Interrupts
    /// are off, so that one that comes now ends the halt.
    #[inline]
    #[must_use]
    pub fn may_halt(&self, passes: &Passes) -> bool {
        passes.sleep();
        fence(SeqCst);
        !self.pending.load(Relaxed)
    }
}

impl Default for Wakeup {
    fn default() -> Self {
        Self::new()
    }
}
