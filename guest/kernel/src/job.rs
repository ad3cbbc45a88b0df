//! Kernel work as run-to-completion jobs: each CPU goes through its own list, lets every job take one step,
//! and halts when no job has more to do.
//!
//! Takes the place of Linux's threads and workqueues. It differs on purpose: there is no pre-emption, so
//! memory management needs no locks against its own CPU.
//!
//! Invariant: a job holds no lock and no page reference between two steps.

use alloc::boxed::Box;
use alloc::vec::Vec;

use spin::Mutex;
use tidevm_mm::Passes;
use x86_64::instructions::interrupts;

use crate::cpu::lapic;
use crate::cpu::time::Instant;
use crate::cpu::window::Window;
use crate::cpu::{self, MAX_CPUS, wait};

/// How a job goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The job has more to do: the next step can follow at once.
    Again,
    /// Nothing to do until the CPU is woken, or until the instant.
    Idle(Option<Instant>),
    /// The job has ended and is dropped. Its answer to a call is given then (`mailbox::Reply`).
    Done,
}

/// A piece of work, in steps of at most a few milliseconds.
pub trait Job: Send {
    /// Takes one step. Called in every pass of its CPU's job loop, also when the job is idle: a wake-up does
    /// not name the job that it is for.
    fn step(&mut self) -> Progress;
}

/// Per CPU: jobs that were handed to it and that it has not taken into its list.
static NEW: [Mutex<Vec<Box<dyn Job>>>; MAX_CPUS] = [const { Mutex::new(Vec::new()) }; MAX_CPUS];

/// Hands `job` to CPU `index`.
pub fn spawn(index: usize, job: Box<dyn Job>) {
    NEW[index].lock().push(job);
    lapic::wake(index);
}

/// The job loop of this CPU. Does not return.
pub fn run() -> ! {
    let me = cpu::this();
    let area = cpu::area(me);
    let mut jobs: Vec<Box<dyn Job>> = Vec::new();
    interrupts::enable();
    loop {
        area.passes.pass();
        area.wakeup.begin_pass();
        jobs.append(&mut NEW[me].lock());
        let mut again = false;
        let mut wake_at: Option<Instant> = None;
        jobs.retain_mut(|job| match job.step() {
            Progress::Again => {
                again = true;
                true
            }
            Progress::Idle(until) => {
                wake_at = [wake_at, until].into_iter().flatten().min();
                true
            }
            Progress::Done => {
                Window::JobEnded.come();
                false
            }
        });
        if !again {
            sleep(area, wake_at);
        }
    }
}

/// Halts until an interrupt, unless the CPU was woken since the pass began.
fn sleep(area: &cpu::PerCpu, wake_at: Option<Instant>) {
    interrupts::disable();
    if area.wakeup.may_halt(&area.passes) {
        if let Some(instant) = wake_at {
            lapic::set_timer(instant);
        }
        interrupts::enable_and_hlt();
    } else {
        interrupts::enable();
    }
    area.passes.wake();
}

/// Waits until every other CPU has been between two jobs, or halted, since the call. The page references that
/// they held at the call are gone then, and each of them has seen what was written before, such as the limits of stopped
/// per-CPU lists. Called under the memory hotplug lock, so by one CPU at a time.
///
/// # Panics
/// When a CPU does not finish its step within a minute.
pub fn synchronize() {
    const MILLIS: u64 = 60_000;
    let me = cpu::this();
    let others = (0..cpu::online()).filter(|&index| index != me);
    Passes::synchronize(others.map(|index| (index, &cpu::area(index).passes)), |index, done| {
        wait::until(MILLIS, format_args!("CPU {index} did not finish its job's step"), done);
    });
}
