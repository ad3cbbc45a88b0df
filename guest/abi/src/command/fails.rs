//! `fails`: a command that is expected to fail, and the reason for it.
//!
//! Takes the place of `! command` and `2>&1 | grep` in a shell script. The reason is part of what is expected, so
//! that another failure is not taken for it.
//!
//! Invariant: a `fails` holds a command that is no `fails`, and no `step`, which cannot fail.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use super::Command;
use super::item::STEP;
use crate::words::{SyntaxError, Words};

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
        if let Some(word) = words.peek().filter(|word| ["fails", STEP].contains(&word.text)) {
            return Err(word.error("a command that may fail"));
        }
        let command = Box::new(Command::parse(words)?);
        words.keyword("because")?;
        let because = words.quoted("a part of the failure's text")?;
        Ok(Self { command, because })
    }
}

impl fmt::Display for Fails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fails {} because \"{}\"", self.command, self.because)
    }
}
