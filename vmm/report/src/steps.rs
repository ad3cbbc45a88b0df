//! The steps: all of a short session, the first and the last ones of a long one.

use std::collections::VecDeque;

use tidevm_events::Step;

use crate::seconds;
use crate::series::Point;
use crate::show;

/// Steps from the start that are kept.
pub const FIRST: usize = 500;

/// Steps before the end that are kept.
pub const LAST: usize = 500;

/// Most characters of a text that is kept.
const MAX_TEXT: usize = 2000;

/// A step.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// From 1.
    pub number: u64,
    pub line: usize,
    pub command: String,
    pub start: f64,
    pub took: f64,
    pub after: Point,
    pub ok: bool,
    /// A note, or the reason of a failure.
    pub text: Option<String>,
}

/// Steps in their order.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    first: Vec<Row>,
    last: VecDeque<Row>,
    count: u64,
    failed: u64,
}

impl Steps {
    pub fn take(&mut self, step: &Step) {
        self.count += 1;
        self.failed += u64::from(!step.ok);
        let start = seconds(step.start_seconds);
        let text = step.reason.as_deref().or(step.note.as_deref());
        let row = Row {
            number: self.count,
            line: step.line,
            command: cut(&step.command),
            start,
            took: seconds(step.seconds),
            after: Point::new(start, &step.sampled),
            ok: step.ok,
            text: text.map(cut),
        };
        if self.first.len() < FIRST {
            self.first.push(row);
            return;
        }
        self.last.push_back(row);
        if self.last.len() > LAST {
            self.last.pop_front();
        }
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.first.iter().chain(&self.last)
    }

    /// Steps between the first and the last ones that are not kept.
    pub fn left_out(&self) -> u64 {
        self.count - (self.first.len() + self.last.len()) as u64
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn failed(&self) -> u64 {
        self.failed
    }
}

impl Row {
    /// What a reader sees when pointing at the step.
    pub fn title(&self) -> String {
        let result = if self.ok { "done" } else { "failed" };
        format!("{}: {}, {result} in {}", self.number, self.command, show::time(self.took))
    }
}

/// The text, or its start.
pub fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}
