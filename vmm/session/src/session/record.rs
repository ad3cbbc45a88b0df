//! A whole session as one value, for judgements after its end.

use std::io;

use tidevm_abi::Stats;

use super::failure::StepFailure;
use super::{Booted, Observer, StepRun, Summary, VmControl, run};
use crate::script::Script;

/// Everything that a session told its observer.
#[derive(Clone, Debug)]
pub struct Record {
    /// The boot, if the guest came up.
    pub boot: Option<Booted>,
    /// The steps in their order.
    pub steps: Vec<StepRun>,
    /// How it ended.
    pub summary: Summary,
}

impl Record {
    /// The step whose text begins with `verb`, the last of several.
    #[must_use]
    pub fn step(&self, verb: &str) -> Option<&StepRun> {
        let begins = |step: &&StepRun| step.command.to_string().split(' ').next() == Some(verb);
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
    boot: Option<Booted>,
    steps: Vec<StepRun>,
}

impl Observer for Recorder {
    fn boot(&mut self, booted: &Booted) -> io::Result<()> {
        self.boot = Some(booted.clone());
        Ok(())
    }

    fn step(&mut self, run: &StepRun) -> io::Result<()> {
        self.steps.push(run.clone());
        Ok(())
    }

    fn end(&mut self, _: &Summary) -> io::Result<()> {
        Ok(())
    }
}

/// As [`run`], with a record of what the session tells.
pub fn record<V: VmControl>(vm: V, script: &Script) -> Record {
    let mut recorder = Recorder::default();
    let summary = run(vm, script, &mut recorder).expect("a recorder always writes");
    Record { boot: recorder.boot, steps: recorder.steps, summary }
}
