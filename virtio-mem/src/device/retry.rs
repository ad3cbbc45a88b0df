//! When to tell a driver that was answered BUSY to try again.
//!
//! A Linux driver that was answered BUSY waits for 50 s, and then up to 300 s. A config notification makes it look at
//! once, and a device may send one when nothing has changed. So the device asks its host for one after a pause. The pause
//! doubles from 100 ms to 5 s while the host stays unable, because each try costs the guest and the host. It starts over with
//! the first success, and when the host knows that the cause is gone. The device has no clock: its caller measures the
//! pause.

use super::Device;

/// The first pause, in milliseconds.
const FIRST_MS: u32 = 100;

/// The longest pause, in milliseconds.
const LONGEST_MS: u32 = 5000;

/// Number of doublings from the first pause to the longest.
const DOUBLINGS: u32 = (LONGEST_MS / FIRST_MS).next_power_of_two().ilog2();

/// The pauses of a device.
#[derive(Debug, Default)]
pub(super) struct Retry {
    /// A request was answered BUSY, and the driver has not been told since.
    due: bool,
    /// How often the driver was told since the host was last able.
    told: u32,
}

impl Retry {
    /// A request is answered BUSY.
    pub(super) const fn busy(&mut self) {
        self.due = true;
    }

    /// The host did what a request asked for.
    pub(super) const fn gained(&mut self) {
        self.told = 0;
    }

    /// The driver has a reason to try, which it learns without a retry.
    pub(super) const fn start_over(&mut self) {
        *self = Retry { due: false, told: 0 };
    }

    /// A restored device: the driver waits if it waited when the state was taken.
    pub(super) const fn restored(due: bool) -> Retry {
        Retry { due, told: 0 }
    }

    /// Whether the driver waits to be told.
    pub(super) const fn is_due(&self) -> bool {
        self.due
    }

    fn pause_ms(&self) -> u32 {
        (FIRST_MS << self.told.min(DOUBLINGS)).min(LONGEST_MS)
    }
}

impl Device {
    /// How long to wait before [`Device::retry`], in milliseconds. [`None`] when no driver waits for that. A driver that
    /// is answered BUSY again meanwhile waits no longer.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u32> {
        self.retry.is_due().then(|| self.retry.pause_ms())
    }

    /// The pause is over. Returns whether the driver is due a config notification, so that it tries again. The next pause
    /// is twice as long, unless the host can do something meanwhile.
    pub fn retry(&mut self) -> bool {
        let due = core::mem::take(&mut self.retry.due);
        self.retry.told = self.retry.told.saturating_add(u32::from(due));
        due
    }

    /// What kept the host from plugging or unplugging may be gone: another region was unplugged, or a limit was raised.
    /// Returns whether the driver is due a config notification at once. The next pause is the first again.
    pub fn cause_gone(&mut self) -> bool {
        let due = self.retry.due;
        self.retry.start_over();
        due
    }

    /// Device reset: the driver is gone, and nobody is told to try again (virtio 1.3, section 2.4.1). Device blocks and
    /// sizes stay as they are (section 5.15.6.2).
    pub fn driver_gone(&mut self) {
        self.retry.start_over();
    }
}
