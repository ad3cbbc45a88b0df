//! Messages that leave the guest: reports, and the answers to calls.
//!
//! Jobs on any CPU put messages here. Jobs on the boot CPU take them out: the control channel, or the shell
//! where there is no channel. So a job that answers does not depend on the channel or the shell.
//!
//! Invariants:
//! - A message stays here until it is taken, however early it was put. So reports of boot wait for the first
//!   pass of the job loop.
//! - A message is put before the boot CPU is woken, and the boot CPU looks at all its jobs after each
//!   wake-up. So no message waits for the next event.
//! - One job takes reports, and one takes the console's answers.

use alloc::collections::VecDeque;

use spin::Mutex;
use tidevm_abi::{Answer, Report};

use crate::cpu::lapic;
use crate::cpu::window::Window;

/// Reports that were not delivered yet, the oldest first.
static REPORTS: Mutex<VecDeque<Report>> = Mutex::new(VecDeque::new());

/// The answer to the shell's call. The shell makes one call at a time.
static CONSOLE_ANSWER: Mutex<Option<Answer>> = Mutex::new(None);

/// The answer to a probe's call. A probe makes one call at a time.
static PROBE_ANSWER: Mutex<Option<Answer>> = Mutex::new(None);

/// The side that made a call and gets its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requester {
    /// The VMM, by the call with this id.
    Vmm(u32),
    /// The user of the serial console.
    Console,
    /// A probe of the guest itself.
    Probe,
}

impl Requester {
    /// Answers the call.
    pub fn answer(self, answer: Answer) {
        match self {
            Self::Vmm(id) => report(Report::Done { id, answer }),
            Self::Console => leave(&CONSOLE_ANSWER, answer),
            Self::Probe => {
                leave(&PROBE_ANSWER, answer);
                Window::Answered.come();
            }
        }
    }
}

/// The answer to a call that a job carries out. It is given when this value is dropped.
///
/// A job has it as its last field, and jobs that share a call have it as the last field of the part that they share.
/// Fields are dropped in their order, so all memory of the job is free before its call is answered.
pub struct Reply {
    requester: Requester,
    answer: Option<Answer>,
}

impl Reply {
    /// The reply to a call of `requester`.
    pub fn to(requester: Requester) -> Self {
        Self { requester, answer: None }
    }

    /// Chooses the answer.
    pub fn set(&mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.requester.answer(self.answer.take().expect("a job that ends has an answer"));
    }
}

/// Leaves `report` for the job that delivers reports.
pub fn report(report: Report) {
    REPORTS.lock().push_back(report);
    lapic::wake(0);
}

/// Passes the reports to `deliver`, the oldest first, until it returns `false`; that report stays. Returns
/// whether all reports were delivered.
pub fn deliver_reports(mut deliver: impl FnMut(Report) -> bool) -> bool {
    loop {
        // Delivery is slow, so the lock is not held meanwhile. Only this job removes reports.
        let Some(report) = REPORTS.lock().front().copied() else { return true };
        if !deliver(report) {
            return false;
        }
        REPORTS.lock().pop_front();
    }
}

fn leave(place: &Mutex<Option<Answer>>, answer: Answer) {
    *place.lock() = Some(answer);
    lapic::wake(0);
}

/// Takes the answer to the shell's call, once it is there.
pub fn take_console_answer() -> Option<Answer> {
    CONSOLE_ANSWER.lock().take()
}

/// Takes the answer to a probe's call, once it is there.
pub fn take_probe_answer() -> Option<Answer> {
    PROBE_ANSWER.lock().take()
}
