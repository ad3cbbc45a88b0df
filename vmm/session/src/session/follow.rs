//! Sessions whose lines come one by one: a script from a pipe, and a person at a prompt.
//!
//! | | a script ([`Manner::Script`]) | a person ([`Manner::Prompt`]) |
//! | --- | --- | --- |
//! | a wrong line | ends the session, status 2; the lines before it ran | is told |
//! | a step that fails for good | ends the session | is told, unless the guest has ended |
//! | SIGINT | ends the session | cancels the step: a resize stops where it is, and a wait ends |
//! | an alarm of the kernel behind the last step | fails the session | is not told |
//! | the end of the lines | churns are awaited | the guest is powered off at once |
//!
//! Invariant: a line is asked for when the one before it is done, so at most one line waits.

use std::io;

use tidevm_machine::WaitError;

use super::failure::{SessionError, StepError, StepFailure};
use super::{FOREVER, Observer, Session, Summary, VmControl};
use crate::script::{LiveScript, ScriptErrors};

/// Where lines come from.
pub trait Lines {
    /// Asks for the next line. `script` has the names, and says whether a `repeat` is open.
    fn ask(&mut self, script: &LiveScript);

    /// The line that was asked for, once it is there. It is called during a wait of the VM, so it neither waits nor uses
    /// the VM. Whoever brings a line has the VM look again ([`tidevm_machine::Nudger`]).
    fn take(&mut self) -> Option<Line>;

    /// Tells a person what is wrong with a line.
    ///
    /// # Errors
    /// It cannot be written; the session ends.
    fn refuse(&mut self, errors: &ScriptErrors) -> io::Result<()>;
}

/// What comes in place of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its end.
    Text(String),
    /// A line that is no text or too long, and why.
    Unreadable(String),
    /// A `repeat` that is open is forgotten.
    Abandoned,
    /// No more lines come.
    End,
}

/// Who writes the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A program, which is not told in time what failed.
    Script,
    /// A person, who sees each result before the next line.
    Prompt,
}

/// Runs the lines of `lines` on `vm` as they come, and stops the VM in any case.
///
/// # Errors
/// When `observer` or `lines` cannot write; the VM is stopped all the same.
pub fn follow<V: VmControl, O: Observer>(
    vm: V,
    mut script: LiveScript,
    lines: &mut impl Lines,
    manner: Manner,
    observer: &mut O,
) -> io::Result<Summary> {
    let mut session = Session::new(vm, observer);
    session.manner = manner;
    let result = session.boot(session.boot_deadline()).and_then(|()| session.follow(&mut script, lines));
    session.end(result)
}

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    fn follow(&mut self, script: &mut LiveScript, lines: &mut impl Lines) -> Result<(), SessionError> {
        loop {
            lines.ask(script);
            let line = self.vm.wait(FOREVER, "a line", |_| lines.take()).map_err(StepError::from)?;
            let before = script.workloads();
            let read = match line {
                Line::Text(text) => script.line(&text),
                Line::Unreadable(why) => Err(script.unreadable(why)),
                Line::Abandoned => {
                    script.abandon();
                    continue;
                }
                Line::End => break,
            };
            match (read, self.manner) {
                (Ok(body), Manner::Script) => self.body(&body)?,
                (Ok(body), Manner::Prompt) => {
                    self.interrupts = self.vm.state().interrupts;
                    self.body(&body)?;
                    script.settle(before, |name| self.workloads.lives(name));
                }
                (Err(errors), Manner::Script) => return Err(SessionError::Script(errors)),
                (Err(errors), Manner::Prompt) => lines.refuse(&errors).map_err(SessionError::Output)?,
            }
        }
        match self.manner {
            Manner::Script => {
                script.end().map_err(SessionError::Script)?;
                self.await_churns()?;
                self.late_alarms()
            }
            Manner::Prompt => Ok(()),
        }
    }

    /// Whether the session goes on after a step failed by `error`.
    pub(super) fn survives(&self, error: &StepError) -> bool {
        let ended = matches!(
            error.failure(),
            StepFailure::Ended(
                WaitError::Died(_)
                    | WaitError::PoweredOff
                    | WaitError::Signal(_)
                    | WaitError::TimedOut { .. }
            )
        );
        matches!(error, StepError::Failed(_)) || self.manner == Manner::Prompt && !ended
    }

    /// Whether a person has cancelled what is under way.
    pub(super) fn is_cancelled(&self) -> bool {
        self.vm.state().interrupts != self.interrupts
    }
}
