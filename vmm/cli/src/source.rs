//! What a machine is to do, and where a session takes its steps from: nowhere, a script that was read, lines of a pipe, or
//! a person.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use anyhow::Context;
use tidevm_machine::{Companion, Config, ConsoleMode};
use tidevm_session::script::{LiveScript, Script};
use tidevm_session::{Manner, Remembered};

use crate::cli::Run;
use crate::input::{self, Complain, Input, Piped};
use crate::prompt::{self, History, Prompt};

/// The name of standard input in messages.
const STDIN: &str = "<stdin>";

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

/// What the options say that a machine with the workloads `remembered` is to do.
///
/// # Errors
/// The script cannot be read, or is wrong.
pub fn steps(options: &Run, remembered: &Remembered) -> anyhow::Result<Steps> {
    Ok(match options.script.as_deref() {
        None if options.allows_prompt() && prompt::has_person() => Steps::Typed(History::open()),
        None => Steps::None,
        Some(file) if file.as_os_str() == "-" => Steps::Piped,
        Some(file) => Steps::Whole(read(file, remembered)?),
    })
}

/// Reads and parses a whole script, for a machine with the workloads `remembered`, before anything is started.
///
/// # Errors
/// It cannot be read, or is wrong.
pub fn read(file: &Path, remembered: &Remembered) -> anyhow::Result<Script> {
    let (name, bytes) = if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).context("cannot read the script from standard input")?;
        (STDIN.to_owned(), bytes)
    } else {
        let name = file.display().to_string();
        let bytes = fs::read(file).with_context(|| format!("cannot read the script {name}"))?;
        (name, bytes)
    };
    let text = String::from_utf8(bytes).with_context(|| format!("the script {name} is no text"))?;
    Ok(Script::parse_after(&name, &text, remembered)?)
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
