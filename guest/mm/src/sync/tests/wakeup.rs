//! Wake-ups: work is seen, or its CPU is told to leave its halt.
//!
//! The two CPUs take their steps as the guest's job loop and its `lapic::wake` do (`guest/kernel/src/job.rs`).

use loom::thread;

use crate::grace::Passes;
use crate::sync::AtomicU32;
use crate::sync::Ordering::{Relaxed, SeqCst};
use crate::sync::tests::{fixed, model};
use crate::wakeup::Wakeup;

/// One CPU, and the places where others leave work for it. Work has no order of its own.
struct Cpu {
    passes: Passes,
    wakeup: Wakeup,
    work: [AtomicU32; 2],
    /// Interrupts that were sent to it.
    interrupts: AtomicU32,
}

impl Cpu {
    fn new() -> &'static Self {
        fixed(Self {
            passes: Passes::new(),
            wakeup: Wakeup::new(),
            work: [const { AtomicU32::new(0) }; 2],
            interrupts: AtomicU32::new(0),
        })
    }

    /// Another CPU has work for this one.
    fn wake(&self, place: usize) {
        self.work[place].store(1, Relaxed);
        if self.wakeup.ring(&self.passes) {
            self.interrupts.fetch_add(1, SeqCst);
        }
    }

    /// A pass over all work. Returns how much work was seen so far.
    fn pass(&self) -> u32 {
        self.passes.pass();
        self.wakeup.begin_pass();
        self.work.iter().map(|work| work.load(Relaxed)).sum()
    }

    /// Passes until there is nothing to do. Returns how much work was seen when it halted.
    fn run(&self) -> u32 {
        loop {
            let seen = self.pass();
            if self.wakeup.may_halt(&self.passes) {
                return seen;
            }
            self.passes.wake();
        }
    }
}

/// What is not seen when the CPU halts comes with an interrupt, which stays pending until the CPU takes it. The next
/// pass sees all.
#[test]
fn work_is_seen_or_an_interrupt_comes() {
    let cpu = Cpu::new();
    model(move || {
        let waker = thread::spawn(move || cpu.wake(0));
        let seen = cpu.run();
        waker.join().expect("it ends");
        assert!(
            seen == 1 || cpu.interrupts.load(SeqCst) == 1,
            "a CPU halts, and nobody wakes it for its work"
        );
    });
}

/// The interrupt comes to a CPU at work. Its handler raises the flag, for work that another CPU left.
#[test]
fn a_pass_that_takes_the_flag_back_sees_the_work() {
    let cpu = Cpu::new();
    model(move || {
        let waker = thread::spawn(move || {
            cpu.work[0].store(1, Relaxed);
            cpu.wakeup.raise();
        });
        let seen = cpu.run();
        let again = cpu.pass();
        waker.join().expect("it ends");
        let is_raised = !cpu.wakeup.may_halt(&cpu.passes);
        assert!(seen == 1 || again == 1 || is_raised, "a flag was taken back, and its work was not seen");
    });
}
