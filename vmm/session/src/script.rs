//! A session's text as steps: one command a line, `#` comments, `repeat N { ... }` nested.
//!
//! A script is read as a whole before anything runs. Every line with an error is reported, with its
//! column; so are names that no workload has at that point (`script/names.rs`) and sizes that do
//! not fit the devices ([`Script::fit`]).

mod names;
#[cfg(test)]
mod tests;

use std::fmt;

use tidevm_machine::{Config, Size};

use crate::command::{self, Command, Pmem, SyntaxError, Target, Word, Words};

/// Deepest nesting of `repeat`.
const MAX_DEPTH: usize = 8;

/// A script whose every line is a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Where it came from, for messages.
    pub file: String,
    /// What it says.
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
        /// What.
        body: Vec<Statement>,
    },
}

/// A command and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Line, from 1.
    pub line: usize,
    /// Column of its first character, in characters from 1.
    pub column: usize,
    /// What to do.
    pub command: Command,
}

/// One wrong line. Shown as `FILE:LINE:COLUMN: message`, the line, and a caret under the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ScriptError {
    /// Where the script came from.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, in characters from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The whole line.
    pub text: String,
}

/// Every error of a script, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ScriptErrors(pub Vec<ScriptError>);

impl Script {
    /// Reads `text`, which came from `file`.
    ///
    /// # Errors
    /// All wrong lines.
    pub fn parse(file: &str, text: &str) -> Result<Script, ScriptErrors> {
        let mut reader = Reader::default();
        for (index, line) in text.lines().enumerate() {
            if let Err(error) = reader.line(index + 1, line) {
                reader.errors.push((index + 1, error.column, error.message));
            }
        }
        let (body, mut errors) = reader.finish();
        if errors.is_empty() {
            errors = names::check(&body);
        }
        let script = Script { file: file.to_owned(), body, lines: text.lines().map(str::to_owned).collect() };
        if errors.is_empty() { Ok(script) } else { Err(script.errors(errors)) }
    }

    /// Checks that every device a step names exists and that every target is made of its blocks.
    /// A target beyond the region is no error here: the device refuses it and the session goes on.
    ///
    /// # Errors
    /// All steps that do not fit.
    pub fn fit(&self, config: &Config) -> Result<(), ScriptErrors> {
        let mut errors = Vec::new();
        each_step(&self.body, &mut |step| {
            if let Some(message) = misfit(&step.command, config) {
                errors.push((step.line, step.column, message));
            }
        });
        if errors.is_empty() { Ok(()) } else { Err(self.errors(errors)) }
    }

    /// Number of steps that a run takes, repetitions counted.
    pub fn steps(&self) -> u64 {
        count_steps(&self.body)
    }

    /// Length of the longest step's text, in characters.
    pub fn longest_step(&self) -> usize {
        let mut longest = 0;
        each_step(&self.body, &mut |step| longest = longest.max(step.command.to_string().len()));
        longest
    }

    fn errors(&self, mut errors: Vec<(usize, usize, String)>) -> ScriptErrors {
        errors.sort();
        let located = errors.into_iter().map(|(line, column, message)| ScriptError {
            file: self.file.clone(),
            line,
            column,
            message,
            text: self.lines.get(line - 1).cloned().unwrap_or_default(),
        });
        ScriptErrors(located.collect())
    }
}

fn count_steps(body: &[Statement]) -> u64 {
    let count = |statement: &Statement| match statement {
        Statement::Step(_) => 1,
        Statement::Repeat { times, body } => u64::from(*times).saturating_mul(count_steps(body)),
    };
    body.iter().map(count).fold(0, u64::saturating_add)
}

fn each_step(body: &[Statement], visit: &mut impl FnMut(&Step)) {
    for statement in body {
        match statement {
            Statement::Step(step) => visit(step),
            Statement::Repeat { body, .. } => each_step(body, visit),
        }
    }
}

fn misfit(command: &Command, config: &Config) -> Option<String> {
    let (index, target) = match command {
        Command::Pmem(pmem) => return missing_pmem(pmem, config.pmem.len()),
        Command::Resize(resize) => (resize.device, Some(resize.target)),
        // The guest's own counters exist without any device.
        Command::Expect(expect) if expect.metric.unit() == command::Unit::Bytes => (expect.device, None),
        _ => return None,
    };
    let Some(device) = config.hotplug.get(index) else {
        return Some(match config.hotplug.len() {
            0 => "there is no hotplug device: no --hotplug was given".to_owned(),
            count => format!("there is no device {index}: the last of {count} is device {}", count - 1),
        });
    };
    let size = target.map_or(0, Target::size);
    (!size.is_multiple_of(device.block.0)).then(|| {
        let block = device.block;
        format!("{} is not a multiple of the block size {block} of device {index}", Size(size))
    })
}

/// Whether a range of device memory is named that there is not.
fn missing_pmem(pmem: &Pmem, count: usize) -> Option<String> {
    let index = match pmem {
        Pmem::List => return None,
        Pmem::Map(map) => map.devices().last()?,
        Pmem::Unmap(device) | Pmem::Hold { device, .. } => *device,
    };
    match count {
        _ if usize::from(index) < count => None,
        0 => Some("there is no device memory: no --pmem was given".to_owned()),
        _ => Some(format!("there is no pmem {index}: the last of {count} is pmem {}", count - 1)),
    }
}

/// The blocks that are open while lines are read.
#[derive(Default)]
struct Reader {
    body: Vec<Statement>,
    open: Vec<Open>,
    errors: Vec<(usize, usize, String)>,
}

/// A `repeat` whose `}` has not come yet, with the statements around it put aside.
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
            // Braces count even behind an error, so that one error is reported as one.
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
            if words.take("repeat") {
                let times = command::count(words, "a number of repetitions")?;
                if self.open.len() >= MAX_DEPTH {
                    let message = format!("repeat is nested deeper than {MAX_DEPTH}");
                    return Err(SyntaxError { column, message });
                }
                words.keyword("{")?;
                self.open(line, column, times);
                continue;
            }
            if words.take("}") {
                let Some(open) = self.open.pop() else {
                    return Err(SyntaxError { column, message: "`}` without `repeat N {`".to_owned() });
                };
                self.close(open);
            } else {
                let command = command::parse_command(words)?;
                self.body.push(Statement::Step(Step { line, column, command }));
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
        // Deeper ones are errors already; kept, they could overflow the stack of whoever walks them.
        if self.open.len() < MAX_DEPTH {
            self.body.push(Statement::Repeat { times: open.times, body });
        }
    }

    fn finish(mut self) -> (Vec<Statement>, Vec<(usize, usize, String)>) {
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
        let visible = self.text.chars().map(|c| if c.is_control() { ' ' } else { c });
        let number = self.line.to_string();
        writeln!(f, "{number} | {}", visible.collect::<String>().trim_end())?;
        let before = " ".repeat(self.column - 1);
        write!(f, "{:width$} | {before}^", "", width = number.len())
    }
}

impl fmt::Display for ScriptErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}
