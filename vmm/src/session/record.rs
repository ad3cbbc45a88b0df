//! A session whose reports are kept, for those who judge it when it is over.

use std::io;

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
