//! An observer that shows nothing: standard output belongs to the guest's console.

use std::io;

use tidevm_session::{Booted, Observer, StepRun, Summary};

/// Shows nothing.
pub struct Quiet;

impl Observer for Quiet {
    fn boot(&mut self, _: &Booted) -> io::Result<()> {
        Ok(())
    }

    fn step(&mut self, _: &StepRun) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self, _: &Summary) -> io::Result<()> {
        Ok(())
    }
}
