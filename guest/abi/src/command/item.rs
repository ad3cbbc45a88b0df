//! What stands on a line of a script: a command, or the begin or the end of a repetition.
//!
//! Invariant: a repetition is no command, so that a shell, which has no lines behind the current one, refuses it.

use super::Command;
use crate::words::{SyntaxError, Words};

/// The word that begins a repetition.
pub(super) const REPEAT: &str = "repeat";

/// The word that names the commands behind it.
pub(super) const STEP: &str = "step";

/// What the name of a churn cannot be, because `wait boot` waits for the guest.
pub(super) const BOOT: &str = "boot";

/// How commands are repeated: the usage, what it does, and an example. A line of a script that is no command.
pub const REPETITION: [&str; 3] =
    ["repeat N { ... }", "the same commands again", "repeat 3 { plug 1G unplug 1G }"];

/// What may stand on a line of a script, where commands may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A command.
    Command(Command),
    /// `repeat N {`: the items up to the matching [`Item::End`], so many times, at least once.
    Repeat(u32),
    /// `}`.
    End,
}

impl Item {
    /// Reads one item and leaves what follows it.
    ///
    /// # Errors
    /// The next words are none.
    pub fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        if words.take("}") {
            return Ok(Self::End);
        }
        if words.take(REPEAT) {
            let times = words.count("a number of repetitions")?;
            words.keyword("{")?;
            return Ok(Self::Repeat(times));
        }
        Command::parse(words).map(Self::Command)
    }
}
