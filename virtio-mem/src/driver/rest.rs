//! When the driver rests, why, and how long.
//!
//! Linux waits 50 s and doubles that to 300 s. Here the pause is short, doubles while nothing is
//! gained and starts over with the first gain. The driver has no clock: a pause is a suggestion to
//! its caller.

use super::Driver;

/// The first pause, in milliseconds.
const FIRST_PAUSE_MS: u32 = 100;

/// The longest pause, in milliseconds.
const LONGEST_PAUSE_MS: u32 = 5000;

/// How often the pause doubles, until it is the longest.
const DOUBLINGS: u32 = (LONGEST_PAUSE_MS / FIRST_PAUSE_MS).next_power_of_two().ilog2();

/// Why the driver cannot go on, or a step of it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The host cannot do it now, or wants less than it said.
    HostBusy,
    /// Pages that cannot be moved are in the way.
    Unmovable,
    /// The guest lacks memory for its own bookkeeping: page tables, memmap.
    NoMemory,
    /// When shrinking, there is no memory to move pages to; when growing, no usable block is left.
    NoRoom,
    /// The device broke the rules, or does not answer.
    DeviceError,
}

impl Why {
    /// Whether the guest itself notices when the cause may be gone.
    const fn is_of_the_guest(self) -> bool {
        match self {
            Why::Unmovable | Why::NoMemory | Why::NoRoom => true,
            Why::HostBusy | Why::DeviceError => false,
        }
    }
}

/// The driver has nothing to do, until [`Driver::config_changed`] or [`Driver::retry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// What is plugged is what was requested.
    Reached,
    /// Call [`Driver::retry`] after so many milliseconds, or earlier when memory was freed and the
    /// reason is one of the guest's own.
    Retry {
        /// Milliseconds from now.
        after_ms: u32,
        /// What went wrong.
        why: Why,
    },
    /// Trying again later will not help. Call [`Driver::retry`] when memory was freed.
    Blocked(Why),
}

/// How long to pause, and whether at all.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    /// Retries since something was gained.
    retries: u32,
    /// Whether memory was freed while the driver was busy: a failure may be out of date.
    pub(super) stale: bool,
}

impl BackOff {
    /// Something was gained, or is newly wanted.
    pub(super) const fn start_over(&mut self) {
        self.retries = 0;
    }

    /// A pause ends.
    pub(super) const fn retry(&mut self) {
        self.retries = self.retries.saturating_add(1);
    }

    /// Rests because of `why`: for a time, or when that was tried often enough and the guest will
    /// notice a change, for good.
    pub(super) const fn rest(&self, why: Why) -> Rest {
        if self.retries > DOUBLINGS && why.is_of_the_guest() && !self.stale {
            return Rest::Blocked(why);
        }
        let doublings = if self.retries < DOUBLINGS { self.retries } else { DOUBLINGS };
        let pause = FIRST_PAUSE_MS << doublings;
        Rest::Retry { after_ms: if pause < LONGEST_PAUSE_MS { pause } else { LONGEST_PAUSE_MS }, why }
    }
}

impl Driver {
    /// Nothing more can be done in this pass.
    pub(super) fn rest(&mut self) -> Rest {
        if self.region.plugged() == self.requested_blocks() {
            self.back_off.start_over();
            return Rest::Reached;
        }
        match self.failed {
            Some(why) => self.back_off.rest(why),
            // Nothing went wrong: the usable region is full, though more is requested.
            None => Rest::Blocked(Why::NoRoom),
        }
    }
}
