//! A session: the steps of a script on a running machine, one report a step.
//!
//! What a failure does to the session:
//!
//! | step | fails when | then |
//! | --- | --- | --- |
//! | `resize`, `plug`, `unplug` | the device refuses it, the guest is blocked, or the deadline passes | the session goes on, status 1 at its end |
//! | `expect` | it does not hold (at its deadline) | the guest is powered off, status 1 |
//! | `verify`, `release` | a page's content is wrong or pages are missing | the guest is powered off, status 1 |
//! | any | the guest does not answer in time | the guest is powered off, status 1 |
//! | any | the guest dies | status 4 with the report |
//! | any | the guest powers off by itself | status 1 |
//! | any | a termination signal comes | the guest is powered off, status 128 + signal |
//! | `hog` and others | the guest resets before it answers, or the workload went with a reset | the guest is powered off, status 1 |
//!
//! A resize without `within` has [`RESIZE_DEADLINE`], and fails at once when the guest says that it
//! is blocked; with `within` it waits until then, because what blocks it may go away. Churns run
//! while other steps do; those that no `wait` or `release` has awaited are awaited before the guest
//! is powered off.
//!
//! A guest that resets boots again, and the session goes on: a resize that is under way is done when the
//! new guest has come to rest at the target. The step says that there was a reset.
//!
//! A kernel that is not tidevm's own has no agent ([`Machine::has_agent`]): there is no first report to
//! wait for, a resize is at rest when the device says so, what only an agent can do fails, and in the end the
//! machine is stopped without asking.
//!
//! The session knows machines only as a [`Machine`], and shows nothing itself: an [`Observer`] does.

mod blocks;
mod expect;
mod failure;
#[cfg(test)]
mod fake;
mod machine;
mod pmem;
mod record;
mod report;
mod resize;
#[cfg(test)]
mod tests;
mod workload;

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Command, Op, Size, Stats};
use tidevm_machine::{End, ExitCounts, GRACE, Ready, STOP_LIMIT, WaitError};

use failure::{Done, SessionError, StepError, unfit};
pub use failure::{StepFailure, Stopped};
pub use machine::Machine;
pub use record::{Record, record};
pub use report::{BootReport, DeviceSample, Ended, Observer, Rate, Sample, StepReport, Summary};

use workload::Workloads;

use crate::script::{Script, Statement, Step};

/// How long the guest may take from its start to its first report, besides what its memory costs.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// What a GiB of boot memory adds to [`BOOT_DEADLINE`]: struct pages are initialised before the first
/// report. On the slowest host known that takes half a second; this is ten times as long.
pub const BOOT_DEADLINE_PER_GIB: Duration = Duration::from_secs(5);

/// How long a resize may take that says nothing else.
pub const RESIZE_DEADLINE: Duration = Duration::from_secs(60);

/// How long the guest may take to answer, besides the work that the question asks for.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// How long the guest may take to power off before it is ended.
pub const POWER_OFF_DEADLINE: Duration = Duration::from_secs(10);

// Or a signal would end the process while the session still ends in good order. Of a reset that is under
// way the end waits until the vCPUs have left the guest or memory was given back: the one within
// STOP_LIMIT, and then no vCPU is left that the end would have to wait for; the other within what is left.
const _: () = assert!(POWER_OFF_DEADLINE.as_secs() + STOP_LIMIT.as_secs() < GRACE.as_secs());

/// Longer than any machine runs.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Time between two looks of an `expect ... within`.
const POLL: Duration = Duration::from_millis(100);

/// Note of a step during which the guest was reset.
const RESET: &str = "the guest was reset";

struct Session<'s, M, O> {
    machine: M,
    observer: &'s mut O,
    workloads: Workloads,
    /// What the guest answered last, but for its counters.
    answer: Cell<Option<Answer>>,
    /// Resets of the guest that the session knows of.
    resets: u64,
    summary: Summary,
}

/// Runs `script` on `machine`, and stops the machine whatever comes of it.
///
/// # Errors
/// When `observer` cannot write; the machine is stopped all the same.
pub fn run<M: Machine, O: Observer>(machine: M, script: &Script, observer: &mut O) -> io::Result<Summary> {
    let mut session = Session::new(machine, observer);
    let start = session.machine.now();
    let result = session
        .boot(session.boot_deadline())
        .and_then(|()| session.body(&script.body))
        .and_then(|()| session.await_churns());
    session.end(start, result)
}

/// Stays with `machine` until its guest ends or a signal comes, and stops it.
///
/// # Errors
/// When `observer` cannot write; the machine is stopped all the same.
pub fn stay<M: Machine, O: Observer>(machine: M, observer: &mut O) -> io::Result<Summary> {
    let mut session = Session::new(machine, observer);
    let start = session.machine.now();
    let result = match session.boot(FOREVER).and_then(|()| Ok(session.pause(FOREVER)?)) {
        Err(SessionError::Step(StepError::Fatal(StepFailure::Ended(
            WaitError::Signal(_) | WaitError::PoweredOff,
        )))) => Ok(()),
        result => result,
    };
    session.end(start, result)
}

impl<'s, M: Machine, O: Observer> Session<'s, M, O> {
    fn new(machine: M, observer: &'s mut O) -> Self {
        let (workloads, summary) = (Workloads::default(), Summary::default());
        Session { machine, observer, workloads, answer: Cell::default(), resets: 0, summary }
    }

    fn boot_deadline(&self) -> Duration {
        let gib = self.machine.boot_memory().div_ceil(1 << 30);
        BOOT_DEADLINE + BOOT_DEADLINE_PER_GIB.saturating_mul(u32::try_from(gib).unwrap_or(u32::MAX))
    }

    fn boot(&mut self, limit: Duration) -> Result<(), SessionError> {
        if !self.machine.has_agent() {
            let sample = self.outside();
            return self.observer.boot(&BootReport { ready: None, sample }).map_err(SessionError::Output);
        }
        let ready = self.await_ready(limit)?;
        self.summary.boot = Some(ready.after);
        let mut sample = self.outside();
        sample.guest = Some(self.inside()?);
        self.observer.boot(&BootReport { ready: Some(ready), sample }).map_err(SessionError::Output)
    }

    fn await_ready(&self, limit: Duration) -> Result<Ready, StepError> {
        let memory = Size(self.machine.boot_memory());
        let what = format!("the first report of a guest with {memory} of boot memory");
        Ok(self.machine.wait(limit, &what, |state| state.ready)?)
    }

    fn body(&mut self, body: &[Statement]) -> Result<(), SessionError> {
        for statement in body {
            match statement {
                Statement::Step(step) => self.step(step)?,
                Statement::Repeat { times, body } => {
                    for _ in 0..*times {
                        self.body(body)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn await_churns(&mut self) -> Result<(), SessionError> {
        while let Some(name) = self.workloads.running_churn() {
            self.step(&Step { line: 0, column: 0, command: Command::Wait(name) })?;
        }
        Ok(())
    }

    /// Runs a step and tells the observer the result.
    fn step(&mut self, step: &Step) -> Result<(), SessionError> {
        let start = self.machine.now();
        self.notice_resets();
        let mut result = self.execute(&step.command);
        let answer = self.answer.take();
        let took = self.machine.now() - start;
        let mut sample = self.outside();
        if self.machine.has_agent() && !matches!(result, Err(StepError::Fatal(StepFailure::Ended(_)))) {
            match self.inside() {
                Ok(stats) => sample.guest = Some(stats),
                Err(error) => result = result.and(Err(error)),
            }
        }
        if self.notice_resets() {
            result = match result {
                Ok(note) => {
                    Ok(Some(note.map_or_else(|| RESET.to_owned(), |note| format!("{note}; {RESET}"))))
                }
                Err(error) => Err(error.with_reset()),
            };
        }
        self.summary.steps += 1;
        self.summary.failed += u64::from(result.is_err());
        let (line, column, command) = (step.line, step.column, step.command.clone());
        let told = result.as_ref().map(Clone::clone).map_err(|error| error.failure().clone());
        let report = StepReport { line, column, command, took, result: told, answer, sample };
        self.observer.step(&report).map_err(SessionError::Output)?;
        match result {
            Ok(_) | Err(StepError::Failed(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the guest was reset since the last look. Its workloads are gone then.
    fn notice_resets(&mut self) -> bool {
        let before = std::mem::replace(&mut self.resets, self.machine.state().resets);
        let reset = before != self.resets;
        if reset {
            self.workloads.lose();
        }
        reset
    }

    fn execute(&mut self, command: &Command) -> Done {
        match command {
            Command::Resize(resize) => self.resize(resize),
            Command::Hog(hog) => self.hog(hog),
            Command::Churn(churn) => self.churn(churn),
            // Whatever has no name here has none for that reason.
            Command::Verify(name) => self.need_agent().and_then(|()| self.verify(name)),
            Command::Release(name) => self.need_agent().and_then(|()| self.release(name)),
            Command::Wait(name) => self.need_agent().and_then(|()| self.await_churn(name)),
            Command::Expect(expect) => self.expect(expect),
            Command::Stats => Ok(None),
            Command::Check => match self.ask(Op::Check, ANSWER_DEADLINE)? {
                answer @ Answer::Checked { .. } => Ok(Some(answer.to_string())),
                other => Err(unfit(other)),
            },
            Command::Blocks => self.blocks(),
            Command::Readd { size, addr } => self.readd(*size, *addr),
            Command::Pmem(pmem) => self.pmem(pmem),
            Command::Race { cycles } => self.race(*cycles),
            Command::Sleep(time) => self.pause(*time).map(|()| None),
            Command::Inject { step, after } => {
                match self.ask(Op::Inject { step: *step, after: *after }, ANSWER_DEADLINE)? {
                    Answer::Done => Ok(None),
                    other => Err(unfit(other)),
                }
            }
        }
    }

    /// Whether there is somebody in the guest who does what a session asks for.
    fn need_agent(&self) -> Result<(), StepError> {
        if self.machine.has_agent() {
            return Ok(());
        }
        Err(StepError::Failed(StepFailure::NoAgent))
    }

    /// Calls the guest, if there is somebody to hear it.
    fn call(&self, op: Op) -> Result<u32, StepError> {
        self.need_agent()?;
        Ok(self.machine.call(op)?)
    }

    /// Calls the guest and waits for the answer.
    fn ask(&self, op: Op, limit: Duration) -> Result<Answer, StepError> {
        let id = self.call(op)?;
        let answer = self.machine.answer(id, limit, "the guest's answer")?;
        if !matches!(answer, Answer::Stats(_)) {
            self.answer.set(Some(answer));
        }
        Ok(answer)
    }

    /// Lets time pass, attentive to the guest's end and to signals.
    fn pause(&self, time: Duration) -> Result<(), StepError> {
        match self.machine.wait(time, "the end of a pause", |_| None::<()>) {
            Ok(()) | Err(WaitError::Deadline { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What can be seen of the machine without its guest.
    fn outside(&self) -> Sample {
        let state = self.machine.state();
        let devices = state.mem.iter().enumerate().map(|(index, mem)| DeviceSample {
            region_size: mem.region_size,
            requested: mem.requested,
            plugged: mem.plugged,
            held: self.machine.held(index).ok(),
        });
        Sample { devices: devices.collect(), guest: None }
    }

    /// The counters of the guest, for the session's own sake: a guest that resets is asked again when it
    /// is up.
    fn inside(&self) -> Result<Stats, StepError> {
        let deadline = self.machine.now() + self.boot_deadline();
        loop {
            self.await_ready(deadline.saturating_duration_since(self.machine.now()))?;
            match self.guest_stats() {
                Err(StepError::Fatal(StepFailure::Ended(WaitError::Reset)))
                    if self.machine.now() < deadline => {}
                result => return result,
            }
        }
    }

    fn guest_stats(&self) -> Result<Stats, StepError> {
        match self.ask(Op::Stats, ANSWER_DEADLINE)? {
            Answer::Stats(stats) => Ok(stats),
            other => Err(unfit(other)),
        }
    }

    fn end(self, start: Instant, result: Result<(), SessionError>) -> io::Result<Summary> {
        let Session { machine, observer, mut summary, .. } = self;
        summary.total = machine.now() - start;
        summary.exits = machine.exits().iter().fold(ExitCounts::default(), add);
        let state = machine.state();
        (summary.stray_accesses, summary.bad_records) = (state.stray_accesses, state.bad_records);
        summary.resets = state.resets;
        let end = machine.stop(POWER_OFF_DEADLINE);
        let mut output = Ok(());
        let ended = match result {
            Ok(()) if summary.failed == 0 => Ended::Done,
            Ok(()) => Ended::Failed { reason: None },
            Err(SessionError::Output(error)) => {
                let reason = Some(error.to_string());
                output = Err(error);
                Ended::Failed { reason }
            }
            Err(SessionError::Step(error)) => match error.failure() {
                StepFailure::Ended(WaitError::Died(death)) => Ended::Died(death.clone()),
                StepFailure::Ended(WaitError::Signal(signal)) => Ended::Signal { signal: *signal },
                failure => Ended::Failed { reason: Some(failure.to_string()) },
            },
        };
        summary.ended = match (ended, end) {
            (ended @ Ended::Died(_), _) => ended,
            (_, End::Died(death)) => Ended::Died(death),
            (Ended::Done, End::Forced { asked: true }) => {
                let reason = "the guest did not power off when asked, and was ended".to_owned();
                Ended::Failed { reason: Some(reason) }
            }
            (ended, End::PoweredOff | End::Forced { .. }) => ended,
        };
        output?;
        observer.end(&summary)?;
        Ok(summary)
    }
}

fn add(sum: ExitCounts, exits: &ExitCounts) -> ExitCounts {
    ExitCounts {
        io: sum.io + exits.io,
        mmio: sum.mmio + exits.mmio,
        stray: sum.stray + exits.stray,
        interrupted: sum.interrupted + exits.interrupted,
        other: sum.other + exits.other,
    }
}
