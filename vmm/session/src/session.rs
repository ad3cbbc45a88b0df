//! A session: runs the steps of a script on a running VM, and tells an observer of each.
//!
//! What a failure does to the session:
//!
//! | step | fails when | then |
//! | --- | --- | --- |
//! | `resize`, `plug`, `unplug` | the device refuses it, the guest is blocked, or the deadline passes | the session goes on, status 1 at its end |
//! | `reset` | the guest is not up again at the deadline | the guest is ended, status 1 |
//! | `expect` | it does not hold (at its deadline) | the guest is powered off, status 1 |
//! | `verify`, `release` | a page's content is wrong or pages are missing | the guest is powered off, status 1 |
//! | any | the guest does not answer in time | the guest is ended, status 1 |
//! | any | the guest dies | status 4 with the text on the death |
//! | any | the guest powers off by itself | status 1 |
//! | any | a termination signal comes | the guest is powered off, status 128 + signal |
//! | `hog` and others | the guest resets before it answers, or the workload ended with a reset | the guest is powered off, status 1 |
//! | `hog`, `pmem` and others | the guest refuses: it does not fit, say | the session goes on, status 1 at its end |
//! | any | the guest's kernel tells of its own trouble | the session goes on, status 1 at its end |
//! | any | the time of all is over | the guest is powered off, status 124 |
//! | `fails` | its command does not fail, or for another reason | the guest is powered off, status 1 |
//!
//! A resize without `within` has [`resize_deadline`], and fails at once when the guest reports that it is
//! blocked. With `within` it waits until that deadline, because the obstacle may go away. Churns run beside
//! other steps. A churn that no `wait` or `release` has awaited is awaited before the guest is powered off.
//!
//! A guest that resets by itself boots again, and the session goes on. A resize during a reset is done when the new
//! guest has reached the target. The note of the step says that there was a reset. After a step `reset` the workloads of
//! before are gone without a failure. A churn among them is not awaited.
//!
//! When a wait for the guest reaches its deadline, the observer is told what every vCPU does.
//!
//! A kernel other than tidevm's own has no agent ([`VmControl::has_agent`]), unless it is Linux and the VMM gave it one. Then
//! there is no first report to wait for, steps that need the agent fail, and at the end the VM is stopped without a request
//! to the guest. Drivers of such kernels do not report ([`VmControl::reports`]), with or without an agent: a resize is done
//! when the device has reached the target.
//!
//! Invariants: the session knows a VM only as a [`VmControl`], and shows nothing itself. Each step is told to
//! the [`Observer`] once, and the VM is stopped once, or saved.

mod blocks;
mod boot;
mod console;
mod deadline;
mod ending;
mod expect;
mod fails;
mod failure;
#[cfg(test)]
mod fake;
mod follow;
mod observer;
mod pmem;
mod record;
mod reset;
mod resize;
mod sample;
mod silence;
#[cfg(test)]
mod tests;
mod vm_control;
mod watch;
mod workload;

use std::cell::{Cell, RefCell};
use std::io;
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, BlockRun, Command, Failure, Op, ProbedWait, Size};
use tidevm_machine::{GRACE, STOP_LIMIT, State, WaitError};

use console::Reading;
use deadline::Work;
pub use deadline::{ANSWER_DEADLINE, BOOT_DEADLINE, RESIZE_DEADLINE, resize_deadline};
use fails::expected_failure;
use failure::{Done, SessionError, StepError, unfit};
pub use failure::{StepFailure, Stopped};
pub use follow::{Line, Lines, Manner, follow};
pub use observer::{Blocks, Booted, Both, DeviceSample, Ended, Observer, Rate, Sample, StepRun, Summary};
pub use record::{Record, record};
use silence::look_at_silent;
pub use vm_control::VmControl;
use watch::Watch;
use workload::Workloads;

use crate::remembered::Remembered;
use crate::script::{Script, Statement, Step, count_steps};

/// Longest time until the guest has powered off after it was asked to. Then the VM is ended by force, and a guest that
/// has left a call unanswered is ended at once.
pub const POWER_OFF_DEADLINE: Duration = Duration::from_secs(10);

// Otherwise the second stage of a signal would end the process while the session still ends in good order.
// If a reset is under way, the stop waits until the vCPUs have left the guest (within STOP_LIMIT) or until
// memory was given back (within POWER_OFF_DEADLINE; no vCPU is left to wait for then).
const _: () = assert!(POWER_OFF_DEADLINE.as_secs() + STOP_LIMIT.as_secs() < GRACE.as_secs());

/// Longer than any VM runs.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Time between two looks of an `expect ... within`.
const POLL: Duration = Duration::from_millis(100);

/// Note of a step during which the guest was reset.
const RESET: &str = "the guest was reset";

struct Session<'s, V, O> {
    vm: V,
    workloads: Workloads,
    /// The guest's last answer during the current step, counters excluded.
    answer: Cell<Option<Answer>>,
    /// All memory blocks, if the current step listed them.
    listed: RefCell<Option<Vec<BlockRun>>>,
    /// When the VM was started.
    start: Instant,
    watch: Watch<'s, O>,
    /// How far the console was read.
    reading: Reading,
    /// The name of the steps that run.
    name: Option<String>,
    /// Resets that the session has noticed.
    resets: u64,
    /// The guest has left a call unanswered. It is not waited for again.
    silent: bool,
    manner: Manner,
    /// The interrupts of a person that were seen.
    interrupts: u64,
    summary: Summary,
}

/// Runs `script` on `vm`, and stops the VM in any case.
///
/// # Errors
/// When `observer` cannot write; the VM is stopped all the same.
pub fn run<V: VmControl, O: Observer>(vm: V, script: &Script, observer: &mut O) -> io::Result<Summary> {
    let mut session = Session::new(vm, observer);
    let result = session
        .boot(session.boot_deadline())
        .and_then(|()| session.body(&script.body))
        .and_then(|()| session.await_churns())
        .and_then(|()| session.late_alarms());
    session.end(result)
}

/// Waits until the guest of `vm` ends or a signal comes, and stops the VM.
///
/// # Errors
/// When `observer` cannot write; the VM is stopped all the same.
pub fn stay<V: VmControl, O: Observer>(vm: V, observer: &mut O) -> io::Result<Summary> {
    let mut session = Session::new(vm, observer);
    let result = match session.boot(FOREVER).and_then(|()| Ok(session.pause(FOREVER)?)) {
        Err(SessionError::Step(StepError::Fatal(StepFailure::Ended(
            WaitError::Signal(_) | WaitError::PoweredOff,
        )))) => Ok(()),
        result => result,
    };
    session.end(result)
}

impl<'s, V: VmControl, O: Observer> Session<'s, V, O> {
    fn new(vm: V, observer: &'s mut O) -> Self {
        Session {
            start: vm.started(),
            workloads: Workloads::recall(Remembered::from_bytes(vm.remembered()), vm.now()),
            vm,
            answer: Cell::default(),
            listed: RefCell::default(),
            watch: Watch::new(observer),
            reading: Reading::default(),
            name: None,
            resets: 0,
            silent: false,
            manner: Manner::Script,
            interrupts: 0,
            summary: Summary::default(),
        }
    }

    /// What of `size` there can be in this machine: no work is more than that on all its memory.
    fn most_of(&self, size: Size) -> Size {
        let devices: Size = self.vm.state().mem.iter().map(|mem| mem.region_size).sum();
        let all = [self.vm.boot_memory(), self.vm.device_memory(), devices.0];
        size.min(all.into_iter().map(Size).sum())
    }

    fn body(&mut self, body: &[Statement]) -> Result<(), SessionError> {
        for statement in body {
            if self.is_cancelled() {
                return Ok(());
            }
            match statement {
                Statement::Step(step) => self.step(step)?,
                // Without a step there is nothing that a round could do.
                Statement::Repeat { body, .. } if count_steps(body) == 0 => {}
                Statement::Repeat { times, body } => {
                    for _ in 0..*times {
                        self.look_up()?;
                        self.body(body)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Fails when a signal came or the guest ended. Not every step waits for the guest and so looks itself.
    fn look_up(&self) -> Result<(), StepError> {
        match self.vm.wait(Duration::ZERO, "nothing", |_| None::<()>) {
            Ok(()) | Err(WaitError::Deadline { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn await_churns(&mut self) -> Result<(), SessionError> {
        while let Some(name) = self.workloads.running_churn() {
            self.step(&Step { line: 0, column: 0, command: Command::Wait(name) })?;
        }
        Ok(())
    }

    /// Runs a step and tells the observer the result.
    fn step(&mut self, step: &Step) -> Result<(), SessionError> {
        let start = self.vm.now();
        self.notice_resets();
        let mut result = self.execute(step.command.carried_out());
        let mut vcpus = look_at_silent(&self.vm, result.as_ref().err());
        let (answer, listed) = (self.answer.take(), self.listed.take());
        let took = self.vm.now() - start;
        let mut sample = self.outside();
        (sample.guest, sample.blocks) = self
            .counters_after(took, &mut result, &mut vcpus)
            .map_or((None, None), |(stats, blocks)| (Some(stats), blocks));
        if self.notice_resets() {
            result = match result {
                Ok(note) => {
                    Ok(Some(note.map_or_else(|| RESET.to_owned(), |note| format!("{note}; {RESET}"))))
                }
                Err(error) => Err(error.with_reset()),
            };
        }
        if let Command::Fails(fails) = &step.command {
            result = expected_failure(fails, result, self.silent);
            if result.is_ok() {
                vcpus.clear();
            }
        }
        result = self.with_alarms(result);
        self.summary.steps += 1;
        self.summary.failed += u64::from(result.is_err());
        let (line, column, name, command) = (step.line, step.column, self.name.clone(), step.command.clone());
        let told = result.as_ref().map(Clone::clone).map_err(|error| error.failure().clone());
        let start = start - self.start;
        let run =
            StepRun { line, column, name, command, start, took, result: told, answer, listed, sample, vcpus };
        self.watch.observer().step(&run).map_err(SessionError::Output)?;
        match result {
            Err(error) if !self.survives(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether the guest was reset since the last call. If so, its workloads are lost.
    fn notice_resets(&mut self) -> bool {
        let before = std::mem::replace(&mut self.resets, self.vm.state().resets);
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
            // Without an agent no workload has a name. The missing agent is the better reason.
            Command::Verify(name) => self.need_agent().and_then(|()| self.verify(name)),
            Command::Release(name) => self.need_agent().and_then(|()| self.release(name)),
            Command::Wait(name) => self.need_agent().and_then(|()| self.await_churn(name)),
            Command::WaitBoot { within } => self.wait_boot(*within),
            Command::Step(name) => {
                self.name = Some(name.clone());
                Ok(None)
            }
            Command::Expect(expect) => self.expect(expect),
            Command::ExpectConsole(expect) => self.expect_console(expect),
            // `carried_out` has taken it off.
            Command::Fails(fails) => self.execute(&fails.command),
            Command::Stats => Ok(None),
            Command::Check => match self.ask(Op::Check, ANSWER_DEADLINE)? {
                answer @ Answer::Checked { .. } => Ok(Some(answer.to_string())),
                Answer::Failed(failure @ Failure::Disagree(_)) => {
                    Err(StepError::refused(failure).into_fatal())
                }
                other => Err(unfit(other)),
            },
            Command::Blocks => self.blocks(),
            Command::Meminfo => match self.ask(Op::Meminfo, ANSWER_DEADLINE)? {
                answer @ Answer::Meminfo(_) => Ok(Some(answer.to_string())),
                other => Err(unfit(other)),
            },
            Command::Readd { size, addr } => self.readd(*size, *addr),
            Command::Rebind { device } => self.rebind(*device),
            Command::Pmem(pmem) => self.pmem(pmem),
            Command::Race(race) => self.race(*race),
            Command::Corrupt(corrupt) => self.need_agent().and_then(|()| self.corrupt(corrupt)),
            Command::Probe(wait) => self.probe(*wait),
            Command::Reset { within } => self.reset(*within),
            Command::Sleep(time) => self.pause(*time).map(|()| None),
            Command::Inject { step, after } => {
                match self.ask(Op::Inject { step: *step, after: *after }, ANSWER_DEADLINE)? {
                    Answer::Done => Ok(None),
                    other => Err(unfit(other)),
                }
            }
        }
    }

    fn probe(&self, wait: ProbedWait) -> Done {
        match self.ask(Op::Probe(wait), ANSWER_DEADLINE)? {
            Answer::Done => Ok(None),
            Answer::Failed(failure @ Failure::NotAwaited(found)) if found == wait => {
                Err(StepError::refused(failure))
            }
            other => Err(unfit(other)),
        }
    }

    /// Fails for a guest without an agent.
    fn need_agent(&self) -> Result<(), StepError> {
        if self.vm.has_agent() { Ok(()) } else { Err(StepError::Failed(StepFailure::NoAgent)) }
    }

    /// Calls the guest, if it has an agent.
    fn call(&self, op: Op) -> Result<u32, StepError> {
        self.need_agent()?;
        Ok(self.vm.call(op)?)
    }

    /// Calls the guest and waits for the answer.
    fn ask(&self, op: Op, limit: Duration) -> Result<Answer, StepError> {
        let id = self.call(op)?;
        let answer = self.answer(id, limit, "the guest's answer")?;
        if !matches!(answer, Answer::Stats(_)) {
            self.answer.set(Some(answer));
        }
        Ok(answer)
    }

    /// Lets time pass. The end of the guest and signals cut it short, and so does a person.
    fn pause(&self, time: Duration) -> Result<(), StepError> {
        let cancelled = |state: &State| (state.interrupts != self.interrupts).then_some(());
        match self.wait(time, "the end of a pause", cancelled) {
            Ok(()) => Err(StepError::Failed(StepFailure::Cancelled)),
            Err(WaitError::Deadline { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
