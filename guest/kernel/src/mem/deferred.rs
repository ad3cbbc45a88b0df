//! Boot memory that was left for later: initialised beside everything else, section by section; by all
//! CPUs, each its own node's first, or by one worker that goes from node to node.

use alloc::boxed::Box;

use crate::cpu;
use crate::cpu::time::Instant;
use crate::job::{self, Job, Progress};
use crate::mem::{MM, stamps};

/// One CPU's share.
struct InitDeferred {
    /// It sees to what comes after all of it.
    finishes: bool,
}

/// All of it, on whatever CPU is near to what is next.
struct Migrant;

/// Has every CPU take its share, or `one_worker` all of it, if there is anything left.
pub fn start(one_worker: bool) {
    if MM.is_all_initialised() {
        return;
    }
    if one_worker {
        return job::spawn(0, Box::new(Migrant));
    }
    for index in 0..cpu::online() {
        job::spawn(index, Box::new(InitDeferred { finishes: index == 0 }));
    }
}

impl Job for InitDeferred {
    fn step(&mut self) -> Progress {
        if MM.init_deferred() {
            Progress::Again
        } else if self.finishes {
            finish()
        } else {
            Progress::Done
        }
    }
}

impl Job for Migrant {
    fn step(&mut self) -> Progress {
        match MM.next_deferred_cpu() {
            None => finish(),
            Some(index) if index == cpu::this() || index >= cpu::online() => {
                MM.init_deferred();
                Progress::Again
            }
            Some(index) => {
                job::spawn(index, Box::new(Migrant));
                Progress::Done
            }
        }
    }
}

fn finish() -> Progress {
    if MM.is_all_initialised() {
        stamps::initialised();
        return Progress::Done;
    }
    // Others are at the last ones, a matter of milliseconds.
    Progress::Idle(Some(Instant::in_millis(1)))
}
