//! The account of a session for programs and pages: lines of JSON on standard output, a page in a file, or both.
//!
//! A session's observer takes the events between `start` and `end`; here are the `start`, and the `end` of a session whose
//! machine was not started.
//!
//! Invariants: an account that has a `start` has one `end`, unless the process is ended by force. The page's file is opened
//! before the process gives its files away, and written once.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidevm_events::{End, Event, Line, Outcome};
use tidevm_machine::Config;
use tidevm_report::Report;
use tidevm_session::json;

use crate::host;

/// Where the events of a session go.
#[derive(Default)]
pub struct Account {
    json: Option<io::Stdout>,
    page: Option<Page>,
    ended: bool,
}

/// A page that is written at the end.
struct Page {
    path: PathBuf,
    file: File,
    report: Report,
    failed: Option<io::Error>,
}

/// The page's file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write --report {}", path.display())]
pub struct PageError {
    path: PathBuf,
    #[source]
    error: io::Error,
}

/// Runs a session, whose `account` has an end in any case. `status_of` gives the exit status of an error.
///
/// # Errors
/// That of the session, or the page cannot be written.
pub fn accounted<E: Display + From<PageError>>(
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
    /// An account in JSON if `json`, and as a page in the file `page`, which is emptied now.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn new(json: bool, page: Option<&Path>) -> Result<Self, PageError> {
        let open = |path: &Path| match File::create(path) {
            Ok(file) => Ok(Page { path: path.to_owned(), file, report: Report::default(), failed: None }),
            Err(error) => Err(PageError { path: path.to_owned(), error }),
        };
        let page = page.map(open).transpose()?;
        Ok(Self { json: json.then(io::stdout), page, ended: false })
    }

    /// Whether something takes the events.
    pub fn is_wanted(&self) -> bool {
        self.json.is_some() || self.page.is_some()
    }

    /// Whether it is standard output.
    pub fn is_json(&self) -> bool {
        self.json.is_some()
    }

    /// Takes an event.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn take(&mut self, line: &Line) -> io::Result<()> {
        let ended = matches!(line.event, Event::End(_));
        self.ended |= ended;
        if let Some(page) = &mut self.page {
            page.report.take(line);
            if ended {
                page.failed = page.file.write_all(page.report.page().as_bytes()).err();
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

    /// Looks whether the page is written.
    ///
    /// # Errors
    /// It is not.
    fn close(self) -> Result<(), PageError> {
        match self.page {
            Some(Page { path, failed: Some(error), .. }) => Err(PageError { path, error }),
            _ => Ok(()),
        }
    }
}
