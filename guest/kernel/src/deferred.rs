//! Boot memory that was left for later: initialised by all CPUs, section by section, beside everything
//! else that they do.

use alloc::boxed::Box;

use crate::job::{self, Job, Step};
use crate::time::Instant;
use crate::{MM, cpu, stamps};

/// One CPU's share.
struct InitDeferred {
    /// It sees to what comes after all of it.
    finishes: bool,
}

/// Has every CPU take its share, if there is anything left.
pub fn start() {
    if MM.stats().deferred_pages > 0 {
        for index in 0..cpu::online() {
            job::spawn(index, Box::new(InitDeferred { finishes: index == 0 }));
        }
    }
}

impl Job for InitDeferred {
    fn step(&mut self) -> Step {
        if MM.init_deferred() {
            Step::Again
        } else if !self.finishes {
            Step::Done
        } else if MM.finish_deferred() {
            stamps::initialised();
            Step::Done
        } else {
            // Others are at the last ones, a matter of milliseconds.
            Step::Idle(Some(Instant::in_millis(1)))
        }
    }
}
