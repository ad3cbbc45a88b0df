//! A session as test cases, for CI.
//!
//! A named step (`step "NAME"` and the commands up to the next name) is a case. A command without a name is one. What a `repeat`
//! runs again is the same case, because it stands at the same place of the script. The last case is the session itself: it
//! fails if the session ended in another way than by its steps.
//!
//! Invariants: the lines are not trusted. A case that was planned is told in any case, as skipped if it was not reached. What is
//! kept has a bound, and what is left out is counted.

use std::collections::HashMap;

use tidevm_events::{End, Event, Line, Outcome, Start, Step};

use crate::seconds;
use crate::steps::cut;

/// Most cases. A script that comes line by line has no end.
pub const MAX_CASES: usize = 10_000;

/// Most failures of a case that are kept.
pub const MAX_FAILURES: usize = 10;

/// The name of the last case.
const SESSION: &str = "session";

/// A step of a script that was read before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// Its text.
    pub command: String,
    /// The name, if it is a `step "NAME"`.
    pub names: Option<String>,
}

/// A session as test cases.
#[derive(Clone, Debug, Default)]
pub struct Results {
    suite: String,
    start: Option<Start>,
    cases: Vec<Case>,
    /// By place in the script.
    index: HashMap<Place, usize>,
    /// The case of the named step that runs; `None` within it if there was no room for it.
    named: Option<usize>,
    /// Runs of steps that belong to no case, and those that failed.
    left_out: u64,
    left_out_failed: u64,
    end: Option<End>,
}

/// Line and column of a step; and its text for one that the session adds, which has no place.
type Place = (usize, usize, String);

/// A test case.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub name: String,
    /// Commands that were run.
    pub runs: u64,
    pub seconds: f64,
    /// Commands that failed.
    pub failed: u64,
    /// The first of them, each with its reason.
    pub failures: Vec<String>,
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Result {
    Passed,
    /// A command failed: the first line, and all of it.
    Failed(String, String),
    /// The session did not come to its end: the same.
    Error(String, String),
    Skipped,
}

impl Results {
    /// Results of the script called `suite`, whose steps are `plan`, if it was read before it runs.
    #[must_use]
    pub fn new(suite: &str) -> Self {
        Self { suite: suite.to_owned(), ..Self::default() }
    }

    /// The steps that are to be run, in their order.
    pub fn plan(&mut self, plan: impl IntoIterator<Item = Planned>) {
        for Planned { line, column, command, names } in plan {
            self.reach((line, column), &command, names.as_deref());
        }
        self.named = None;
    }

    /// Takes the next line of a session.
    pub fn take(&mut self, line: &Line) {
        match &line.event {
            Event::Start(start) => self.start = Some(start.as_ref().clone()),
            Event::Step(step) => self.step(step),
            Event::End(end) => self.end = Some(end.as_ref().clone()),
            Event::Ready(_) | Event::Sample(_) => {}
        }
    }

    fn step(&mut self, step: &Step) {
        let names = step.name.as_deref().filter(|name| step.command == format!("step \"{name}\""));
        if step.name.is_none() {
            self.named = None;
        }
        let case = self.reach((step.line, step.column), &step.command, names);
        let Some(case) = case else {
            self.left_out += 1;
            self.left_out_failed += u64::from(!step.ok);
            return;
        };
        let case = &mut self.cases[case];
        case.runs += 1;
        case.seconds += seconds(step.seconds);
        if step.ok {
            return;
        }
        case.failed += 1;
        if case.failures.len() < MAX_FAILURES {
            let reason = step.reason.as_deref().unwrap_or("it failed");
            let place = if step.line > 0 { format!("line {}: ", step.line) } else { String::new() };
            case.failures.push(cut(&format!("{place}{}: {reason}", step.command)));
        }
    }

    /// The case of the step at a place, which may be new. The step gives the case of those behind it a name, if it `names`.
    fn reach(&mut self, (line, column): (usize, usize), command: &str, names: Option<&str>) -> Option<usize> {
        if names.is_none() && self.named.is_some() {
            return self.named;
        }
        let place = (line, column, if line == 0 { command.to_owned() } else { String::new() });
        let case = match self.index.get(&place) {
            Some(case) => Some(*case),
            None if self.cases.len() >= MAX_CASES => None,
            None => {
                let name = match names {
                    Some(name) => name.to_owned(),
                    None if line == 0 => command.to_owned(),
                    None => format!("{line}: {command}"),
                };
                let (runs, seconds, failed, failures) = (0, 0.0, 0, Vec::new());
                self.cases.push(Case { name: cut(&name), runs, seconds, failed, failures });
                self.index.insert(place, self.cases.len() - 1);
                Some(self.cases.len() - 1)
            }
        };
        if names.is_some() {
            self.named = case;
        }
        case
    }

    pub(crate) fn suite(&self) -> &str {
        &self.suite
    }

    pub(crate) fn start(&self) -> Option<&Start> {
        self.start.as_ref()
    }

    /// How long the whole session took.
    pub(crate) fn seconds(&self) -> f64 {
        self.end.as_ref().map_or(0.0, |end| seconds(end.seconds))
    }

    /// All cases: their names, times and results. The session is the last.
    pub(crate) fn told(&self) -> Vec<(&str, f64, Result)> {
        let cases = self.cases.iter().map(|case| (case.name.as_str(), case.seconds, case.result()));
        let steps: f64 = self.cases.iter().map(|case| case.seconds).sum();
        let rest = (self.seconds() - steps).max(0.0);
        cases.chain([(SESSION, rest, self.session())]).collect()
    }

    /// How the session itself ended, apart from steps that failed.
    fn session(&self) -> Result {
        let Some(end) = &self.end else {
            let what = "the session has no end".to_owned();
            return Result::Error(what.clone(), what);
        };
        let reason = end.reason.as_deref().unwrap_or_default();
        let told = self.cases.iter().any(|case| case.failed > 0);
        match end.outcome {
            Outcome::Done => Result::Passed,
            Outcome::Failed if told => Result::Passed,
            Outcome::Failed if self.left_out_failed > 0 => {
                let what = format!(
                    "{} of {} commands failed that are in no case, because there are too many",
                    self.left_out_failed, self.left_out
                );
                Result::Failed(what.clone(), what)
            }
            outcome => {
                let first = reason.lines().next().unwrap_or_default();
                let message = format!("{} (status {}): {first}", outcome.as_str(), end.status);
                Result::Error(cut(&message), cut(reason))
            }
        }
    }
}

impl Case {
    fn result(&self) -> Result {
        let Some(first) = self.failures.first() else {
            return if self.runs == 0 { Result::Skipped } else { Result::Passed };
        };
        let message = first.lines().next().unwrap_or_default().to_owned();
        let mut text = self.failures.join("\n");
        if self.failed > self.failures.len() as u64 {
            text += &format!("\nand {} more", self.failed - self.failures.len() as u64);
        }
        Result::Failed(message, text)
    }
}

#[cfg(test)]
mod tests;
