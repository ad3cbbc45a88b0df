//! A clock for deadlines. It stands still while the process is stopped.
//!
//! Mirrors QEMU's `QEMU_CLOCK_VIRTUAL`, which stands still while its machine is stopped. Differs on purpose: QEMU
//! stops its machine itself. A process does not learn of a SIGSTOP, of a frozen control group, or of a debugger.
//! So each wait here is a chain of naps of at most [`NAP`], and if a nap ends more than [`SLACK`] late, the
//! process was stopped for that time. The clock does not notice a shorter stop.
//!
//! Invariant: a stop is counted once, even if several threads slept through it.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Longest nap of a wait that has a deadline.
const NAP: Duration = Duration::from_millis(250);

/// A nap that ends later than this was not late because of a busy host, but because the process was stopped.
const SLACK: Duration = Duration::from_millis(750);

/// A wait longer than this counts as a wait without a deadline. It is one nap, so that an idle process is not woken.
const ENDLESS: Duration = Duration::from_secs(30 * 24 * 3600);

static STOPPED: Mutex<Stopped> = Mutex::new(Stopped { time: Duration::ZERO, until: None });

/// The time in which the process was stopped.
#[derive(Debug)]
struct Stopped {
    time: Duration,
    /// The end of the last stop.
    until: Option<Instant>,
}

impl Stopped {
    /// Counts a nap that was to end at `due` and ended at `end`.
    fn slept(&mut self, due: Instant, end: Instant) {
        if end.saturating_duration_since(due) <= SLACK {
            return;
        }
        let from = self.until.map_or(due, |until| until.max(due));
        self.time += end.saturating_duration_since(from);
        self.until = Some(end);
    }
}

/// The time now, without the stops that were noticed. The difference of two such times is how long the process ran
/// between them.
#[must_use]
pub fn now() -> Instant {
    let stopped = lock(&STOPPED).time;
    Instant::now() - stopped
}

/// One nap of a wait.
#[derive(Debug)]
pub struct Nap {
    time: Duration,
    /// `None` for a time that no clock reaches.
    due: Option<Instant>,
}

impl Nap {
    /// The next nap of a wait that has `left` to go. It begins now.
    pub fn of(left: Duration) -> Self {
        let time = if left > ENDLESS { left } else { left.min(NAP) };
        Self { time, due: Instant::now().checked_add(time) }
    }

    /// How long it is to take.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Records that the nap ended, on time, early or late.
    pub fn end(self) {
        if let Some(due) = self.due {
            lock(&STOPPED).slept(due, Instant::now());
        }
    }
}

/// Does `work` between two naps of a wait, so that a stop meanwhile is noticed too. Work that takes about a second longer
/// than a nap looks like a stop, and does not count either.
pub fn amid_wait<T>(work: impl FnOnce() -> T) -> T {
    let nap = Nap::of(NAP);
    let result = work();
    nap.end();
    result
}

/// Sleeps until the process has run for `time`.
pub fn sleep(time: Duration) {
    let start = now();
    while let Some(left) = time.checked_sub(now() - start).filter(|left| !left.is_zero()) {
        let nap = Nap::of(left);
        thread::sleep(nap.time());
        nap.end();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{NAP, Nap, SLACK, Stopped};

    #[test]
    fn a_nap_that_ends_far_too_late_is_a_stop_and_a_stop_counts_once() {
        let mut stopped = Stopped { time: Duration::ZERO, until: None };
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let due = start + NAP;
        stopped.slept(due, due + SLACK);
        assert_eq!(stopped.time, Duration::ZERO, "the host was busy");
        stopped.slept(due, due + 10 * second);
        assert_eq!(stopped.time, 10 * second);
        // Another thread slept through the same stop, a moment longer.
        stopped.slept(due - NAP / 2, due + 11 * second);
        assert_eq!(stopped.time, 11 * second);
        let due = due + 20 * second;
        stopped.slept(due, due + 2 * second);
        assert_eq!(stopped.time, 13 * second);
    }

    #[test]
    fn a_wait_with_a_deadline_naps_and_an_endless_one_sleeps() {
        let time = |left| Nap::of(left).time();
        assert_eq!(time(Duration::from_millis(1)), Duration::from_millis(1));
        assert_eq!(time(Duration::from_secs(3600)), NAP);
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        assert_eq!(time(century), century);
        let longest = Nap::of(Duration::MAX);
        assert_eq!(longest.time(), Duration::MAX);
        longest.end();
    }
}
