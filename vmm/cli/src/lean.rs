//! An observer that gives the code of the start back to the host when the guest is up: most of the program was for that.

use std::io;
use std::time::Duration;

use tidevm_machine::{Confinement, Seccomp, give_code_back};
use tidevm_session::{Booted, Observer, Sample, StepRun, Summary};

/// Tells the observer of everything.
pub struct Lean<'o, O> {
    /// The observer.
    pub observer: &'o mut O,
    /// Without a filter somebody looks into the program, maybe by breakpoints, which lie in its code.
    pub confinement: Confinement,
}

impl<O: Observer> Observer for Lean<'_, O> {
    fn follows(&self) -> bool {
        self.observer.follows()
    }

    fn sample(&mut self, at: Duration, sample: &Sample) -> io::Result<()> {
        self.observer.sample(at, sample)
    }

    fn boot(&mut self, booted: &Booted) -> io::Result<()> {
        let told = self.observer.boot(booted);
        if self.confinement.seccomp == Seccomp::On {
            give_code_back();
        }
        told
    }

    fn step(&mut self, run: &StepRun) -> io::Result<()> {
        self.observer.step(run)
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.observer.end(summary)
    }
}
