//! What a reader looks for in a timeline: failures, resets and the end.

use tidevm_events::{End, Outcome};

use crate::steps::cut;

/// Most marks that are kept. The end is always among them.
pub const MAX_MARKS: usize = 100;

/// Something that happened at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    pub at: f64,
    pub kind: Kind,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Failure,
    Reset,
    End,
}

impl Kind {
    /// A class of the page's style.
    pub fn class(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Reset => "reset",
            Self::End => "death",
        }
    }
}

/// Marks in their order.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    marks: Vec<Mark>,
    left_out: u64,
}

impl Marks {
    pub fn failed(&mut self, at: f64, command: &str, reason: Option<&str>) {
        let text = format!("{}: {}", cut(command), cut(reason.unwrap_or("no reason was told")));
        self.push(Mark { at, kind: Kind::Failure, text });
    }

    pub fn reset(&mut self, at: f64, resets: u64) {
        let text = if resets == 1 {
            "the guest was reset".to_owned()
        } else {
            format!("the guest was reset, for the {resets}. time")
        };
        self.push(Mark { at, kind: Kind::Reset, text });
    }

    /// An end before the script was done.
    pub fn end(&mut self, at: f64, end: &End) {
        let reason = cut(end.reason.as_deref().unwrap_or("no reason was told"));
        let text = match end.outcome {
            Outcome::Done => return,
            // Its steps say why.
            Outcome::Failed if end.reason.is_none() => return,
            Outcome::Failed => format!("ended early: {reason}"),
            Outcome::Script => format!("a line of the script is wrong: {reason}"),
            Outcome::Died => format!("the guest died: {reason}"),
            Outcome::TimedOut => reason,
            Outcome::Signal => format!("ended by a signal: {reason}"),
            Outcome::NotStarted => format!("not started: {reason}"),
        };
        self.marks.push(Mark { at, kind: Kind::End, text });
    }

    fn push(&mut self, mark: Mark) {
        if self.marks.len() < MAX_MARKS { self.marks.push(mark) } else { self.left_out += 1 }
    }

    pub fn all(&self) -> &[Mark] {
        &self.marks
    }

    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}
