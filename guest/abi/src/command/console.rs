//! `expect console`: a text or a pattern that the guest's console has, or does not have.
//!
//! Takes the place of `expect` and of `grep` on a log in a shell script. A pattern stands here as it is written; whoever
//! looks at a console checks it.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::time::Duration;

use super::suffix;
use crate::words::{SyntaxError, Words};

/// `expect console` and `expect no console`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectConsole {
    /// The console is not to have it.
    pub absent: bool,
    /// What to look for.
    pub text: ConsoleText,
    /// How long it may take to come; `None` for what is to be absent.
    pub within: Option<Duration>,
}

/// What can be on a line of a console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleText {
    /// `contains "TEXT"`
    Contains(String),
    /// `matches /RE/`: what stands between the slashes, where a slash is written `\\/`.
    Matches(String),
}

impl ExpectConsole {
    /// Reads what follows `expect`; `None` if that is about something else than the console.
    pub(super) fn parse(words: &mut Words<'_>) -> Result<Option<Self>, SyntaxError> {
        let absent = words.take("no");
        if absent {
            words.keyword("console")?;
        } else if !words.take("console") {
            return Ok(None);
        }
        let text = if words.take("contains") {
            ConsoleText::Contains(words.quoted("a text")?)
        } else {
            let word = words.next("`contains` or `matches`")?;
            if word.text != "matches" {
                return Err(word.error("`contains` or `matches`"));
            }
            ConsoleText::Matches(words.pattern()?)
        };
        if let Some(word) = words.peek().filter(|word| absent && word.text == "within") {
            return Err(word.error(&format!("no `within`: {NOW}")));
        }
        Ok(Some(Self { absent, text, within: suffix::within(words)? }))
    }
}

const NOW: &str = "`expect no console` looks at what is there; put a `sleep` before it";

impl fmt::Display for ConsoleText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contains(text) => write!(f, "contains \"{text}\""),
            Self::Matches(pattern) => write!(f, "matches /{pattern}/"),
        }
    }
}

impl fmt::Display for ExpectConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expect {}console {}", if self.absent { "no " } else { "" }, self.text)?;
        suffix::write(f, None, self.within)
    }
}
