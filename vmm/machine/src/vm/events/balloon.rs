//! The queues of the virtio-balloon device, and the times at which statistics are asked for.
//!
//! Invariant: the timer runs with the interval that was set last, as soon as the event loop has come to it.

use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use super::{again, clear, expire, listen};
use crate::sync::lock;
use crate::vm::shared::VmShared;

/// The queues of the balloon.
pub(super) struct Queues {
    shared: Arc<VmShared>,
    /// Ends when statistics are due.
    timer: TimerFd,
    /// The interval with which the timer runs.
    armed: Duration,
}

impl Queues {
    const KICK: u32 = 0;
    const TIMER: u32 = 1;

    /// The queues of the balloon of `shared`, if it has one.
    pub(super) const fn new(shared: Arc<VmShared>, timer: TimerFd) -> Self {
        Self { shared, timer, armed: Duration::ZERO }
    }

    /// Has the timer run with `interval`. Zero stops it.
    fn arm(&mut self, interval: Duration) {
        if self.armed != interval {
            self.armed = interval;
            if let Err(error) = self.timer.reset(interval, Some(interval)) {
                log::warn!("statistics are not asked for: {error}");
            }
        }
    }
}

impl MutEventSubscriber for Queues {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let shared = Arc::clone(&self.shared);
        if let Some(balloon) = &shared.devices.balloon {
            listen(ops, &balloon.kick, Self::KICK);
            listen(ops, &self.timer, Self::TIMER);
            self.arm(balloon.asks.interval());
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let shared = Arc::clone(&self.shared);
        let Some(balloon) = &shared.devices.balloon else { return };
        if events.data() == Self::TIMER {
            expire(&mut self.timer);
            balloon.asks.ask();
            return;
        }
        clear(&balloon.kick);
        self.arm(balloon.asks.interval());
        if lock(&balloon.device).serve() {
            again(&balloon.kick);
        }
    }
}
