//! Waits for an observer that follows the VM: in parts, with a look at the devices after each of them.
//!
//! A sample is told when the devices have changed, at most one for each [`PERIOD`]. The host memory behind them is looked
//! at when something else has changed, and otherwise once for each [`HELD_PERIOD`], because the host takes its time to
//! tell it.
//!
//! Invariant: an observer that does not follow the VM costs nothing here. A session ends in the same way with both.

use std::cell::{Cell, RefCell, RefMut};
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Size};
use tidevm_machine::{State, WaitError};

use super::{Observer, Sample, Session, VmControl};

/// Least time between two samples.
const PERIOD: Duration = Duration::from_millis(100);

/// Time between two looks at the host memory behind the devices, when nothing else changes.
const HELD_PERIOD: Duration = Duration::from_secs(1);

/// The observer, and what it was told of the devices.
pub(super) struct Watch<'s, O> {
    observer: RefCell<&'s mut O>,
    follows: bool,
    /// A step asks for its sample, of which the observer is told with the step.
    sampling: Cell<bool>,
    told: RefCell<Told>,
}

#[derive(Default)]
struct Told {
    /// The last look at the devices.
    facts: Option<Facts>,
    /// The last sample that was taken, and when.
    sample: Option<(Instant, Sample)>,
}

/// What the VMM knows of devices without asking the host: requested, plugged, in use by the guest; and the resets.
type Facts = (Vec<(Size, Size, Option<Size>)>, u64);

impl<'s, O: Observer> Watch<'s, O> {
    pub(super) fn new(observer: &'s mut O) -> Self {
        let follows = observer.follows();
        Self {
            observer: RefCell::new(observer),
            follows,
            sampling: Cell::new(false),
            told: RefCell::default(),
        }
    }

    pub(super) fn follows(&self) -> bool {
        self.follows
    }

    /// Calls `sample`, and tells of no other sample meanwhile.
    pub(super) fn sampling<T>(&self, sample: impl FnOnce() -> T) -> T {
        self.sampling.set(true);
        let result = sample();
        self.sampling.set(false);
        result
    }

    pub(super) fn observer(&self) -> RefMut<'_, &'s mut O> {
        self.observer.borrow_mut()
    }

    pub(super) fn into_observer(self) -> &'s mut O {
        self.observer.into_inner()
    }
}

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    /// [`VmControl::wait`].
    pub(super) fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        mut find: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, WaitError> {
        self.in_parts(limit, what, |part| match self.vm.wait(part, what, &mut find) {
            Err(WaitError::Deadline { .. }) => None,
            result => Some(result),
        })
    }

    /// [`VmControl::answer`].
    pub(super) fn answer(&self, id: u32, limit: Duration, what: &str) -> Result<Answer, WaitError> {
        if !self.watch.follows {
            return self.vm.answer(id, limit, what);
        }
        match self.in_parts(limit, what, |part| self.vm.await_answer(id, part)) {
            // Which forgets the call.
            Err(WaitError::Deadline { .. }) => self.vm.answer(id, Duration::ZERO, what).map_err(|error| {
                let late = matches!(error, WaitError::Deadline { .. });
                if late { WaitError::Deadline { what: what.to_owned(), after: limit } } else { error }
            }),
            result => result,
        }
    }

    /// Waits at most `limit` by `wait`, which waits as long as it is told, and gives `None` if that was not enough.
    fn in_parts<T>(
        &self,
        limit: Duration,
        what: &str,
        mut wait: impl FnMut(Duration) -> Option<Result<T, WaitError>>,
    ) -> Result<T, WaitError> {
        let until = self.vm.now() + limit;
        loop {
            let left = until.saturating_duration_since(self.vm.now());
            let part = if self.watch.follows { left.min(PERIOD) } else { left };
            if self.watch.follows && !left.is_zero() {
                self.vm.amid_wait(|| self.look());
            }
            if let Some(result) = wait(part) {
                return result;
            }
            if part == left {
                return Err(WaitError::Deadline { what: what.to_owned(), after: limit });
            }
        }
    }

    /// Tells the observer of the devices, if they have changed and it was not told just now.
    fn look(&self) {
        let state = self.vm.state();
        if self.watch.sampling.get() || state.mem.is_empty() {
            return;
        }
        let of_device = |mem: &tidevm_machine::MemStatus| {
            (mem.requested, mem.plugged, mem.report.map(|report| report.plugged))
        };
        let facts = (state.mem.iter().map(of_device).collect(), state.resets);
        let now = self.vm.now();
        let mut told = self.watch.told.borrow_mut();
        let changed = told.facts.as_ref() != Some(&facts);
        let age = told.sample.as_ref().map(|(at, _)| now.saturating_duration_since(*at));
        if age.is_some_and(|age| age < if changed { PERIOD } else { HELD_PERIOD }) {
            return;
        }
        let sample = self.outside();
        let news = told.sample.as_ref().is_none_or(|(_, before)| *before != sample);
        *told = Told { facts: Some(facts), sample: Some((now, sample.clone())) };
        drop(told);
        if news {
            // The next step, or the end, fails for the same reason, and ends the session.
            drop(self.watch.observer().sample(now - self.start, &sample));
        }
    }
}
