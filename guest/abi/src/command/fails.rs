//! `fails`: a command that is expected to fail, and the reason for it.
//!
//! Takes the place of `! command` and `2>&1 | grep` in a shell script. The reason is part of what is expected, so
//! that another failure is not taken for it.
//!
//! Invariant: a `fails` holds a command that is no `fails`.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;

use super::Command;
use crate::words::{SyntaxError, Words};

/// Most characters of the reason.
const MAX_REASON: usize = 200;

/// `fails`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fails {
    /// The command that is expected to fail.
    pub command: Box<Command>,
    /// A part of the failure's text.
    pub because: String,
}

impl Fails {
    /// Reads what follows `fails`.
    pub(super) fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        if let Some(word) = words.peek().filter(|word| word.text == "fails") {
            return Err(word.error("a command that may fail"));
        }
        let command = Box::new(Command::parse(words)?);
        words.keyword("because")?;
        let expected = format!("a part of the failure's text in quotes, at most {MAX_REASON} characters");
        let because = words.value(&expected, quoted)?;
        Ok(Self { command, because })
    }
}

/// The text between quotes. A table shows it, so it has no control characters.
fn quoted(word: &str) -> Option<String> {
    let text = word.strip_prefix('"')?.strip_suffix('"')?;
    let fits = !text.trim().is_empty() && text.chars().count() <= MAX_REASON;
    (fits && !text.contains(char::is_control)).then(|| text.into())
}

impl fmt::Display for Fails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fails {} because \"{}\"", self.command, self.because)
    }
}
