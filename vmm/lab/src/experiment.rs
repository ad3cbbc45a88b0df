//! Experiments: the guest with a mechanism off and on, side by side.
//!
//! Each experiment is a few sessions on real VMs and one judgement that is the same for every side: from the
//! record of the session it finds a failure, a success, or neither. An experiment passes when every side with
//! the mechanism off shows the failure and every side with it on shows the success. A judgement reads typed
//! failures, answers and counters, and no text for people. Every number comes from the run that it is shown
//! for.
//!
//! | file | is |
//! | --- | --- |
//! | `experiment/*.rs` named as an experiment | its VMs, its script, its judgement |
//! | [`kvm_lab`] | sessions on this host, with progress on stderr |
//! | [`text`], [`json`], [`html`] | verdicts for people, for programs, and as a page with charts |
//!
//! An experiment runs sessions only through a [`Lab`], so that tests can let any session end in any way.
//! Identifiers such as S3.1 are claims of `docs/features.toml`.

mod auto;
mod boot_time;
mod double_init;
mod early_oom;
mod fleet;
pub mod html;
pub mod json;
pub mod kvm_lab;
mod memmap_oom;
mod offline_race;
mod parallel_init;
mod same_granularity;
#[cfg(test)]
mod tests;
pub mod text;

use std::time::{Duration, Instant};

use tidevm_abi::{Size, Stats};
use tidevm_machine::{Config, Death, StartError};
use tidevm_session::{Ended, Record};
use tidevm_sizer::{Pace, Status, Wish};

/// All experiments, in the order in which `all` runs them.
pub const ALL: &[Experiment] = &[
    early_oom::EXPERIMENT,
    memmap_oom::EXPERIMENT,
    offline_race::EXPERIMENT,
    double_init::EXPERIMENT,
    parallel_init::EXPERIMENT,
    same_granularity::EXPERIMENT,
    boot_time::EXPERIMENT,
    fleet::EXPERIMENT,
    auto::EXPERIMENT,
];

/// An experiment that can be run.
pub struct Experiment {
    /// Its name on the command line.
    pub name: &'static str,
    /// The question that it answers, one sentence.
    pub about: &'static str,
    run: fn(&mut dyn Lab) -> Result<Vec<Side>, Halt>,
}

/// The part of the host that an experiment needs.
pub trait Lab {
    /// Runs `script` on the VM `config`; `label` names the session in the progress.
    ///
    /// # Errors
    /// [`Halt`]: there is no session to judge.
    fn session(&mut self, label: &str, config: Config, script: &str) -> Result<Record, Halt>;

    /// Runs `script` on the VM `config`, which is sized as `sizing` says. Returns how it was sized too.
    ///
    /// # Errors
    /// [`Halt`]: there is no session to judge.
    fn sized(
        &mut self,
        label: &str,
        config: Config,
        sizing: (Wish, Pace),
        script: &str,
    ) -> Result<(Record, Option<Status>), Halt>;

    /// Bytes of memory that are available on the host now, if it reports them.
    fn available(&self) -> Option<u64>;

    /// The sessions since the last call, as drawings for a page.
    fn drawings(&mut self) -> Vec<Drawing> {
        Vec::new()
    }
}

/// A session as a drawing for a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawing {
    /// What names the session in the progress.
    pub label: String,
    /// Memory over time, as HTML that needs the style of [`tidevm_report`].
    pub timeline: String,
}

/// Why an experiment cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The host cannot run the VM.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A termination signal came.
    #[error("ended by signal {0}")]
    Signal(i32),
}

/// The result of an experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The experiment.
    pub name: &'static str,
    /// The question that it answers.
    pub about: &'static str,
    /// Sides with the mechanism off come first.
    pub sides: Vec<Side>,
    /// How long it took.
    pub took: Duration,
    /// Its sessions.
    pub drawings: Vec<Drawing>,
}

/// The guest with the mechanism in one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// Whether the mechanism is on.
    pub on: bool,
    /// The position, in a few words.
    pub setting: &'static str,
    /// The finding.
    pub finding: Finding,
    /// What happened, one sentence.
    pub what: String,
    /// Numbers of this run. All sides of an experiment have the same ones, in the same order.
    pub numbers: Vec<Number>,
}

/// The finding of a judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The failure that the mechanism prevents.
    Failure,
    /// The promise of the mechanism.
    Success,
    /// Neither: something else happened, and the experiment shows nothing.
    Neither,
}

/// A number of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Number {
    /// What it counts.
    pub name: String,
    /// The number.
    pub value: Value,
    /// Whether it is drawn. All drawn numbers of an experiment have one unit.
    pub charted: bool,
}

/// A number with its unit.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A count.
    Count(u64),
    /// A size in bytes.
    Size(Size),
    /// A time.
    Time(Duration),
    /// No number, for this reason.
    Missing(String),
}

impl Experiment {
    /// Runs it.
    ///
    /// # Errors
    /// [`Halt`].
    pub fn run(&self, lab: &mut dyn Lab) -> Result<Verdict, Halt> {
        let start = Instant::now();
        let sides = (self.run)(lab)?;
        let (took, drawings) = (start.elapsed(), lab.drawings());
        Ok(Verdict { name: self.name, about: self.about, sides, took, drawings })
    }
}

impl Verdict {
    /// Whether every side with the mechanism off shows the failure and every side with it on the success.
    #[must_use]
    pub fn passed(&self) -> bool {
        let expected = |side: &Side| if side.on { Finding::Success } else { Finding::Failure };
        let both = [false, true].iter().all(|on| self.sides.iter().any(|side| side.on == *on));
        both && self.sides.iter().all(|side| side.finding == expected(side))
    }
}

impl Side {
    /// `off` or `on`, and the position.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{}: {}", if self.on { "on" } else { "off" }, self.setting)
    }
}

impl Number {
    fn new(name: impl Into<String>, value: Value) -> Number {
        Number { name: name.into(), value, charted: false }
    }

    fn charted(name: impl Into<String>, value: Value) -> Number {
        Number { charted: true, ..Number::new(name, value) }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Count(count) => write!(f, "{count}"),
            Value::Size(size) => write!(f, "{size}"),
            Value::Time(time) if time.as_micros() < 1000 => write!(f, "{} us", time.as_micros()),
            Value::Time(time) if time.as_millis() < 1000 => write!(f, "{:.1} ms", time.as_secs_f64() * 1e3),
            Value::Time(time) => write!(f, "{:.2} s", time.as_secs_f64()),
            Value::Missing(_) => f.write_str("-"),
        }
    }
}

impl Value {
    /// The number in bytes, in seconds, or as a count.
    #[must_use]
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Count(number) | Value::Size(Size(number)) => Some(*number as f64),
            Value::Time(time) => Some(time.as_secs_f64()),
            Value::Missing(_) => None,
        }
    }
}

/// For people: how the session ended, for findings of [`Finding::Neither`].
fn how_it_ended(record: &Record) -> String {
    let failed = record.steps.iter().find_map(|step| {
        let failure = step.result.as_ref().err()?;
        Some(format!("`{}` failed: {failure}", step.command))
    });
    match (&record.summary.ended, failed) {
        (Ended::Died(death), _) => last_words(death),
        (_, Some(failed)) => failed,
        (Ended::Failed { reason: Some(reason) }, None) => reason.clone(),
        (Ended::Done, None) => "the session ended well, but did not show the expected result".to_owned(),
        (ended, None) => format!("the session ended with status {}", ended.status()),
    }
}

/// For people: the line of the panic on the guest's console, or the kind of death. No judgement reads it.
fn last_words(death: &Death) -> String {
    let line = death.text.lines().find_map(|line| line.split_once("| panic on ").map(|(_, words)| words));
    line.map_or_else(|| death.kind.to_string(), |words| format!("the guest died, panic on {words}"))
}

/// A number from the guest's counters, if there are any.
fn count(stats: Option<Stats>, number: fn(&Stats) -> u64) -> Value {
    let missing = || Value::Missing("the guest could not be asked".to_owned());
    stats.as_ref().map_or_else(missing, |stats| Value::Count(number(stats)))
}
