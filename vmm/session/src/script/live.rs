//! [`LiveScript`]: a script whose lines come one by one while it runs.
//!
//! The grammar, the checks and the errors are those of a whole script. A step is there when its line is read, a `repeat`
//! when its last `}` is read.
//!
//! Invariants: after an error no `repeat` is open, and the names are those of before. The text of an open `repeat` has a
//! limit, so that what has no end does not grow.

use tidevm_abi::Name;
use tidevm_machine::Config;

use super::fit::misfits;
use super::names::{self, Workloads};
use super::{Errors, Reader, ScriptErrors, Statement, locate};
use crate::remembered::Remembered;

/// Longest text of a `repeat` that comes line by line, in bytes.
const MAX_OPEN: usize = 1 << 20;

/// A script that is read while it runs.
#[derive(Debug)]
pub struct LiveScript {
    file: String,
    /// What the steps have to fit.
    config: Config,
    reader: Reader,
    workloads: Workloads,
    /// Lines so far.
    number: usize,
    /// The text of the `repeat` that is open; otherwise nothing.
    open: Vec<String>,
    /// Bytes of it, with the ends of the lines.
    open_bytes: usize,
}

impl LiveScript {
    /// A script without lines. `file` names it in messages, and its steps have to fit a machine of `config`, with
    /// the workloads of the snapshot from which it starts.
    #[must_use]
    pub fn new(file: &str, config: Config) -> Self {
        let remembered = config.restore.as_ref().map(Remembered::of).unwrap_or_default();
        let (reader, workloads) = (Reader::default(), Workloads::remembered(&remembered));
        Self { file: file.to_owned(), config, reader, workloads, number: 0, open: Vec::new(), open_bytes: 0 }
    }

    /// Reads the next line, and returns the statements that are complete with it.
    ///
    /// # Errors
    /// What is wrong with the line, or with the `repeat` that it closes; all of that is forgotten.
    pub fn line(&mut self, text: &str) -> Result<Vec<Statement>, ScriptErrors> {
        self.number += 1;
        let text = if self.number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        self.open.push(text.to_owned());
        self.open_bytes += text.len() + 1;
        let read = self.reader.line(self.number, text);
        let too_long = self.open_bytes > MAX_OPEN;
        let errors = match read {
            Err(error) => vec![(self.number, error.column, error.message)],
            Ok(()) if self.is_open() && too_long => {
                vec![(self.number, 1, format!("this repeat is longer than {MAX_OPEN} bytes"))]
            }
            Ok(()) if self.is_open() => return Ok(Vec::new()),
            Ok(()) => {
                let body = self.reader.take();
                let mut workloads = self.workloads.clone();
                let mut errors = names::check(&body, &mut workloads);
                if errors.is_empty() {
                    errors = misfits(&body, &self.config);
                }
                if errors.is_empty() {
                    self.workloads = workloads;
                    self.close();
                    return Ok(body);
                }
                errors
            }
        };
        Err(self.refuse(errors))
    }

    /// Counts a line that cannot be read as text.
    pub fn unreadable(&mut self, message: String) -> ScriptErrors {
        self.number += 1;
        self.open.push(String::new());
        self.refuse(vec![(self.number, 1, message)])
    }

    /// No further line comes.
    ///
    /// # Errors
    /// A `repeat` is open.
    pub fn end(&mut self) -> Result<(), ScriptErrors> {
        let (_, errors) = std::mem::take(&mut self.reader).finish();
        if errors.is_empty() { Ok(()) } else { Err(self.refuse(errors)) }
    }

    /// Forgets a `repeat` that is open.
    pub fn abandon(&mut self) {
        self.reader = Reader::default();
        self.close();
    }

    fn close(&mut self) {
        self.open.clear();
        self.open_bytes = 0;
    }

    /// Whether a `repeat` waits for its `}`.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.reader.is_open()
    }

    /// The workloads that live.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        self.workloads.names()
    }

    /// Corrects the names after steps that failed: `before` are the names from before the steps, and of these and the
    /// current ones those stay that `lives` says.
    pub(crate) fn settle(&mut self, before: Workloads, lives: impl Fn(&Name) -> bool) {
        self.workloads.settle(before, lives);
    }

    /// The names now, for [`LiveScript::settle`].
    pub(crate) fn workloads(&self) -> Workloads {
        self.workloads.clone()
    }

    fn refuse(&mut self, errors: Errors) -> ScriptErrors {
        let first = self.number + 1 - self.open.len();
        let located =
            locate(&self.file, errors, |line| Some(self.open.get(line.checked_sub(first)?)?.as_str()));
        self.abandon();
        located
    }
}

#[cfg(test)]
mod tests {
    use tidevm_machine::{Config, HotplugConfig, Size};

    use super::{LiveScript, MAX_OPEN, Statement};

    fn live() -> LiveScript {
        LiveScript::new(
            "test",
            Config { hotplug: vec![HotplugConfig::new(Size::gib(1))], ..Config::default() },
        )
    }

    #[test]
    fn a_step_is_there_with_its_line_and_a_repeat_with_its_end() {
        let mut script = live();
        assert!(matches!(script.line("\u{feff}plug 2M # all").unwrap()[..], [Statement::Step(_)]));
        assert_eq!(script.line("  # nothing").unwrap(), []);
        assert_eq!(script.line("repeat 2 {").unwrap(), []);
        assert_eq!(script.line("  check").unwrap(), []);
        assert!(script.is_open());
        assert!(matches!(script.line("}").unwrap()[..], [Statement::Repeat { times: 2, .. }]));
        assert!(!script.is_open());
        assert_eq!(script.end(), Ok(()));
    }

    #[test]
    fn an_error_names_the_line_and_shows_it_and_closes_the_repeat() {
        let mut script = live();
        script.line("check").unwrap();
        let text = script.line("plug 3M").unwrap_err().to_string();
        assert!(text.starts_with("test:2:1: 3M is not a multiple of the block size 2M"), "{text}");
        script.line("repeat 2 {").unwrap();
        script.line("    hog 1M movable as a").unwrap();
        let text = script.line("}").unwrap_err().to_string();
        assert!(text.contains("test:4:5: `a` is in use since line 4") && text.contains("hog 1M"), "{text}");
        assert!(!script.is_open());
        script.line("hog 1M movable as a").expect("the name is free");
        let text = script.line("hog 1M movable as a").unwrap_err().to_string();
        assert!(text.starts_with("test:7:1: `a` is in use since line 6"), "{text}");
        script.line("repeat 2 {").unwrap();
        assert!(script.end().unwrap_err().to_string().starts_with("test:8:1: this repeat has no `}`"));
    }

    #[test]
    fn a_repeat_without_an_end_has_a_limit() {
        let mut script = live();
        let comment = format!("#{}", " ".repeat(4000));
        for line in [&comment, ""] {
            script.line("repeat 2 {").unwrap();
            let lines = (0..=MAX_OPEN).take_while(|_| script.line(line).is_ok()).count();
            assert_eq!(lines, (MAX_OPEN - "repeat 2 {\n".len()) / (line.len() + 1), "{line:?}");
            assert!(!script.is_open() && script.open.is_empty());
        }
    }
}
