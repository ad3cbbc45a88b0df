//! The queue of a virtio-mem device, and the driver that waits for the host.
//!
//! A driver that was answered BUSY is told to try again after a pause that doubles. Meanwhile the loop looks at the
//! host's limits now and then: if one was raised, the driver is told at once, without a target of anybody. Nobody is woken
//! while no driver waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use super::super::devices::MemDevice;
use super::super::shared::VmShared;
use super::{again, clear, expire, listen};
use crate::limits::Limits;
use crate::sync::lock;
use crate::virtio::mem::serve;

/// The time between two looks at the limits.
const LOOK: Duration = Duration::from_millis(250);

/// The queue of virtio-mem device `index`.
pub(super) struct Queue {
    shared: Arc<VmShared>,
    index: usize,
    /// Ends when a driver that was answered BUSY is to be told to retry, or when the limits are to be looked at.
    timer: TimerFd,
    waiting: Option<Waiting>,
}

/// A driver that was answered BUSY.
struct Waiting {
    /// When it is told to try again.
    until: Instant,
    /// The limits when it was answered.
    limits: Limits,
}

/// What is due when a timer ends.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// The pause is over.
    Retry,
    /// A limit was raised.
    Raised,
    /// Another look, after this time.
    Look(Duration),
}

impl Waiting {
    fn due(&self, now: Instant, limits: &Limits) -> Due {
        let left = self.until.saturating_duration_since(now);
        if limits.is_raised_from(&self.limits) {
            Due::Raised
        } else if left.is_zero() {
            Due::Retry
        } else {
            Due::Look(left.min(LOOK))
        }
    }
}

impl Queue {
    const KICK: u32 = 0;
    const TIMER: u32 = 1;

    /// The queue of device `index`.
    pub(super) const fn new(shared: Arc<VmShared>, index: usize, timer: TimerFd) -> Self {
        Self { shared, index, timer, waiting: None }
    }

    fn mem(&self) -> &MemDevice {
        &self.shared.devices.mem[self.index]
    }

    /// The driver waits from now on.
    fn wait(&mut self, pause: Duration) {
        let limits = self.shared.limits.read();
        self.waiting = Some(Waiting { until: Instant::now() + pause, limits });
        self.wake_after(pause.min(LOOK));
    }

    fn wake_after(&mut self, time: Duration) {
        if let Err(error) = self.timer.reset(time, None) {
            log::warn!("the driver is not told when to retry: {error}");
        }
    }

    /// The timer has ended.
    fn look(&mut self) {
        let Some(waiting) = &self.waiting else { return };
        match waiting.due(Instant::now(), &self.shared.limits.read()) {
            Due::Retry => {
                self.waiting = None;
                lock(&self.mem().device).retry();
            }
            Due::Raised => {
                self.waiting = None;
                self.shared.devices.tell_all();
            }
            Due::Look(after) => self.wake_after(after),
        }
    }
}

impl MutEventSubscriber for Queue {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, &self.mem().kick, Self::KICK);
        listen(ops, &self.timer, Self::TIMER);
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if events.data() == Self::TIMER {
            expire(&mut self.timer);
            self.look();
            return;
        }
        clear(&self.mem().kick);
        let served = serve(&*self.mem().device, &mut *lock(&self.mem().backing));
        // Without the device, whose registers vCPUs read.
        self.shared.memory.remove_empty_slots();
        if served.freed {
            self.shared.devices.tell_others(self.index);
        }
        if let Some(pause) = served.retry_after {
            self.wait(pause);
        }
        if served.more {
            again(&self.mem().kick);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Due, Duration, Instant, LOOK, Limits, Waiting};

    #[test]
    fn a_driver_is_told_after_its_pause_or_at_once_when_a_limit_was_raised() {
        let (now, limits) =
            (Instant::now(), Limits { mappings: 65530, addresses: u64::MAX, memory: 1 << 30 });
        let second = Duration::from_secs(1);
        let waiting = Waiting { until: now + second, limits };
        assert_eq!(waiting.due(now, &limits), Due::Look(LOOK));
        let end = Duration::from_millis(10);
        assert_eq!(waiting.due(now + second - end, &limits), Due::Look(end), "no look goes beyond the pause");
        assert_eq!(waiting.due(now + second, &limits), Due::Retry);
        let raised = Limits { mappings: 262_144, ..limits };
        assert_eq!(waiting.due(now, &raised), Due::Raised);
        assert_eq!(waiting.due(now + second, &raised), Due::Raised, "all drivers are told");
        let lowered = Limits { mappings: 100, ..limits };
        assert_eq!(waiting.due(now, &lowered), Due::Look(LOOK));
    }
}
