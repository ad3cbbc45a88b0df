//! The guest's state as known from outside, and waiting for changes of it.
//!
//! There is one mutex and one condition variable. Every change of a [`State`] notifies every waiter, so a
//! wait is a predicate over the whole state: it misses no change and does not poll. A wait that has a deadline wakes
//! now and then to see that the process runs: see [`crate::clock`].
//!
//! A [`State`] holds facts only, so that a test can make any of them up. The calls that wait for an answer
//! are not facts about the guest; [`SharedState`] keeps them beside the [`State`].
//!
//! Invariant: a guest's messages change a bounded number of fields in place. An answer is kept only for a
//! call that was made and whose answer was not taken yet, so a guest cannot make the state grow.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tidevm_abi::kernel::RECORDS_VERSION;
use tidevm_abi::{Answer, Pressure, Report};
use vmm_sys_util::eventfd::EventFd;

use crate::clock::{self, Nap};
use crate::death::Death;
use crate::sync::lock;

pub use balloon::{BalloonStats, BalloonStatus};
pub use changes::Changes;
use changes::raise;
pub use disk::DiskStatus;
pub use mem::MemStatus;
pub use ready::Ready;
pub use refusal::{HostFault, Refusal};
pub use settled::{Obstacle, Settled};
pub use wait_error::WaitError;

mod answers;
mod balloon;
mod changes;
mod disk;
mod mem;
mod ready;
mod refusal;
mod saved;
mod settled;
mod wait_error;

/// The facts known about a guest.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The guest's message that it is up, if it has come since the last reset.
    pub ready: Option<Ready>,
    /// The version of the records that the guest's agent speaks, if it is not that of this VMM. Such a guest does not become
    /// ready.
    pub foreign_records: Option<u32>,
    /// How often the guest was reset and started again. A reset is one change of the state: the guest is gone, the
    /// devices are as at the start, and the reset is counted.
    pub resets: u64,
    /// The number of the last request of [`crate::VmHandle::reset`] that was carried out; 0 before the first. A reset that
    /// the guest makes raises [`State::resets`] alone, unless a request waits.
    pub reset_request: u64,
    /// One entry for each [`crate::HotplugConfig`], in the same order.
    pub mem: Vec<MemStatus>,
    /// What the guest said last about memory that has passed a level of [`tidevm_abi::Op::Watch`], since the last reset.
    pub pressure: Option<Pressure>,
    /// How often it has said so, since the start.
    pub pressures: u64,
    /// The virtio-balloon device, if there is one.
    pub balloon: Option<BalloonStatus>,
    /// One entry per disk.
    pub disks: Vec<DiskStatus>,
    /// How the guest died, if it did.
    pub death: Option<Death>,
    /// The guest powered off, whether it was asked to or not.
    pub powered_off: bool,
    /// The first of SIGHUP, SIGINT, SIGQUIT and SIGTERM that came.
    pub signal: Option<i32>,
    /// How often SIGINT came to a VM with [`crate::Config::interactive`].
    pub interrupts: u64,
    /// Lines that the guest wrote to its console, if the embedder reads them. A line beyond some length counts as several.
    pub console_lines: u64,
    /// The guest stands still, or is about to: [`crate::VmHandle::pause`].
    pub paused: bool,
    /// The guest's accesses to addresses without a device. Reads gave all ones, writes were dropped.
    pub stray_accesses: u64,
    /// Messages on the control channel that were no [`Report`], or a report that fits no call.
    pub bad_records: u64,
}

impl State {
    /// Whether the guest has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.death.is_some() || self.powered_off
    }

    /// The reason that ends every wait, if there is one.
    fn interruption(&self) -> Option<WaitError> {
        if let Some(death) = &self.death {
            return Some(WaitError::Died(death.clone()));
        }
        match self.signal {
            Some(signal) => Some(WaitError::Signal(signal)),
            None => self.powered_off.then_some(WaitError::PoweredOff),
        }
    }

    /// Records that the guest powered off, unless it ended before.
    pub(crate) fn power_off(&mut self) {
        self.powered_off |= !self.ended();
    }

    /// Records a death, unless the guest ended before.
    pub(crate) fn died(&mut self, death: Death) {
        if !self.ended() {
            self.death = Some(death);
        }
    }
}

/// A [`State`] that threads share, and the calls that wait for an answer.
#[derive(Debug)]
pub(crate) struct SharedState {
    inner: Mutex<StateAndAnswers>,
    changed: Condvar,
    /// Threads that wait for more than the state. Locked after `inner`, or alone.
    subscriptions: Mutex<Vec<Weak<EventFd>>>,
}

#[derive(Debug)]
struct StateAndAnswers {
    state: State,
    /// When the VM was started or last reset, by [`crate::clock`].
    started: Instant,
    /// The number of the embedder's last request for a reset. It waits until [`State::reset_request`] is the same.
    reset_request: u64,
    /// When every wait ends, on the clock of limits, and the time from the start to then.
    deadline: Option<(Instant, Duration)>,
    /// The time for which the guest stood still since the start, the current pause excluded.
    stood_still: Duration,
    /// Since when the guest stands still, by [`crate::clock`].
    paused: Option<Instant>,
    /// By call: no answer yet, the guest's answer, or the error that the guest was reset.
    answers: BTreeMap<u32, Option<Result<Answer, WaitError>>>,
}

impl StateAndAnswers {
    /// See [`SharedState::now`].
    fn now(&self) -> Instant {
        self.paused.unwrap_or_else(clock::now) - self.stood_still
    }

    /// The error of a wait for `what` once the time of all waits is over.
    fn timed_out(&self, what: &str) -> Option<WaitError> {
        let (at, limit) = self.deadline?;
        (self.now() >= at).then(|| WaitError::TimedOut { what: what.to_owned(), limit })
    }
}

impl SharedState {
    pub(crate) fn new(started: Instant, mem: Vec<MemStatus>) -> Self {
        let inner = StateAndAnswers {
            state: State { mem, ..State::default() },
            started,
            reset_request: 0,
            deadline: None,
            stood_still: Duration::ZERO,
            paused: None,
            answers: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), subscriptions: Mutex::default() }
    }

    /// The same, whose waits end `limit` after the start.
    pub(crate) fn limited(self, limit: Option<Duration>) -> Self {
        {
            let mut inner = lock(&self.inner);
            inner.deadline = limit.and_then(|limit| Some((inner.started.checked_add(limit)?, limit)));
        }
        self
    }

    /// The time now on the clock of all limits: [`crate::clock`], without the time in which the guest stood still. A guest
    /// that is not allowed to run cannot be late.
    pub(crate) fn now(&self) -> Instant {
        lock(&self.inner).now()
    }

    /// Records that the guest stands still from now on, or that it runs again.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.learn(|inner| {
            if inner.state.paused != paused {
                let now = clock::now();
                inner.state.paused = paused;
                inner.stood_still += inner.paused.take().map_or(Duration::ZERO, |since| now - since);
                inner.paused = paused.then_some(now);
            }
        });
    }

    /// A copy of the state as it is now.
    pub(crate) fn snapshot(&self) -> State {
        lock(&self.inner).state.clone()
    }

    /// Changes the state and wakes every waiter.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.learn(|inner| change(&mut inner.state))
    }

    /// Has every wait look again, at what it waits for beside the state.
    pub(crate) fn nudge(&self) {
        self.learn(|_| ());
    }

    fn learn<T>(&self, change: impl FnOnce(&mut StateAndAnswers) -> T) -> T {
        let result = change(&mut lock(&self.inner));
        self.changed.notify_all();
        lock(&self.subscriptions).retain(raise);
        result
    }

    /// Processes one message of the guest. A message that fits no call or device is counted.
    pub(crate) fn report(&self, report: Report) {
        self.learn(|inner| {
            let now = inner.now();
            let StateAndAnswers { state, started, answers, .. } = inner;
            match report {
                Report::Ready { cpus, mem_devices }
                    if state.ready.is_none() && state.foreign_records.is_none() =>
                {
                    state.ready = Some(Ready { cpus, mem_devices, after: now - *started });
                }
                Report::Done { id, answer } if matches!(answers.get(&id), Some(None)) => {
                    answers.insert(id, Some(Ok(answer)));
                }
                Report::Resize(resize) => {
                    match state.mem.iter_mut().find(|mem| mem.region == resize.region) {
                        Some(mem) => mem.report = Some(resize),
                        None => state.bad_records += 1,
                    }
                }
                Report::Speaks { version } => {
                    state.foreign_records = (version != RECORDS_VERSION).then_some(version);
                }
                Report::Pressure(pressure) => {
                    state.pressure = Some(pressure);
                    state.pressures += 1;
                }
                Report::Ready { .. } | Report::Done { .. } => state.bad_records += 1,
            }
        });
    }

    /// Records that the VM is reset and about to run again, with its devices as `mem` says, which is called under
    /// the lock of the state. The guest of before is not up any more and will answer no call.
    pub(crate) fn restart(&self, mem: impl FnOnce() -> Vec<MemStatus>) {
        self.learn(|inner| {
            inner.started = inner.now();
            let StateAndAnswers { state, answers, reset_request, .. } = inner;
            (state.ready, state.pressure, state.mem) = (None, None, mem());
            state.foreign_records = None;
            state.balloon = state.balloon.map(BalloonStatus::restarted);
            state.disks.fill(DiskStatus::default());
            state.reset_request = *reset_request;
            state.resets += 1;
            for answer in answers.values_mut() {
                answer.get_or_insert(Err(WaitError::Reset));
            }
        });
    }

    /// Records that the embedder asks for a reset, and returns the number of this request. The next reset, which
    /// [`SharedState::restart`] records, carries it out.
    pub(crate) fn want_reset(&self) -> u64 {
        let mut inner = lock(&self.inner);
        inner.reset_request += 1;
        inner.reset_request
    }

    /// Whether the embedder asked for a reset that was not carried out yet.
    pub(crate) fn wants_reset(&self) -> bool {
        let inner = lock(&self.inner);
        inner.reset_request != inner.state.reset_request
    }

    /// Waits at most `limit` for `find` to return a value; `what` names it in the error. A value is returned
    /// even when the guest has ended.
    pub(crate) fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        mut find: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, WaitError> {
        self.wait_inner(limit, what, |inner| find(&inner.state))
    }

    fn wait_inner<T>(
        &self,
        limit: Duration,
        what: &str,
        mut find: impl FnMut(&StateAndAnswers) -> Option<T>,
    ) -> Result<T, WaitError> {
        let found = self.wait_for(limit, |inner| match find(inner) {
            Some(found) => Some(Ok(found)),
            None => inner.state.interruption().or_else(|| inner.timed_out(what)).map(Err),
        });
        found.unwrap_or_else(|| Err(WaitError::Deadline { what: what.to_owned(), after: limit }))
    }

    /// Waits at most `limit` for the guest to end or to have another number of resets than `resets`. Returns whether
    /// it did. A signal does not end this wait.
    pub(crate) fn wait_for_end(&self, limit: Duration, resets: u64) -> bool {
        let over = |StateAndAnswers { state, .. }: &StateAndAnswers| {
            (state.ended() || state.resets != resets).then_some(())
        };
        self.wait_for(limit, over).is_some()
    }

    fn wait_for<T>(&self, limit: Duration, mut find: impl FnMut(&StateAndAnswers) -> Option<T>) -> Option<T> {
        let mut inner = lock(&self.inner);
        let start = inner.now();
        loop {
            if let Some(found) = find(&inner) {
                return Some(found);
            }
            let now = inner.now();
            let left = limit.checked_sub(now - start).filter(|left| !left.is_zero())?;
            let of_all = inner.deadline.map(|(at, _)| at.saturating_duration_since(now));
            let nap = Nap::of(of_all.filter(|left| !left.is_zero()).map_or(left, |of_all| of_all.min(left)));
            inner = self.changed.wait_timeout(inner, nap.time()).unwrap_or_else(PoisonError::into_inner).0;
            nap.end();
        }
    }
}

#[cfg(test)]
mod tests;
