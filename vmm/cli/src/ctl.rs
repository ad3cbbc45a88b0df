//! `tidevm ctl`: commands for a running machine, by the API at its socket.
//!
//! Mirrors `virsh` and `ch-remote` in form: one command per call, and a status for programs. Differs on purpose: a resize is
//! awaited, and its failure says the reason. The commands are those of scripts, in the grammar of scripts.
//!
//! Invariant: every wait has a deadline, except those of `watch` and `events`, which end with the machine.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidevm_api::caller::{Answer, CallError, Caller, NextLine};
use tidevm_api::http::Method;

use outcome::{End, Outcome};
use screen::Screen;
use wish::Wish;

mod auto;
mod outcome;
mod resize;
mod screen;
pub mod tell;
mod wish;

/// Longest time until an answer of the API to a call that does not wait. A pause takes up to 5 s.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Columns of a terminal that does not tell them.
const MIN_WIDTH: usize = 80;

/// How long a guest may take to power off.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What `--help` says below the options.
pub const COMMANDS: &str = "\
Commands:
  resize SIZE [device N] [within DURATION]   plug, unplug likewise
  status    the machine and its memory       watch   the same, and what changes
  stats     the guest's counters             events  the API's events
  pause, resume, stop                        save FILE
  auto [min=SIZE,max=SIZE[,headroom=10%] | hold | release | off]
            size the machine by what its guest uses

Exit status:
  0  done
  1  refused, blocked, too late, or another client or the end of the machine came first
  2  bad usage
  3  the API cannot be reached, or does not answer
  4  the guest died";

/// Why a command has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The command is none.
    #[error("{0}")]
    Usage(String),
    /// The API cannot be reached, or does not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

impl CtlError {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Call(_) => 3,
            Self::Output(_) => 1,
        }
    }
}

/// Carries out the command `words` at the machine behind `socket`, and gives the exit status. A reason for a failure goes to
/// `complain`.
pub fn run(socket: &Path, words: &[String], json: bool, complain: impl FnOnce(&str)) -> Result<u8, CtlError> {
    let wish = Wish::parse(words).map_err(CtlError::Usage)?;
    let size = || terminal_size::terminal_size().map_or(0, |(width, _)| usize::from(width.0));
    // A terminal that does not tell its size has at least so many columns.
    let width = io::stdout().is_terminal().then(|| if size() == 0 { MIN_WIDTH } else { size() });
    let screen = Screen::new(io::stdout(), json, width);
    let mut session = Session { api: Caller::new(socket), screen, start: Instant::now() };
    let end = session.carry_out(&wish)?;
    session.screen.end_bar()?;
    if json && wish != Wish::Events {
        let seconds = session.start.elapsed().as_secs_f64();
        session.screen.json(&json!({
            "event": "end",
            "command": wish.to_string(),
            "outcome": end.outcome.word(),
            "status": end.outcome.status(),
            "reason": end.reason,
            "seconds": seconds,
        }))?;
    }
    if let Some(reason) = end.reason.as_ref().filter(|_| end.outcome != Outcome::Done) {
        complain(&format!("{wish}: {}: {reason}", end.outcome.word()));
    }
    Ok(end.outcome.status())
}

/// One command.
struct Session<W> {
    api: Caller,
    screen: Screen<W>,
    start: Instant,
}

impl<W: Write> Session<W> {
    fn carry_out(&mut self, wish: &Wish) -> Result<End, CtlError> {
        match wish {
            Wish::Resize(resize) => self.resize(resize),
            Wish::Status => self.status(),
            Wish::Watch => self.watch(),
            Wish::Stats => self.stats(),
            Wish::Events => self.events(),
            Wish::Pause => self.change(Method::Patch, "/vm", &json!({ "state": "Paused" })),
            Wish::Resume => self.change(Method::Patch, "/vm", &json!({ "state": "Resumed" })),
            Wish::Stop => self.stop(),
            Wish::Auto(auto) => self.auto(*auto),
            Wish::Save(file) => {
                // The machine opens the files, and may have another current folder.
                let file = std::path::absolute(file)?;
                let memory = file.with_added_extension("memory");
                let body = json!({ "snapshot_path": file, "mem_file_path": memory });
                self.change(Method::Put, "/snapshot/create", &body)
            }
        }
    }

    fn get(&self, target: &str) -> Result<Answer, CallError> {
        self.api.call(Method::Get, target, None, CALL_LIMIT)
    }

    /// A call that only succeeds or fails.
    fn change(&mut self, method: Method, target: &str, body: &Value) -> Result<End, CtlError> {
        let answer = self.api.call(method, target, Some(body), CALL_LIMIT)?;
        Ok(if answer.is_done() { End::done() } else { End::refused(answer.fault()) })
    }

    fn status(&mut self) -> Result<End, CtlError> {
        let instance = self.get("/")?.json();
        // A machine without hotplug memory, or that was not started, tells none.
        let memory = self.get("/hotplug/memory")?;
        let memory = if memory.is_done() { memory.json() } else { Value::Null };
        if self.screen.is_json() {
            let told = json!({ "event": "status", "instance": instance, "memory": memory });
            self.screen.json(&told)?;
        } else {
            self.screen.text(&tell::status(&instance, &memory))?;
        }
        Ok(End::done())
    }

    fn stats(&mut self) -> Result<End, CtlError> {
        let answer = self.get("/stats")?;
        if !answer.is_done() {
            return Ok(End::refused(answer.fault()));
        }
        let stats = answer.json();
        if self.screen.is_json() {
            self.screen.json(&json!({ "event": "stats", "guest": stats }))?;
        } else {
            self.screen.text(&tell::stats(&stats))?;
        }
        Ok(End::done())
    }

    /// Tells the state, and then what changes, until the machine ends.
    fn watch(&mut self) -> Result<End, CtlError> {
        self.follow(
            |session| session.status().map(drop),
            |session, event| {
                if session.screen.is_json() {
                    session.screen.json(event)
                } else {
                    session.screen.text(&tell::event(event))
                }
            },
        )
    }

    /// Passes on the API's lines.
    fn events(&mut self) -> Result<End, CtlError> {
        self.follow(|_| Ok(()), |session, event| session.screen.json(event))
    }

    fn follow(
        &mut self,
        first: impl FnOnce(&mut Self) -> Result<(), CtlError>,
        mut tell: impl FnMut(&mut Self, &Value) -> io::Result<()>,
    ) -> Result<End, CtlError> {
        let mut lines = match self.api.lines("/events", CALL_LIMIT)? {
            Ok(lines) => lines,
            Err(refusal) => return Ok(End::refused(refusal.fault())),
        };
        first(self)?;
        let mut end = End::done();
        while let NextLine::Line(line) = lines.next(None)? {
            let event: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            tell(self, &event)?;
            if event["event"] == "death" {
                end = End::died(&event);
            }
        }
        Ok(end)
    }

    /// Asks the guest to power off, and waits until it has.
    fn stop(&mut self) -> Result<End, CtlError> {
        if self.get("/")?.json()["state"] == "Paused" {
            return Ok(End::refused("the guest stands still; use resume first".to_owned()));
        }
        let mut lines = match self.api.lines("/events", CALL_LIMIT)? {
            Ok(lines) => lines,
            Err(refusal) => return Ok(End::refused(refusal.fault())),
        };
        let asked = self.change(Method::Put, "/actions", &json!({ "action_type": "SendCtrlAltDel" }))?;
        if asked.outcome != Outcome::Done {
            return Ok(asked);
        }
        let until = Instant::now() + STOP_LIMIT;
        loop {
            match lines.next(Some(until))? {
                NextLine::Line(line) => {
                    let event: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
                    if event["event"] == "death" {
                        return Ok(End::died(&event));
                    }
                }
                NextLine::End => return Ok(End::done()),
                NextLine::Late => {
                    let reason = format!("the guest has not powered off within {STOP_LIMIT:?}");
                    return Ok(End { outcome: Outcome::Late, reason: Some(reason) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
