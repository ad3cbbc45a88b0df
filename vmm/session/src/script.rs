//! Scripts: the text of a session as steps. One command per line, `#` comments, nested `repeat N { ... }`.
//!
//! A script in a file is read as a whole before anything runs. Every wrong line is reported, with its column. So are
//! names that no workload has at that point (`script/names.rs`) and sizes that do not fit the devices
//! ([`Script::fit`]). A [`LiveScript`] is read line by line while it runs, with the same checks.

mod fit;
mod live;
mod names;
#[cfg(test)]
mod tests;

use std::fmt;

use tidevm_abi::command::{Command, ConsoleText, ExpectConsole, Item};
use tidevm_abi::{Counted, Kernel, SyntaxError, Word, Words, either};
use tidevm_machine::Config;

use crate::pattern;
use crate::remembered::Remembered;

pub use live::LiveScript;
pub(crate) use names::Workloads;

/// Deepest nesting of `repeat`.
const MAX_DEPTH: usize = 8;

/// Most errors of a script that are shown. One wrong line may have as many as it has words.
const MAX_SHOWN: usize = 100;

/// Most characters of a line that an error shows before its place, and from its place on.
const BEFORE: usize = 80;
const BEHIND: usize = 40;

/// A script without errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Name of its file, for messages.
    pub file: String,
    /// Its statements.
    pub body: Vec<Statement>,
    lines: Vec<String>,
}

/// A command, or several that are repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// One command.
    Step(Step),
    /// `repeat N { ... }`.
    Repeat {
        /// How often, at least once.
        times: u32,
        /// The repeated statements.
        body: Vec<Statement>,
    },
}

/// A command and its place in the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Line, from 1.
    pub line: usize,
    /// Column of its first character, in characters from 1.
    pub column: usize,
    /// The command.
    pub command: Command,
}

/// One wrong line. Shown as `FILE:LINE:COLUMN: message`, the line (of a long one, the part around the place),
/// and a caret under the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ScriptError {
    /// Name of the script's file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, in characters from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The line around the place; nothing behind the first errors, which alone are shown.
    text: Excerpt,
}

/// A part of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Excerpt {
    text: String,
    /// Characters of `text` before the place that it shows.
    before: usize,
}

impl Excerpt {
    fn new(line: &str, column: usize) -> Self {
        let skipped = (column - 1).saturating_sub(BEFORE);
        let before = column - 1 - skipped;
        let mut chars = line.chars().skip(skipped);
        let shown: String = chars.by_ref().take(before + BEHIND).collect();
        let (left, right) =
            (if skipped > 0 { "..." } else { "" }, if chars.next().is_some() { "..." } else { "" });
        Self { text: format!("{left}{shown}{right}"), before: left.len() + before }
    }
}

/// Every error of a script, in the order of its lines. The first [`MAX_SHOWN`] of them are shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ScriptErrors(pub Vec<ScriptError>);

impl Script {
    /// Reads `text`, the content of `file`. A byte order mark at its start is no part of it, and a line may end as on
    /// Windows.
    ///
    /// # Errors
    /// All wrong lines.
    pub fn parse(file: &str, text: &str) -> Result<Script, ScriptErrors> {
        Self::parse_after(file, text, &Remembered::default())
    }

    /// [`Script::parse`], for a machine that was saved with workloads.
    ///
    /// # Errors
    /// All wrong lines.
    pub fn parse_after(file: &str, text: &str, remembered: &Remembered) -> Result<Script, ScriptErrors> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = Reader::default();
        for (index, line) in text.lines().enumerate() {
            if let Err(error) = reader.line(index + 1, line) {
                reader.errors.push((index + 1, error.column, error.message));
            }
        }
        let (body, mut errors) = reader.finish();
        if errors.is_empty() {
            errors = names::check(&body, &mut Workloads::remembered(remembered));
        }
        let script = Script { file: file.to_owned(), body, lines: text.lines().map(str::to_owned).collect() };
        if errors.is_empty() { Ok(script) } else { Err(script.errors(errors)) }
    }

    /// Checks that the kernel can carry out every step, that the device and the node of every step exist and that every target is
    /// a multiple of its device block size.
    /// A target beyond the region is no error here: the device refuses it and the session goes on.
    ///
    /// # Errors
    /// All steps that do not fit.
    pub fn fit(&self, config: &Config) -> Result<(), ScriptErrors> {
        let errors = fit::misfits(&self.body, config);
        if errors.is_empty() { Ok(()) } else { Err(self.errors(errors)) }
    }

    /// Checks that `kernel` can carry out every step, and tells every number that a step looks at.
    ///
    /// # Errors
    /// All steps that it cannot.
    pub fn fit_kernel(&self, kernel: Kernel) -> Result<(), ScriptErrors> {
        let errors = fit::refused(&self.body, kernel);
        if errors.is_empty() { Ok(()) } else { Err(self.errors(errors)) }
    }

    /// Number of steps that a run takes, with repetitions.
    pub fn steps(&self) -> u64 {
        count_steps(&self.body)
    }

    /// Whether a step resets the machine. [`Config::resets`] is to say the same.
    pub fn resets(&self) -> bool {
        let mut resets = false;
        each_step(&self.body, &mut |step| {
            resets |= matches!(step.command.carried_out(), Command::Reset { .. })
        });
        resets
    }

    /// Length of the longest step's text, in characters.
    pub fn longest_step(&self) -> usize {
        let mut longest = 0;
        each_step(&self.body, &mut |step| longest = longest.max(step.command.to_string().chars().count()));
        longest
    }

    /// Each step once, in the order of the text.
    pub fn each_step(&self) -> Vec<&Step> {
        let mut steps = Vec::new();
        each_step(&self.body, &mut |step| steps.push(step));
        steps
    }

    fn errors(&self, errors: Errors) -> ScriptErrors {
        locate(&self.file, errors, |line| self.lines.get(line - 1).map(String::as_str))
    }
}

/// Errors as line, column and message.
type Errors = Vec<(usize, usize, String)>;

/// `errors` of `file`, of whose lines `text` gives the text.
fn locate<'t>(file: &str, mut errors: Errors, text: impl Fn(usize) -> Option<&'t str>) -> ScriptErrors {
    errors.sort();
    let located = errors.into_iter().enumerate().map(|(index, (line, column, message))| ScriptError {
        file: file.to_owned(),
        line,
        column,
        message,
        text: match text(line) {
            Some(text) if index < MAX_SHOWN => Excerpt::new(text, column),
            _ => Excerpt::default(),
        },
    });
    ScriptErrors(located.collect())
}

/// Number of steps that a run of `body` takes, with repetitions.
pub(crate) fn count_steps(body: &[Statement]) -> u64 {
    let count = |statement: &Statement| match statement {
        Statement::Step(_) => 1,
        Statement::Repeat { times, body } => u64::from(*times).saturating_mul(count_steps(body)),
    };
    body.iter().map(count).fold(0, u64::saturating_add)
}

fn each_step<'s>(body: &'s [Statement], visit: &mut impl FnMut(&'s Step)) {
    for statement in body {
        match statement {
            Statement::Step(step) => visit(step),
            Statement::Repeat { body, .. } => each_step(body, visit),
        }
    }
}

/// Checks the pattern of a command, whose words are the next ones of `words`.
fn check_pattern(command: &Command, mut words: Words<'_>) -> Result<(), SyntaxError> {
    let Command::ExpectConsole(ExpectConsole { text: ConsoleText::Matches(pattern), .. }) =
        command.carried_out()
    else {
        return Ok(());
    };
    pattern::compile(pattern).map(drop).map_err(|error| {
        let mut column = 1;
        // The pattern is the only word that begins with a slash.
        while let Ok(word) = words.next("a pattern") {
            if word.text.starts_with('/') {
                column = word.column + 1 + error.offset;
                break;
            }
        }
        SyntaxError { column, message: error.message }
    })
}

/// The state between two lines: statements so far, open `repeat`s, errors.
#[derive(Debug, Default)]
struct Reader {
    body: Vec<Statement>,
    open: Vec<Open>,
    errors: Errors,
}

/// A `repeat` before its `}`. `outer` holds the statements around it meanwhile.
#[derive(Debug)]
struct Open {
    line: usize,
    column: usize,
    times: u32,
    outer: Vec<Statement>,
}

impl Reader {
    fn line(&mut self, line: usize, text: &str) -> Result<(), SyntaxError> {
        let result = self.statements(line, &mut Words::new(text));
        if let Err(error) = &result {
            // Braces behind the error still count. Otherwise one error would be reported as several.
            let mut words = Words::new(text);
            while let Ok(word) = words.next("") {
                match word.text {
                    "{" if word.column >= error.column => self.open(line, word.column, 1),
                    "}" if word.column >= error.column => self.open.pop().map_or((), |open| self.close(open)),
                    _ => {}
                }
            }
        }
        result
    }

    fn statements(&mut self, line: usize, words: &mut Words<'_>) -> Result<(), SyntaxError> {
        while let Some(Word { column, .. }) = words.peek() {
            let ahead = words.clone();
            match Item::parse(words)? {
                Item::Repeat(_) if self.open.len() >= MAX_DEPTH => {
                    let message = format!("repeat is nested deeper than {MAX_DEPTH}");
                    return Err(SyntaxError { column, message });
                }
                Item::Repeat(times) => {
                    self.open(line, column, times);
                    continue;
                }
                Item::End => {
                    let Some(open) = self.open.pop() else {
                        return Err(SyntaxError { column, message: "`}` without `repeat N {`".to_owned() });
                    };
                    self.close(open);
                }
                Item::Command(command) => {
                    check_pattern(&command, ahead)?;
                    self.body.push(Statement::Step(Step { line, column, command }));
                }
            }
            if let Some(word) = words.peek().filter(|word| word.text != "}") {
                return Err(word.error("the end of the line"));
            }
        }
        Ok(())
    }

    fn open(&mut self, line: usize, column: usize, times: u32) {
        let outer = std::mem::take(&mut self.body);
        self.open.push(Open { line, column, times, outer });
    }

    fn close(&mut self, open: Open) {
        let body = std::mem::replace(&mut self.body, open.outer);
        // A deeper one is an error already. It is dropped, because a recursive walk could overflow the stack.
        if self.open.len() < MAX_DEPTH {
            self.body.push(Statement::Repeat { times: open.times, body });
        }
    }

    /// Whether a `repeat` waits for its `}`.
    fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The statements so far, none of which is open.
    fn take(&mut self) -> Vec<Statement> {
        std::mem::take(&mut self.body)
    }

    fn finish(mut self) -> (Vec<Statement>, Errors) {
        while let Some(open) = self.open.pop() {
            self.errors.push((open.line, open.column, "this repeat has no `}`".to_owned()));
            self.body = open.outer;
        }
        (self.body, self.errors)
    }
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        // Control characters would move the caret or the terminal; a tab takes one column.
        let visible = self.text.text.chars().map(|c| if c.is_control() { ' ' } else { c });
        let number = self.line.to_string();
        writeln!(f, "{number} | {}", visible.collect::<String>().trim_end())?;
        let before = " ".repeat(self.text.before);
        write!(f, "{:width$} | {before}^", "", width = number.len())
    }
}

impl fmt::Display for ScriptErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().take(MAX_SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        match self.0.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => {
                let more = more as u64;
                write!(f, "\n{} {} not shown", Counted(more, "more error"), either(more, "is", "are"))
            }
        }
    }
}
