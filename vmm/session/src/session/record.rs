//! A session whose reports are kept, for those who judge it when it is over.

use std::io;

use tidevm_abi::Stats;

use super::failure::StepFailure;
use super::{BootReport, Machine, Observer, StepReport, Summary, run};
use crate::script::Script;

/// Everything a session told.
#[derive(Clone, Debug)]
pub struct Record {
    /// When the guest was up, if it came so far.
    pub boot: Option<BootReport>,
    /// Step by step.
    pub steps: Vec<StepReport>,
    /// How it ended.
    pub summary: Summary,
}

impl Record {
    /// The step whose text begins with `verb`, the last of several.
    #[must_use]
    pub fn step(&self, verb: &str) -> Option<&StepReport> {
        let begins = |step: &&StepReport| step.command.to_string().split(' ').next() == Some(verb);
        self.steps.iter().rev().find(begins)
    }

    /// The guest's counters after that step.
    #[must_use]
    pub fn stats_after(&self, verb: &str) -> Option<Stats> {
        self.step(verb)?.sample.guest
    }

    /// The reason why that step failed, if it did.
    #[must_use]
    pub fn failure(&self, verb: &str) -> Option<&StepFailure> {
        self.step(verb)?.result.as_ref().err()
    }
}

#[derive(Default)]
struct Recorder {
    boot: Option<BootReport>,
    steps: Vec<StepReport>,
}

impl Observer for Recorder {
    fn boot(&mut self, report: &BootReport) -> io::Result<()> {
        self.boot = Some(report.clone());
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> io::Result<()> {
        self.steps.push(report.clone());
        Ok(())
    }

    fn end(&mut self, _: &Summary) -> io::Result<()> {
        Ok(())
    }
}

/// As [`run`], and keeps what the session tells.
pub fn record<M: Machine>(machine: M, script: &Script) -> Record {
    let mut recorder = Recorder::default();
    let summary = run(machine, script, &mut recorder).expect("a recorder always writes");
    Record { boot: recorder.boot, steps: recorder.steps, summary }
}
