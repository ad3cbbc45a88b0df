//! The account of a session for programs, CI and pages: lines of JSON on standard output, documents in files, or both.
//!
//! A session's observer takes the events between `start` and `end`; here are the `start`, and the `end` of a session whose
//! machine was not started.
//!
//! Invariants: an account that has a `start` has one `end`, unless the process is ended by force. The files are opened before the
//! process gives its files away. A document is written once, at the end; the lines of a session are written as they come.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidevm_abi::Command;
use tidevm_events::{End, Event, Line, Outcome};
use tidevm_machine::{Config, create_file};
use tidevm_report::{Planned, Report, Results};
use tidevm_session::json;
use tidevm_session::script::Script;

use crate::cli::Run;
use crate::host;

/// The name of a session without a script, among results.
const NO_SCRIPT: &str = "tidevm run";

/// What the options want of a session.
#[derive(Default)]
pub struct Outputs<'o> {
    /// The events on standard output.
    json: bool,
    page: Option<&'o Path>,
    junit: Option<&'o Path>,
    tap: Option<&'o Path>,
    /// TAP is for standard output.
    tap_to_stdout: bool,
    artifacts: Option<&'o Path>,
    script: Option<&'o Path>,
}

impl<'o> Outputs<'o> {
    /// The events on standard output if `json`, and nothing else.
    pub fn json(json: bool) -> Self {
        Self { json, ..Self::default() }
    }

    /// Those of `tidevm run`.
    pub fn of(options: &'o Run) -> Self {
        let results = &options.results;
        Self {
            json: options.json,
            page: options.report.as_deref(),
            junit: results.junit.as_deref(),
            tap: results.tap.as_deref().filter(|_| !results.take_stdout()),
            tap_to_stdout: results.take_stdout(),
            artifacts: results.artifacts.as_deref(),
            script: options.script.as_deref(),
        }
    }
}

/// Where the events of a session go.
#[derive(Default)]
pub struct Account {
    json: Option<io::Stdout>,
    /// The events as lines of JSON.
    lines: Option<Output>,
    documents: Vec<(Kind, Output)>,
    /// What the documents show.
    report: Report,
    results: Results,
    ended: bool,
}

/// What a document shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Page,
    Junit,
    Tap,
}

/// A file that an option names, or standard output.
struct Output {
    option: &'static str,
    path: PathBuf,
    writer: Box<dyn Write>,
    failed: Option<io::Error>,
}

/// A file of the account cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {option} {}", path.display())]
pub struct OutputError {
    option: &'static str,
    path: PathBuf,
    #[source]
    error: io::Error,
}

impl Output {
    /// A file, which is made or emptied now.
    fn file(option: &'static str, path: &Path) -> Result<Self, OutputError> {
        let path = path.to_owned();
        match create_file(&path) {
            Ok(file) => Ok(Self { option, path, writer: Box::new(file), failed: None }),
            Err(error) => Err(OutputError { option, path, error }),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.failed = self.writer.write_all(bytes).and_then(|()| self.writer.flush()).err();
        }
    }
}

/// Runs a session, whose `account` has an end in any case. `status_of` gives the exit status of an error.
///
/// # Errors
/// That of the session, or a file cannot be written.
pub fn accounted<E: Display + From<OutputError>>(
    mut account: Account,
    status_of: impl FnOnce(&E) -> u8,
    session: impl FnOnce(&mut Account) -> Result<u8, E>,
) -> Result<u8, E> {
    let result = session(&mut account);
    if let Err(error) = &result {
        account.not_started(status_of(error), &format!("{error:#}"));
    }
    account.close()?;
    result
}

impl Account {
    /// An account of what is wanted. Its files are made or emptied now.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub fn new(wanted: Outputs<'_>) -> Result<Self, OutputError> {
        let mut documents = Vec::new();
        let named = [
            (Kind::Page, "--report", wanted.page),
            (Kind::Junit, "--junit", wanted.junit),
            (Kind::Tap, "--tap", wanted.tap),
        ];
        for (kind, option, path) in named {
            if let Some(path) = path {
                documents.push((kind, Output::file(option, path)?));
            }
        }
        if wanted.tap_to_stdout {
            let (path, writer) = (PathBuf::from("-"), Box::new(io::stdout()));
            documents.push((Kind::Tap, Output { option: "--tap", path, writer, failed: None }));
        }
        let mut lines = None;
        if let Some(folder) = wanted.artifacts {
            const OPTION: &str = "--artifacts";
            fs::create_dir_all(folder).map_err(|error| OutputError {
                option: OPTION,
                path: folder.to_owned(),
                error,
            })?;
            lines = Some(Output::file(OPTION, &folder.join("session.jsonl"))?);
            documents.push((Kind::Page, Output::file(OPTION, &folder.join("session.html"))?));
        }
        let suite = wanted.script.map_or_else(|| NO_SCRIPT.to_owned(), |script| script.display().to_string());
        Ok(Self {
            json: wanted.json.then(io::stdout),
            lines,
            documents,
            report: Report::default(),
            results: Results::new(&suite),
            ended: false,
        })
    }

    /// The steps that a session will run.
    pub fn plan(&mut self, script: &Script) {
        self.results.plan(script.each_step().into_iter().map(|step| Planned {
            line: step.line,
            column: step.column,
            command: step.command.to_string(),
            names: if let Command::Step(name) = &step.command { Some(name.clone()) } else { None },
        }));
    }

    /// Whether something takes the events.
    pub fn is_wanted(&self) -> bool {
        self.json.is_some() || self.lines.is_some() || !self.documents.is_empty()
    }

    /// Whether it is, or will be, on standard output.
    pub fn has_stdout(&self) -> bool {
        self.json.is_some() || self.documents.iter().any(|(_, output)| output.path.as_os_str() == "-")
    }

    /// Takes an event.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn take(&mut self, line: &Line) -> io::Result<()> {
        let ended = matches!(line.event, Event::End(_));
        self.ended |= ended;
        if let Some(lines) = &mut self.lines {
            let mut text = Vec::new();
            json::write(&mut text, line)?;
            lines.write(&text);
        }
        let shows = |kind| self.documents.iter().any(|(of, _)| *of == kind);
        let (page, results) = (shows(Kind::Page), shows(Kind::Junit) || shows(Kind::Tap));
        if page {
            self.report.take(line);
        }
        if results {
            self.results.take(line);
        }
        if ended {
            for (kind, output) in &mut self.documents {
                let text = match kind {
                    Kind::Page => self.report.page(),
                    Kind::Junit => self.results.junit(),
                    Kind::Tap => self.results.tap(),
                };
                output.write(text.as_bytes());
            }
        }
        self.json.as_mut().map_or(Ok(()), |out| json::write(out, line))
    }

    /// Takes the `start` of a session on `config`, if the arguments describe a machine.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn start(&mut self, config: Option<&Config>) -> io::Result<()> {
        if !self.is_wanted() {
            return Ok(());
        }
        self.take(&Line::now(Duration::ZERO, Event::Start(Box::new(host::start(config)))))
    }

    /// Takes the `end` of a session that did not come so far, which `status` and `reason` explain.
    fn not_started(&mut self, status: u8, reason: &str) {
        if self.ended {
            return;
        }
        let reason = Some(reason.to_owned());
        let end = End { status, outcome: Outcome::NotStarted, reason, ..End::default() };
        // The caller tells the reason, too.
        drop(self.take(&Line::now(Duration::ZERO, Event::End(Box::new(end)))));
    }

    /// Looks whether the files are written.
    ///
    /// # Errors
    /// One is not.
    fn close(self) -> Result<(), OutputError> {
        let outputs = self.lines.into_iter().chain(self.documents.into_iter().map(|(_, output)| output));
        for Output { option, path, failed, .. } in outputs {
            if let Some(error) = failed {
                return Err(OutputError { option, path, error });
            }
        }
        Ok(())
    }
}
