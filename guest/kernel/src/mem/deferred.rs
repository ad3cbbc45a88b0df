//! Boot memory whose struct pages boot left uninitialised: initialised section by section beside everything
//! else.
//!
//! Mirrors Linux `deferred_init_memmap`. Either all CPUs take part, each with the memory of its own node
//! first, or one worker goes from node to node.

use alloc::boxed::Box;

use tidevm_abi::cmdline::DeferredWorkers;

use crate::cpu;
use crate::cpu::time::Instant;
use crate::job::{self, Job, Progress};
use crate::mem::{MM, stamps};

/// One CPU's part.
struct InitDeferred {
    /// This job records the end of the initialisation.
    finishes: bool,
}

/// The one worker. It moves to a CPU of the node whose memory is next.
struct Worker;

/// Starts a job on every CPU, or a single worker, if anything is left to initialise.
pub fn start(workers: DeferredWorkers) {
    if MM.is_all_initialised() {
        return;
    }
    match workers {
        DeferredWorkers::One => job::spawn(0, Box::new(Worker)),
        DeferredWorkers::All => (0..cpu::online())
            .for_each(|index| job::spawn(index, Box::new(InitDeferred { finishes: index == 0 }))),
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

impl Job for Worker {
    fn step(&mut self) -> Progress {
        match MM.next_deferred_cpu() {
            None => finish(),
            Some(index) if index == cpu::this() || index >= cpu::online() => {
                MM.init_deferred();
                Progress::Again
            }
            Some(index) => {
                job::spawn(index, Box::new(Worker));
                Progress::Done
            }
        }
    }
}

/// Records the end of the initialisation, or waits for it.
fn finish() -> Progress {
    if MM.is_all_initialised() {
        stamps::initialised();
        return Progress::Done;
    }
    // Other CPUs are initialising the last sections, which takes milliseconds.
    Progress::Idle(Some(Instant::in_millis(1)))
}
