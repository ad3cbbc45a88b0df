//! A trial: every row in turn, on one machine as long as it lives.
//!
//! Invariants: every row has one outcome. A row ends within its limit, and a machine that did not answer, or that ended, is
//! killed and does not see the next row. A machine that does not come up twice ends the trial: the other rows have its reason.

use std::time::{Duration, Instant};

use tidevm_abi::judge::{FromGuest, ToGuest};

use crate::Verdict;
use crate::rows::{Row, rows};
use crate::subject::{Heard, Subject};

/// The longest waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the start of a machine until its guest takes rows.
    pub boot: Duration,
    /// For one row. Resets of the machine and the host's part count too.
    pub row: Duration,
}

impl Default for Limits {
    /// Generous, for emulators on slow hosts.
    fn default() -> Self {
        Self { boot: Duration::from_secs(60), row: Duration::from_secs(60) }
    }
}

/// Starts of a machine that may fail before the trial ends.
const STARTS: u32 = 2;

/// Lines of the guest that are kept for a row that fails without a result.
const KEPT_LINES: usize = 4;

/// What came of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The row.
    pub row: &'static Row,
    /// What the guest sent to the device.
    pub sent: String,
    /// What the device did, or why that is not known.
    pub came: String,
    /// What that means.
    pub verdict: Verdict,
}

impl Outcome {
    /// Whether the device breaks a rule that binds it.
    #[must_use]
    pub fn is_breach(&self) -> bool {
        self.row.level.binds() && matches!(self.verdict, Verdict::Fail | Verdict::Wedged)
    }
}

/// Judges `subject` by all rows. Each outcome is passed to `each` as soon as it is there.
///
/// # Errors
/// An error of `each`.
pub fn judge<E>(
    subject: &mut dyn Subject,
    limits: Limits,
    mut each: impl FnMut(&Outcome) -> Result<(), E>,
) -> Result<(), E> {
    let mut trial = Trial { subject, limits, is_up: false, failed_starts: 0, last_start: String::new() };
    let result = rows().try_for_each(|row| each(&trial.outcome(row)));
    trial.subject.kill();
    result
}

struct Trial<'s> {
    subject: &'s mut dyn Subject,
    limits: Limits,
    /// The guest waits for a row.
    is_up: bool,
    failed_starts: u32,
    /// Why the last start failed.
    last_start: String,
}

/// The end of a row without a result of the guest.
struct Broken(Verdict, String);

impl Trial<'_> {
    fn outcome(&mut self, row: &'static Row) -> Outcome {
        let outcome = |verdict, sent: &str, came: &str| Outcome {
            row,
            sent: sent.to_owned(),
            came: came.to_owned(),
            verdict,
        };
        if let Some(reason) = row.skip {
            return outcome(Verdict::Skip, "", reason);
        }
        if let Err(reason) = self.come_up() {
            return outcome(Verdict::Wedged, "", &format!("the machine does not come up: {reason}"));
        }
        match self.row(row) {
            Ok(judged) => judged,
            Err(Broken(verdict, came)) => {
                self.subject.kill();
                self.is_up = false;
                outcome(verdict, "", &came)
            }
        }
    }

    /// Starts a machine, unless one waits for a row.
    fn come_up(&mut self) -> Result<(), String> {
        if self.is_up {
            return Ok(());
        }
        if self.failed_starts >= STARTS {
            return Err(self.last_start.clone());
        }
        let until = Instant::now() + self.limits.boot;
        let started = self.subject.start(until).and_then(|()| self.await_ready(until));
        match started {
            Ok(()) => self.is_up = true,
            Err(reason) => {
                self.failed_starts += 1;
                self.subject.kill();
                self.last_start = reason;
                return Err(self.last_start.clone());
            }
        }
        Ok(())
    }

    fn await_ready(&mut self, until: Instant) -> Result<(), String> {
        let mut last = Last::default();
        loop {
            match self.subject.hear(until) {
                Heard::Line(line) => match FromGuest::parse(&line) {
                    Some(FromGuest::Ready(_)) => return Ok(()),
                    Some(FromGuest::Unable(reason)) => return Err(format!("its guest says: {reason}")),
                    _ => last.keep(line),
                },
                Heard::Silence => {
                    return Err(format!("its guest is not ready within {:?}{last}", self.limits.boot));
                }
                Heard::Ended(how) => return Err(format!("{how}{last}")),
            }
        }
    }

    /// Has the guest judge a row.
    fn row(&mut self, row: &'static Row) -> Result<Outcome, Broken> {
        let until = Instant::now() + self.limits.row;
        let mut last = Last::default();
        let mut resets = false;
        self.say(ToGuest::Row { id: row.id, again: false })?;
        loop {
            let line = match self.subject.hear(until) {
                Heard::Line(line) => line,
                Heard::Silence => {
                    let text = format!("no answer within {:?}{last}", self.limits.row);
                    return Err(Broken(Verdict::Wedged, text));
                }
                Heard::Ended(how) if resets => {
                    let text = format!("the VMM ends when its guest resets the machine: {how}");
                    return Err(Broken(Verdict::Skip, text));
                }
                Heard::Ended(how) => return Err(Broken(Verdict::Fail, format!("{how}{last}"))),
            };
            match FromGuest::parse(&line) {
                Some(FromGuest::Result { id, sent, came, verdict }) if id == row.id => {
                    return Ok(Outcome { row, sent: sent.to_owned(), came: came.to_owned(), verdict });
                }
                Some(FromGuest::Resize(bytes)) => {
                    let answer = self.subject.resize(bytes, until);
                    self.say(answer.as_ref().map_or_else(|why| ToGuest::Refused(why), |()| ToGuest::Done))?;
                }
                Some(FromGuest::Resets(id)) if id == row.id => resets = true,
                Some(FromGuest::Ready(_)) if resets => {
                    self.say(ToGuest::Row { id: row.id, again: true })?;
                }
                Some(FromGuest::Ready(_)) => {
                    let text = format!("the machine was reset, and the guest had not asked for it{last}");
                    return Err(Broken(Verdict::Fail, text));
                }
                _ => last.keep(line),
            }
        }
    }

    fn say(&mut self, what: ToGuest<'_>) -> Result<(), Broken> {
        self.subject.send(&what.to_string()).map_err(|why| Broken(Verdict::Fail, why))
    }
}

/// The last lines of a guest that were not for the judge: a panic, for instance.
#[derive(Default)]
struct Last(Vec<String>);

impl Last {
    fn keep(&mut self, line: String) {
        if line.trim().is_empty() {
            return;
        }
        if self.0.len() == KEPT_LINES {
            self.0.remove(0);
        }
        self.0.push(line);
    }
}

impl std::fmt::Display for Last {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; its last lines: {}", self.0.join(" / ")) }
    }
}

#[cfg(test)]
mod tests;
