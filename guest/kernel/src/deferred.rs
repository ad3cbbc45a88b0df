//! Boot memory that was left for later: initialised by all CPUs, section by section, beside everything
//! else that they do.

use alloc::boxed::Box;

use crate::job::{self, Job, Step};
use crate::time::Instant;
use crate::{MM, cpu};

/// One CPU's share.
struct InitDeferred {
    /// It sees to what comes after the last section.
    is_last: bool,
}

/// Has every CPU take its share.
pub fn start() {
    for index in 0..cpu::online() {
        job::spawn(index, Box::new(InitDeferred { is_last: index == 0 }));
    }
}

impl Job for InitDeferred {
    fn step(&mut self) -> Step {
        if MM.init_deferred() {
            Step::Again
        } else if self.is_last && !MM.finish_deferred() {
            // Others are at the last ones, a matter of milliseconds.
            Step::Idle(Some(Instant::in_millis(1)))
        } else {
            Step::Done
        }
    }
}
