//! A whole session as one value, for judgements after its end.

use std::io;

use tidevm_abi::{Command, Stats};

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
    /// The step whose command `is_wanted`, the last of several.
    #[must_use]
    pub fn step(&self, is_wanted: impl Fn(&Command) -> bool) -> Option<&StepRun> {
        self.steps.iter().rev().find(|step| is_wanted(&step.command))
    }

    /// The guest's counters after that step.
    #[must_use]
    pub fn stats_after(&self, is_wanted: impl Fn(&Command) -> bool) -> Option<Stats> {
        self.step(is_wanted)?.sample.guest
    }

    /// Tells `observer` what the session told, step by step. What changed within a step is in no record.
    ///
    /// # Errors
    /// The observer cannot write.
    pub fn retell(&self, observer: &mut impl Observer) -> io::Result<()> {
        self.boot.iter().try_for_each(|booted| observer.boot(booted))?;
        self.steps.iter().try_for_each(|step| observer.step(step))?;
        observer.end(&self.summary)
    }

    /// The reason why that step failed, if it did.
    #[must_use]
    pub fn failure(&self, is_wanted: impl Fn(&Command) -> bool) -> Option<&StepFailure> {
        self.step(is_wanted)?.result.as_ref().err()
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
