//! Idle times: why the driver stops, and when it tries again.
//!
//! Mirrors the retry timer of Linux's `virtio_mem.c`, which starts at 50 s and doubles up to 300 s. Differs on
//! purpose: the first pause is 100 ms. Pauses double while nothing is gained, and start over with the first
//! gain. After enough pauses the driver waits for the guest to report freed memory, where that can help. The
//! driver has no clock: its caller measures the pause.

use core::fmt;

use super::Driver;

/// The first pause, in milliseconds.
const FIRST_PAUSE_MS: u32 = 100;

/// The longest pause, in milliseconds.
const LONGEST_PAUSE_MS: u32 = 5000;

/// Number of doublings from the first pause to the longest.
const DOUBLINGS: u32 = (LONGEST_PAUSE_MS / FIRST_PAUSE_MS).next_power_of_two().ilog2();

/// Why the driver is idle before it has reached its target, or why an action failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdleReason {
    /// The host cannot do it at the moment, or has lowered the requested size.
    HostBusy,
    /// The range has pages that cannot be moved.
    Unmovable,
    /// The guest has no memory for page tables or a memmap.
    NoMemory,
    /// When shrinking: there is no memory to move pages to. When growing: no usable device block is left.
    NoRoom,
    /// The device violated the specification, or does not answer.
    DeviceError,
    /// What is left is less than the guest can take in.
    Granularity,
}

impl fmt::Display for IdleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IdleReason::HostBusy => "the host cannot do it at the moment, or wants less",
            IdleReason::Unmovable => "pages in the range cannot be moved",
            IdleReason::NoMemory => "the guest has no memory for page tables or a memmap",
            IdleReason::NoRoom => "there is no memory to move pages to, or no usable block is left",
            IdleReason::DeviceError => "the device violated the specification, or does not answer",
            IdleReason::Granularity => "what is left is less than the guest can take in",
        })
    }
}

impl core::error::Error for IdleReason {}

impl IdleReason {
    /// Whether the guest notices when the cause may be gone, and then calls [`Driver::retry`].
    const fn guest_notices_end(self) -> bool {
        match self {
            IdleReason::Unmovable | IdleReason::NoMemory | IdleReason::NoRoom => true,
            IdleReason::HostBusy | IdleReason::DeviceError | IdleReason::Granularity => false,
        }
    }
}

/// The driver has nothing to do, until [`Driver::config_changed`] or [`Driver::retry`]. A guest that did not know one of these
/// might wait for ever, so the enum is exhaustive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// The plugged size is the requested size.
    Reached,
    /// Call [`Driver::retry`] after `after_ms` milliseconds, or earlier when memory was freed and `reason` is a
    /// shortage of the guest.
    Retry {
        /// Milliseconds from now.
        after_ms: u32,
        /// The last failure.
        reason: IdleReason,
    },
    /// Time alone will not help. Call [`Driver::retry`] when memory was freed.
    Blocked(IdleReason),
    /// The guest has given up all memory blocks: see [`Driver::detach`].
    Detached,
}

/// The length of the next pause.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    /// Retries since the last gain.
    retries: u32,
    /// Whether memory was freed while an action was under way: a failure of that action may be out of date.
    pub(super) stale: bool,
}

impl BackOff {
    /// Something was gained, or the target has changed: the next pause is the first again.
    pub(super) const fn start_over(&mut self) {
        self.retries = 0;
    }

    /// A pause ends.
    pub(super) const fn retry(&mut self) {
        self.retries = self.retries.saturating_add(1);
    }

    /// Idles for a time because of `reason`. After enough retries it idles without a time limit, provided that the
    /// guest notices when `reason` may be gone.
    pub(super) const fn idle(&self, reason: IdleReason) -> Idle {
        if self.retries > DOUBLINGS && reason.guest_notices_end() && !self.stale {
            return Idle::Blocked(reason);
        }
        let doublings = if self.retries < DOUBLINGS { self.retries } else { DOUBLINGS };
        let pause = FIRST_PAUSE_MS << doublings;
        Idle::Retry { after_ms: if pause < LONGEST_PAUSE_MS { pause } else { LONGEST_PAUSE_MS }, reason }
    }
}

impl Driver {
    /// Ends the pass: no further action is possible.
    pub(super) fn idle(&mut self) -> Idle {
        if self.region.plugged() == self.requested_blocks() {
            self.back_off.start_over();
            let is_reached = self.plugged_size() == self.config.requested_size;
            return if is_reached { Idle::Reached } else { Idle::Blocked(IdleReason::Granularity) };
        }
        match self.failed {
            Some(reason) => self.back_off.idle(reason),
            // Without a failure, the usable region is full although more is requested.
            None => Idle::Blocked(IdleReason::NoRoom),
        }
    }
}
