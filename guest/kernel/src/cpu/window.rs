//! Windows: places in the kernel where a test holds a CPU, so that a race is brought about and not hoped for.
//!
//! Takes the place of Linux's kprobes and of delays that people patch in to reproduce a race. A window that no test
//! has asked for costs a load.
//!
//! Invariants:
//! - A CPU that is held goes on when the test lets it go, when the CPU that has to wait for it waits, or dies at a
//!   deadline.
//! - One test at a time uses windows: the one that has [`Windows`].
//! - A request has a number. The CPU that is held for a request changes nothing of a later one, and goes on when there
//!   is a later one.

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

/// How far a request is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No CPU has come to the window.
    Asked(Cpus, Until),
    /// A CPU is held.
    Held,
    /// The window was opened. A CPU that was held may not have gone on yet.
    Opened,
    /// The CPU that was held has gone on.
    Left,
}

/// The last request to hold a CPU at a window.
struct Request {
    number: u64,
    stage: Stage,
}

struct State {
    /// The request is at [`Stage::Asked`]. Read without the lock, and written with it.
    asked: AtomicBool,
    request: Mutex<Request>,
}

static WINDOWS: [State; Window::ALL.len()] = [const {
    State { asked: AtomicBool::new(false), request: Mutex::new(Request { number: 0, stage: Stage::Opened }) }
}; Window::ALL.len()];

/// Whether a test has [`Windows`].
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The right to hold CPUs at windows. When it is dropped, all windows are opened, and another test can have it.
pub struct Windows(());

impl Windows {
    /// The right, unless a test has it.
    pub fn take() -> Option<Self> {
        // Not `then_some`: a value that is not returned would be dropped, and give the right back.
        (!TAKEN.swap(true, Ordering::Acquire)).then(|| Self(()))
    }

    /// Asks that the first of `cpus` that comes to `window` is held. A CPU that is held there now goes on.
    pub fn hold(&self, window: Window, cpus: Cpus, until: Until) {
        let state = window.state();
        let mut request = state.request.lock();
        *request = Request { number: request.number + 1, stage: Stage::Asked(cpus, until) };
        state.asked.store(true, Ordering::Relaxed);
    }

    /// Lets the CPU that is held at `window` go on. If none has come there, none will be held.
    pub fn open(&self, window: Window) {
        let state = window.state();
        let mut request = state.request.lock();
        if request.stage != Stage::Left {
            request.stage = Stage::Opened;
        }
        state.asked.store(false, Ordering::Relaxed);
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        Window::ALL.into_iter().for_each(|window| self.open(window));
        TAKEN.store(false, Ordering::Release);
    }
}

impl Window {
    const ALL: [Self; 6] =
        [Self::Drained, Self::Posted, Self::Copying, Self::JobEnded, Self::Answered, Self::Probe];

    fn state(self) -> &'static State {
        &WINDOWS[self as usize]
    }

    /// Whether a CPU has come here for the last request, or the window was opened.
    pub fn is_reached(self) -> bool {
        !matches!(self.state().request.lock().stage, Stage::Asked(..))
    }

    /// Whether the CPU that was held here for the last request has gone on.
    pub fn is_left(self) -> bool {
        self.state().request.lock().stage == Stage::Left
    }

    /// This CPU comes here.
    #[inline]
    pub fn come(self) {
        if self.state().asked.load(Ordering::Relaxed) {
            self.stay();
        }
    }

    /// Takes the request if this CPU is meant. Returns its number.
    fn enter(self) -> Option<(u64, Until)> {
        let (state, me) = (self.state(), cpu::this());
        let mut request = state.request.lock();
        let Stage::Asked(cpus, until) = request.stage else { return None };
        let is_meant = match cpus {
            Cpus::Only(index) => index == me,
            Cpus::AllBut(index) => index != me,
        };
        is_meant.then(|| {
            request.stage = Stage::Held;
            state.asked.store(false, Ordering::Relaxed);
            (request.number, until)
        })
    }

    #[cold]
    fn stay(self) {
        let Some((number, until)) = self.enter() else { return };
        let request = &self.state().request;
        let before = if let Until::AwaitedBy(index) = until { wait::rounds(index) } else { 0 };
        let may_go = || match until {
            Until::Opened => false,
            Until::AwaitedBy(index) => wait::rounds(index) - before >= ROUNDS,
            Until::Reached(other) => other.is_reached(),
        };
        let is_held = || {
            let request = request.lock();
            request.number == number && request.stage == Stage::Held
        };
        wait::until(MILLIS, format_args!("CPU {} was not let go at {self:?}", cpu::this()), || {
            !is_held() || may_go()
        });
        let mut request = request.lock();
        if request.number == number {
            request.stage = Stage::Left;
        }
    }
}
