//! What a machine is to do, and where a session takes its steps from: nowhere, a script that was read, lines of a pipe, or
//! a person.

use std::io::{self, IsTerminal, Write};

use tidevm_machine::{Companion, Config, ConsoleMode};
use tidevm_session::Manner;
use tidevm_session::script::{LiveScript, Script};

use crate::input::{self, Complain, Input, Piped};
use crate::prompt::{History, Prompt};

/// The name of standard input in messages.
pub const STDIN: &str = "<stdin>";

/// What a machine is to do.
pub enum Steps {
    /// Nothing: it runs until it is ended.
    None,
    /// A script that was read.
    Whole(Script),
    /// A script that comes on standard input while it runs.
    Piped,
    /// What a person types.
    Typed(History),
}

impl Steps {
    /// Whether a step may reset the machine.
    pub fn resets(&self) -> bool {
        match self {
            Self::None => false,
            Self::Whole(script) => script.resets(),
            Self::Piped | Self::Typed(_) => true,
        }
    }

    /// Length of the longest step's text, in characters, as far as it is known.
    pub fn longest(&self) -> usize {
        /// `hog 1024M movable scattered as data`.
        const USUAL: usize = 36;
        match self {
            Self::None => 0,
            Self::Whole(script) => script.longest_step(),
            Self::Piped | Self::Typed(_) => USUAL,
        }
    }
}

/// Where a session takes its steps from.
pub enum Source {
    /// Nowhere.
    None,
    /// A script that was read.
    Whole(Script),
    /// Lines that come.
    Lines(Box<LiveScript>, Input, Manner),
}

impl Source {
    /// Where a session on a machine of `config` takes its `steps` from, and the thread that reads them. `complain` shows
    /// errors to a person.
    pub fn of(steps: Steps, config: &Config, complain: Complain) -> (Option<Companion>, Self) {
        match steps {
            Steps::None => (None, Source::None),
            Steps::Whole(script) => (None, Source::Whole(script)),
            Steps::Piped => {
                let (reader, input) = input::companion(|| Piped(io::stdin().lock()), complain);
                let script = Box::new(LiveScript::new(STDIN, config.clone()));
                (Some(reader), Source::Lines(script, input, Manner::Script))
            }
            Steps::Typed(history) => {
                let (reader, input) = input::companion(|| Prompt::new(history), complain);
                let script = Box::new(LiveScript::new("prompt", config.clone()));
                (Some(reader), Source::Lines(script, input, Manner::Prompt))
            }
        }
    }
}

/// Tells a person at a terminal how the machine of `config` is ended.
pub fn greet(config: &Config) {
    let text = match config.console {
        ConsoleMode::Stdio if io::stdin().is_terminal() => "Ctrl-a x ends the machine.",
        _ if !config.interactive => return,
        ConsoleMode::Off => {
            "The guest's console is off; --console file:PATH keeps it. `help` lists the commands, Ctrl-D powers the guest off."
        }
        _ => "`help` lists the commands, Ctrl-D powers the guest off.",
    };
    // Where nobody reads. A stream that is closed is met by the session.
    if io::stderr().is_terminal() {
        drop(writeln!(io::stderr(), "{text}"));
    }
}
