//! Windows: places in the kernel where a test holds a CPU, so that a race is brought about and not hoped for.
//!
//! Takes the place of Linux's kprobes and of delays that people patch in to reproduce a race. A window that no test
//! has asked for costs a load.
//!
//! Invariants: a CPU that is held goes on when the test lets it go, when the CPU that has to wait for it waits, or
//! dies at a deadline. One test at a time uses windows (`agent/probe.rs`, `agent/race.rs`), because jobs of the boot
//! CPU ask for them.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use crate::cpu::{self, wait};

/// Longest time that a CPU is held, in milliseconds. A test lets it go after a moment.
const MILLIS: u64 = 60_000;

/// Rounds after which a CPU counts as one that waits.
const ROUNDS: u64 = 100;

/// A place in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Per-CPU lists were drained, and nothing is isolated yet.
    Drained,
    /// Pages to copy were posted, and the CPU that posted them has copied none.
    Posted,
    /// A CPU is about to copy a page that it has taken.
    Copying,
    /// A job has taken its last step, and is not dropped yet.
    JobEnded,
    /// The call of a probe was answered by the job that has just been dropped.
    Answered,
    /// In the step of a probe's job.
    Probe,
}

/// The CPUs that a window holds; the first of them that comes is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// This one.
    Only(usize),
    /// Any other one.
    AllBut(usize),
}

/// When a CPU that is held goes on, if the window was not opened before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When the window is opened.
    Opened,
    /// When this CPU waits.
    AwaitedBy(usize),
    /// When a CPU has come to this window.
    Reached(Window),
}

struct State {
    /// `plan` is something. Read without the lock.
    asked: AtomicBool,
    plan: Mutex<Option<(Cpus, Until)>>,
    reached: AtomicBool,
    open: AtomicBool,
    left: AtomicBool,
}

static WINDOWS: [State; Window::Probe as usize + 1] = [const {
    State {
        asked: AtomicBool::new(false),
        plan: Mutex::new(None),
        reached: AtomicBool::new(false),
        open: AtomicBool::new(false),
        left: AtomicBool::new(false),
    }
}; Window::Probe as usize + 1];

impl Window {
    fn state(self) -> &'static State {
        &WINDOWS[self as usize]
    }

    /// Asks that the first of `cpus` that comes here is held.
    pub fn hold(self, cpus: Cpus, until: Until) {
        let state = self.state();
        for flag in [&state.reached, &state.open, &state.left] {
            flag.store(false, Ordering::SeqCst);
        }
        *state.plan.lock() = Some((cpus, until));
        state.asked.store(true, Ordering::SeqCst);
    }

    /// Whether the CPU has come here, or was let go before.
    pub fn is_reached(self) -> bool {
        self.state().reached.load(Ordering::SeqCst)
    }

    /// Whether the CPU has gone on.
    pub fn is_left(self) -> bool {
        self.state().left.load(Ordering::SeqCst)
    }

    /// Lets the CPU go on. If none has come here, none will be held.
    pub fn open(self) {
        let state = self.state();
        state.asked.store(false, Ordering::SeqCst);
        *state.plan.lock() = None;
        state.open.store(true, Ordering::SeqCst);
        state.reached.store(true, Ordering::SeqCst);
    }

    /// This CPU comes here.
    #[inline]
    pub fn come(self) {
        if self.state().asked.load(Ordering::Relaxed) {
            self.stay();
        }
    }

    #[cold]
    fn stay(self) {
        let (state, me) = (self.state(), cpu::this());
        let is_meant = |&mut (cpus, _): &mut (Cpus, Until)| match cpus {
            Cpus::Only(index) => index == me,
            Cpus::AllBut(index) => index != me,
        };
        let Some((_, until)) = state.plan.lock().take_if(is_meant) else { return };
        state.asked.store(false, Ordering::SeqCst);
        state.reached.store(true, Ordering::SeqCst);
        let before = if let Until::AwaitedBy(index) = until { wait::rounds(index) } else { 0 };
        let may_go = || match until {
            Until::Opened => false,
            Until::AwaitedBy(index) => wait::rounds(index) - before >= ROUNDS,
            Until::Reached(other) => other.is_reached(),
        };
        wait::until(MILLIS, format_args!("CPU {me} was not let go at {self:?}"), || {
            state.open.load(Ordering::SeqCst) || may_go()
        });
        state.left.store(true, Ordering::SeqCst);
    }
}
