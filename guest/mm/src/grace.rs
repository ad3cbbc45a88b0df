//! Grace periods: a CPU waits until every other CPU has been between two steps, where it holds no reference to a page.
//!
//! Mirrors Linux `synchronize_rcu` and its quiescent states: [`Passes::pass`] is `rcu_qs`, and [`Passes::sleep`] and
//! [`Passes::wake`] are `ct_idle_enter` and `ct_idle_exit`. Differs on purpose: a step is not pre-empted, so a reader
//! marks nothing, and the CPU that waits looks at the counts of the others itself.
//!
//! Invariants, which `sync/tests/grace.rs` proves in every execution that loom finds:
//! - A CPU that passes sees what was made invisible before a grace period, or the grace period waits for the step that
//!   follows.
//! - What a CPU did before it passed or slept happens before the end of a grace period that counts on it.

use crate::sync::Ordering::SeqCst;
use crate::sync::{AtomicBool, AtomicU64, fence};

/// The passes of one CPU: how often it was between two steps, and whether it is there now.
pub struct Passes {
    count: AtomicU64,
    idle: AtomicBool,
}

impl Passes {
    /// Those of a CPU that is in a step.
    #[must_use]
    pub const fn new() -> Self {
        Self { count: AtomicU64::new(0), idle: AtomicBool::new(false) }
    }

    /// This CPU holds no reference to a page. What follows is another step.
    #[inline]
    pub fn pass(&self) {
        self.count.fetch_add(1, SeqCst);
        // Pairs with the fence in `synchronize`: either `synchronize` sees this pass, or this pass sees the memory that
        // was made invisible before `synchronize`.
        fence(SeqCst);
    }

    /// This CPU holds no reference to a page until it wakes.
    #[inline]
    pub fn sleep(&self) {
        self.idle.store(true, SeqCst);
    }

    /// This CPU wakes. It passes before its next step.
    #[inline]
    pub fn wake(&self) {
        self.idle.store(false, SeqCst);
    }

    /// Whether the CPU sleeps.
    #[inline]
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.idle.load(SeqCst)
    }

    /// Waits until each of `others`, a CPU with its number, has passed or sleeps. The references to pages that they
    /// held at the call are gone then. `wait` gets the number and returns when the function that it gets is true.
    pub fn synchronize<'a>(
        others: impl Iterator<Item = (usize, &'a Self)>,
        mut wait: impl FnMut(usize, &dyn Fn() -> bool),
    ) {
        // What the caller made invisible is so before this CPU reads the others' passes.
        fence(SeqCst);
        for (index, passes) in others {
            let seen = passes.count.load(SeqCst);
            wait(index, &|| passes.is_idle() || passes.count.load(SeqCst) != seen);
        }
    }
}

impl Default for Passes {
    fn default() -> Self {
        Self::new()
    }
}
