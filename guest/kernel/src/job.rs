//! Kernel work as run-to-completion jobs: each CPU goes round its own list, lets every job take
//! one step, and halts when none has more to do. There are no threads and there is no
//! pre-emption, so a job holds no lock and no page reference between two steps.

use alloc::boxed::Box;
use alloc::vec::Vec;

use core::sync::atomic::{Ordering, fence};

use spin::Mutex;
use x86_64::instructions::interrupts;

use crate::cpu::lapic;
use crate::cpu::time::Instant;
use crate::cpu::{self, MAX_CPUS};

/// What a job wants after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The next step can follow at once.
    Again,
    /// Nothing to do until the CPU is woken, or until the instant.
    Idle(Option<Instant>),
    /// It is over; the job is dropped.
    Done,
}

/// A piece of work that is done in steps of at most a few milliseconds.
pub trait Job: Send {
    /// Takes one step. Called whenever its CPU goes round, also when the job was idle: whoever
    /// wakes a CPU does not say for whom.
    fn step(&mut self) -> Progress;
}

/// Jobs that were handed to a CPU and not yet picked up.
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
        area.passes.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence of `synchronize`: either that sees this pass, or this pass sees what was
        // made invisible before it (`guest/mm/tests/interleavings/sparse.rs`).
        fence(Ordering::SeqCst);
        area.pending.store(false, Ordering::SeqCst);
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
            Progress::Done => false,
        });
        if !again {
            sleep(area, wake_at);
        }
    }
}

/// Halts until an interrupt, unless there is something to do already.
fn sleep(area: &cpu::PerCpu, wake_at: Option<Instant>) {
    interrupts::disable();
    area.idle.store(true, Ordering::SeqCst);
    // Pairs with `lapic::wake`: `pending` is set before `idle` is looked at.
    if area.pending.load(Ordering::SeqCst) {
        interrupts::enable();
    } else {
        if let Some(instant) = wake_at {
            lapic::set_timer(instant);
        }
        interrupts::enable_and_hlt();
    }
    area.idle.store(false, Ordering::SeqCst);
}

/// Returns when every other CPU has been between two jobs, or halted, since the call: whatever
/// page references they held are gone. It is called by one CPU at a time, under the memory
/// hotplug lock.
///
/// # Panics
/// When a CPU does not come round within a minute.
pub fn synchronize() {
    const MILLIS: u64 = 60_000;
    // What the caller has just made invisible is so before the others' passes are looked at.
    fence(Ordering::SeqCst);
    let me = cpu::this();
    let deadline = Instant::in_millis(MILLIS);
    for index in (0..cpu::online()).filter(|&index| index != me) {
        let area = cpu::area(index);
        let seen = area.passes.load(Ordering::SeqCst);
        while !area.idle.load(Ordering::SeqCst) && area.passes.load(Ordering::SeqCst) == seen {
            assert!(!deadline.has_passed(), "CPU {index} did not finish its job's step within {MILLIS} ms");
            core::hint::spin_loop();
        }
    }
}
