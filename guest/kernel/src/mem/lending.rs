//! Whether free memory is lent to the host, and whether it may be.
//!
//! Memory that is lent can neither be allocated nor go offline before it is back, which takes the host a moment. So
//! whoever needs memory that is not there asks here before it gives up, and whoever takes memory offline has it held
//! back first.
//!
//! Invariant: the job that lends memory runs on the boot CPU, and so do all jobs that take memory offline. So nothing is
//! lent between [`hold`] and the end of the step that called it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::cpu::time::Instant;

/// For so long after the last step that took memory offline nothing is lent: more such steps may follow, and memory
/// that is about to leave need not be reported.
const HOLD_MILLIS: u64 = 200;

static LENT: AtomicBool = AtomicBool::new(false);

/// Until when nothing is lent, in ticks.
static HELD_UNTIL: AtomicU64 = AtomicU64::new(0);

/// Whether memory is lent.
pub fn is_lent() -> bool {
    LENT.load(Ordering::Acquire)
}

/// Records whether memory is lent.
pub fn set_lent(lent: bool) {
    LENT.store(lent, Ordering::Release);
}

/// Has no memory lent for a while. Returns whether none is lent now.
pub fn hold() -> bool {
    HELD_UNTIL.store(Instant::in_millis(HOLD_MILLIS).0, Ordering::Relaxed);
    !is_lent()
}

/// When to look again whether memory that is lent is back: the host takes a moment.
pub fn look_again_at() -> Instant {
    Instant::in_millis(1)
}

/// Until when nothing may be lent.
pub fn held_until() -> Instant {
    Instant(HELD_UNTIL.load(Ordering::Relaxed))
}
