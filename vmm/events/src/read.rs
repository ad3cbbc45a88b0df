//! Reads a session back, line by line.
//!
//! Invariants: the text is not trusted. A line is read once, a line that is too long is not read to its end, and the
//! reader holds one line at a time. The first fault is the last thing that a reader tells.

use std::io::{BufRead, Read};

use serde::Deserialize;

use crate::{Event, FORMAT_VERSION, Line};

/// Most bytes of a line. The longest that tidevm writes is that of `blocks` with 16,384 entries.
pub const MAX_LINE: usize = 8 << 20;

/// Why a text is no session.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {what}{remedy}")]
pub struct ReadError {
    /// Counted from 1.
    pub line: usize,
    /// The fault.
    pub what: String,
    /// What helps.
    pub remedy: Remedy,
}

/// What helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing that tidevm knows of.
    None,
    /// The text comes from elsewhere, or more than a session is in it.
    OnlyASession,
    /// A part of the text is lost.
    WithoutTheLine,
    /// Another version wrote it.
    OtherVersion,
}

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "",
            Self::OnlyASession => {
                "; give the lines of one `tidevm run --json`, from `start` to `end`, and no others"
            }
            Self::WithoutTheLine => {
                "; if the file was cut off there, remove the line to see what was before it"
            }
            Self::OtherVersion => "; use the tidevm that wrote it, or a later one",
        })
    }
}

/// The lines of a session.
#[derive(Debug)]
pub struct Reader<R> {
    text: R,
    line: usize,
    place: Place,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    Within,
    AfterEnd,
    Faulty,
}

/// What is looked at before the rest of a line is.
#[derive(Deserialize)]
struct Head {
    event: Option<String>,
    format_version: Option<u64>,
}

const EVENTS: [&str; 5] = ["start", "ready", "step", "sample", "end"];

impl<R: BufRead> Reader<R> {
    /// Reads from `text`.
    pub fn new(text: R) -> Self {
        Self { text, line: 0, place: Place::Start }
    }

    /// The next line; `None` at the end of the text.
    fn read(&mut self) -> Result<Option<Line>, ReadError> {
        let mut bytes = Vec::new();
        self.line += 1;
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX) + 1;
        let read = self.text.by_ref().take(most).read_until(b'\n', &mut bytes);
        read.map_err(|error| self.fault(format!("cannot read: {error}"), Remedy::None))?;
        if bytes.is_empty() {
            return match self.place {
                Place::Start => Err(self.fault("nothing is there".to_owned(), Remedy::OnlyASession)),
                _ => Ok(None),
            };
        }
        if bytes.len() > MAX_LINE {
            let what = format!("longer than {} MiB", MAX_LINE >> 20);
            return Err(self.fault(what, Remedy::OnlyASession));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let what = format!("byte {} is no UTF-8", error.valid_up_to() + 1);
            self.fault(what, Remedy::OnlyASession)
        })?;
        // Some editors put it at the start of a file.
        let text = if self.line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        let line = self.parse(text.trim_end(), !bytes.ends_with(b"\n"))?;
        self.place = if matches!(line.event, Event::End(_)) { Place::AfterEnd } else { Place::Within };
        Ok(Some(line))
    }

    fn parse(&self, text: &str, cut_off: bool) -> Result<Line, ReadError> {
        let broken = |error: serde_json::Error| {
            let remedy =
                if cut_off || error.is_eof() { Remedy::WithoutTheLine } else { Remedy::OnlyASession };
            self.fault(format!("no JSON object: {}", place_in_line(&error)), remedy)
        };
        let head: Head = serde_json::from_str(text).map_err(broken)?;
        let event = head
            .event
            .ok_or_else(|| self.fault("an object without `event`".to_owned(), Remedy::OnlyASession))?;
        if !EVENTS.contains(&event.as_str()) {
            let what = format!("unknown event `{}`", excerpt(&event));
            return Err(self.fault(what, Remedy::OnlyASession));
        }
        match (self.place, event.as_str(), head.format_version) {
            (Place::Start, "start", Some(version)) if version == u64::from(FORMAT_VERSION) => {}
            (Place::Start, "start", version) => {
                let version = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
                let what = format!("the format's version is {version}, and must be {FORMAT_VERSION}");
                return Err(self.fault(what, Remedy::OtherVersion));
            }
            (Place::Start, event, _) => {
                let what = format!("`{event}` before `start`");
                return Err(self.fault(what, Remedy::OnlyASession));
            }
            (Place::Within, "start", _) => {
                return Err(self.fault("a second session starts".to_owned(), Remedy::OnlyASession));
            }
            (Place::AfterEnd, event, _) => {
                return Err(self.fault(format!("`{event}` after `end`"), Remedy::OnlyASession));
            }
            _ => {}
        }
        serde_json::from_str(text).map_err(|error| {
            let what =
                format!("`{event}` is not as version {FORMAT_VERSION} has it: {}", place_in_line(&error));
            self.fault(what, Remedy::OtherVersion)
        })
    }

    fn fault(&self, what: String, remedy: Remedy) -> ReadError {
        ReadError { line: self.line, what, remedy }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Line, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.place == Place::Faulty {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.place = Place::Faulty;
        }
        read.transpose()
    }
}

/// Where and why, without the line, which is always 1 there.
fn place_in_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let why = text.split_once(" at line ").map_or(text.as_str(), |(why, _)| why);
    match error.column() {
        0 => excerpt(why),
        column => format!("{} at column {column}", excerpt(why)),
    }
}

/// At most 80 characters of a text that another program may have written.
fn excerpt(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
