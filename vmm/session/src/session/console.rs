//! `expect console`: looks for a text in what the guest wrote. And the alarms of its kernel, which fail the step in which they
//! come.
//!
//! Mirrors `expect` of Tcl: what was found is behind the reader, so that the same text is found again only when the guest writes
//! it again. Differs on purpose: a line is looked at by itself, and so is a line that has no end yet, such as a prompt.
//!
//! Invariant: a byte that is not kept any more is never taken for one that was looked at. Each wait ends at a line, or after
//! [`POLL`] for a line without an end.

use tidevm_abi::command::{ConsoleText, ExpectConsole};
use tidevm_machine::{Alarms, Heard, State, WaitError, printable};

use super::failure::{Done, SessionError, StepError, StepFailure, but_lost};
use super::{Observer, POLL, Session, VmControl};
use crate::pattern;

/// Longest line, in bytes: a longer one is looked at in parts.
const LINE: usize = 1024;

/// Most characters of a line that a note or a failure quotes.
const QUOTED: usize = 200;

/// Where a session is on the console of its guest.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// The number of the first byte behind what was found last.
    from: u64,
}

/// What is looked for.
enum Wanted {
    Text(String),
    Pattern(regex_automata::meta::Regex),
}

impl Wanted {
    fn new(text: &ConsoleText) -> Result<Self, StepError> {
        match text {
            ConsoleText::Contains(text) => Ok(Self::Text(text.clone())),
            ConsoleText::Matches(pattern) => pattern::compile(pattern)
                .map(Self::Pattern)
                .map_err(|error| StepError::Fatal(StepFailure::BadPattern(error.message))),
        }
    }

    /// The end of its first place in `line`.
    fn end_in(&self, line: &[u8]) -> Option<usize> {
        match self {
            Self::Text(text) => {
                let at = line.windows(text.len()).position(|window| window == text.as_bytes())?;
                Some(at + text.len())
            }
            Self::Pattern(pattern) => Some(pattern.find(line)?.end()),
        }
    }
}

/// A line with the wanted text, and the number of the first byte behind that text.
struct Found {
    line: String,
    end: u64,
}

/// The first place of `wanted` in `heard`; or the number of the first byte that has to be looked at again, because its line has
/// no end yet.
fn search(heard: &Heard, wanted: &Wanted) -> Result<Found, u64> {
    let mut at = heard.start;
    let mut again = at;
    for piece in heard.text.split_inclusive(|byte| *byte == b'\n').flat_map(|line| line.chunks(LINE)) {
        if let Some(end) = wanted.end_in(piece.strip_suffix(b"\n").unwrap_or(piece)) {
            return Ok(Found { line: quoted(piece), end: at + end as u64 });
        }
        at += piece.len() as u64;
        if piece.ends_with(b"\n") || piece.len() == LINE {
            again = at;
        }
    }
    Err(again)
}

/// The start of a line, for people.
fn quoted(line: &[u8]) -> String {
    let text = printable(line);
    let text = text.trim();
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    pub(super) fn expect_console(&mut self, expect: &ExpectConsole) -> Done {
        let wanted = Wanted::new(&expect.text)?;
        if expect.absent { self.expect_absent(&wanted) } else { self.await_text(expect, &wanted) }
    }

    /// The step `reset` was made: what the guest of before wrote is not what the next steps wait for.
    pub(super) fn skip_console(&mut self) {
        self.reading.from = self.reading.from.max(self.vm.heard(u64::MAX).since_reset);
    }

    fn await_text(&mut self, expect: &ExpectConsole, wanted: &Wanted) -> Done {
        let deadline = self.vm.now() + expect.within.unwrap_or_default();
        let mut from = self.reading.from;
        let mut lost = 0;
        let mut last = String::new();
        let mut ended = None;
        loop {
            let State { console_lines: lines, interrupts, .. } = self.vm.state();
            let heard = self.vm.heard(from);
            lost += heard.start.saturating_sub(from);
            match search(&heard, wanted) {
                Ok(found) => {
                    self.reading.from = found.end;
                    return Ok(Some(format!("`{}`{}", found.line, but_lost(lost))));
                }
                Err(again) => from = again,
            }
            if let Some(line) = last_line(&heard) {
                last = line;
            }
            if let Some(error) = ended {
                return Err(error);
            }
            let left = deadline.saturating_duration_since(self.vm.now());
            if left.is_zero() {
                let (text, within) = (expect.text.clone(), expect.within);
                return Err(StepError::Fatal(StepFailure::NotOnConsole { text, within, lost, last }));
            }
            let news = |state: &State| {
                (state.console_lines != lines || state.interrupts != interrupts).then_some(())
            };
            match self.wait(left.min(POLL), &format!("a line that {}", expect.text), news) {
                Ok(()) if self.is_cancelled() => return Err(StepError::Failed(StepFailure::Cancelled)),
                Ok(()) => {}
                Err(WaitError::Deadline { .. }) => {}
                // The last thing that the guest wrote may be the text.
                Err(error) => ended = Some(error.into()),
            }
        }
    }

    fn expect_absent(&self, wanted: &Wanted) -> Done {
        let heard = self.vm.heard(0);
        match search(&heard, wanted) {
            Ok(Found { line, .. }) => Err(StepError::Fatal(StepFailure::OnConsole { line })),
            Err(_) if heard.start > 0 => Err(StepError::Fatal(StepFailure::ConsoleLost(heard.start))),
            Err(_) => Ok(None),
        }
    }

    /// The result of the step that ended with `result`, after a look at what the guest's kernel told of its own trouble.
    pub(super) fn with_alarms(&self, result: Done) -> Done {
        alarmed(result, self.vm.take_alarms())
    }

    /// Fails if the kernel told of trouble since the last step.
    pub(super) fn late_alarms(&mut self) -> Result<(), SessionError> {
        Ok(self.with_alarms(Ok(None)).map(|_| ())?)
    }
}

/// `result`, unless there are alarms. How the guest ended is the better reason.
fn alarmed(result: Done, Alarms { lines, more }: Alarms) -> Done {
    if lines.is_empty() {
        return result;
    }
    let alarmed = |failure| StepFailure::Alarmed { lines, more, failure };
    Err(match result {
        Ok(_) => StepError::Failed(alarmed(None)),
        Err(error @ (StepError::Failed(StepFailure::Ended(_)) | StepError::Fatal(StepFailure::Ended(_)))) => {
            error
        }
        Err(StepError::Failed(failure)) => StepError::Failed(alarmed(Some(Box::new(failure)))),
        Err(StepError::Fatal(failure)) => StepError::Fatal(alarmed(Some(Box::new(failure)))),
    })
}

/// The last line with a text.
fn last_line(heard: &Heard) -> Option<String> {
    let mut lines =
        heard.text.rsplit(|byte| *byte == b'\n').map(|line| quoted(&line[..line.len().min(LINE)]));
    lines.find(|line| !line.is_empty())
}
