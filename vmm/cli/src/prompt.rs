//! The prompt of `tidevm run` on a terminal: a line editor with a history, and completion of what the grammar has.
//!
//! The editor is `rustyline`: it reads and sets the terminal in the calling thread, with few system calls, and starts no
//! thread. (`reedline` waits with `epoll`, and asks the terminal for the cursor.) It runs in the thread `input`, which
//! has a filter of its own; the history is open before.
//!
//! While a step runs, the terminal is as the shell left it, so that Ctrl-C is a signal. It then cancels the step
//! (`Config::interactive`). Ctrl-Z does nothing at the prompt: the thread may send no signal.
//!
//! Invariants: the history file is open before the guest runs, and grows by what a person typed only.

use std::borrow::Cow;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IsTerminal, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::{History as _, MemHistory};
use rustyline::validate::Validator;
use rustyline::{Cmd, CompletionType, Config, Context, Editor, Helper, KeyEvent};
use tidevm_abi::command::VERBS;
use tidevm_abi::{Metric, Name};
use tidevm_session::Line;

use crate::input::{Asked, Read};

/// Most lines of the history.
const MOST: usize = 1000;

/// Size from which the history file is written anew at the start, with its last [`MOST`] lines.
const LARGE: u64 = 256 << 10;

/// What the prompt understands beside the commands of scripts.
const OWN: &[(&str, &str)] = &[
    ("help", "list the commands"),
    ("stop", "power the guest off and end; quit and Ctrl-D do the same"),
    ("quit", "as stop"),
];

/// Whether a person sits at standard input and output. A process in the background may not read its terminal.
pub fn has_person() -> bool {
    let stdin = io::stdin();
    let foreground =
        || rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp());
    stdin.is_terminal() && io::stdout().is_terminal() && foreground()
}

/// The history of earlier sessions.
#[derive(Default)]
pub struct History {
    lines: Vec<String>,
    /// `None` where there is no folder for it.
    file: Option<File>,
}

impl History {
    /// Reads the history and opens it: `tidevm/history` in `$XDG_STATE_HOME` or in `~/.local/state`. Without such a
    /// folder there is no history.
    pub fn open() -> Self {
        let home = |key: &str| std::env::var_os(key).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = home("XDG_STATE_HOME").or_else(|| Some(home("HOME")?.join(".local/state")));
        let Some(folder) = state.map(|state| state.join("tidevm")) else { return Self::default() };
        Self::in_folder(&folder).unwrap_or_else(|error| {
            log::info!("no history in {}: {error}", folder.display());
            Self::default()
        })
    }

    fn in_folder(folder: &std::path::Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join("history");
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
        let size = file.metadata()?.len();
        let mut text = Vec::new();
        // What is before the end of a file of any size is old.
        if size > LARGE {
            io::Seek::seek(&mut file, io::SeekFrom::Start(size - LARGE))?;
        }
        (&file).take(LARGE).read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.drain(..lines.len().saturating_sub(MOST));
        if size > LARGE {
            fs::write(&path, lines.join("\n") + "\n")?;
        }
        Ok(Self { lines, file: Some(file) })
    }
}

/// The prompt.
pub struct Prompt {
    /// `None` when the terminal cannot be used.
    editor: Option<Editor<Words, MemHistory>>,
    history: Option<File>,
}

impl Prompt {
    /// A prompt with the `history`. The terminal is not touched before the first line.
    pub fn new(history: History) -> Self {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            // A machine that ends while a line is typed would leave the terminal so.
            .bracketed_paste(false)
            .build();
        let memory = MemHistory::with_config(&config);
        let editor = Editor::with_history(config, memory).map(|mut editor| {
            editor.set_helper(Some(Words::default()));
            editor.bind_sequence(KeyEvent::ctrl('Z'), Cmd::Noop);
            for line in history.lines {
                // Fails for a line that repeats the one before.
                drop(editor.history_mut().add(&line));
            }
            editor
        });
        if let Err(error) = &editor {
            log::warn!("no prompt: {error}");
        }
        Self { editor: editor.ok(), history: history.file }
    }

    fn remember(&mut self, line: &str) {
        let Some(editor) = &mut self.editor else { return };
        if matches!(editor.add_history_entry(line), Ok(true))
            && let Some(file) = &mut self.history
            && let Err(error) = file.write_all(format!("{line}\n").as_bytes())
        {
            log::warn!("no further history: {error}");
            self.history = None;
        }
    }
}

impl Read for Prompt {
    fn line(&mut self, asked: Asked) -> Line {
        let prompt = if asked.open { "......> " } else { "tidevm> " };
        loop {
            let Some(editor) = &mut self.editor else { return Line::End };
            if let Some(words) = editor.helper_mut() {
                words.names.clone_from(&asked.names);
            }
            match editor.readline(prompt) {
                Ok(line) => {
                    self.remember(&line);
                    match line.trim() {
                        "help" => tell(&help()),
                        "stop" | "quit" => return Line::End,
                        _ => return Line::Text(line),
                    }
                }
                Err(ReadlineError::Interrupted) => return Line::Abandoned,
                Err(ReadlineError::Eof) => return Line::End,
                Err(error) => {
                    log::warn!("the prompt ends: {error}");
                    return Line::End;
                }
            }
        }
    }
}

/// Writes for a person. A terminal that is gone is met at the next line.
fn tell(text: &str) {
    drop(io::stdout().write_all(text.as_bytes()));
}

fn help() -> String {
    let verbs = VERBS.iter().map(|verb| (verb.usage, verb.about));
    let more = [("repeat N { ... }", "the same commands again; they may stand on lines of their own")];
    let own = OWN.iter().copied();
    let lines = verbs.chain(more).chain(own).map(|(usage, about)| format!("  {usage}\n      {about}\n"));
    lines.chain(["  Ctrl-C cancels a command that runs.\n".to_owned()]).collect()
}

/// What can be completed.
#[derive(Default)]
struct Words {
    /// The workloads that live.
    names: Vec<Name>,
}

impl Words {
    /// Every word that may stand behind the words `before`.
    fn candidates(&self, before: &[&str]) -> Vec<Cow<'static, str>> {
        // A command may begin behind the brace of a repeat.
        let begin = before.iter().rposition(|word| matches!(*word, "{" | "}")).map_or(0, |brace| brace + 1);
        let before = &before[begin..];
        let Some(first) = before.first() else {
            let own = OWN.iter().map(|(word, _)| *word).chain(["repeat"]);
            return VERBS.iter().map(|verb| verb.word).chain(own).map(Cow::from).collect();
        };
        let Some(verb) = VERBS.iter().find(|verb| verb.word == *first) else { return Vec::new() };
        let words =
            verb.usage.split(|c: char| !c.is_ascii_lowercase() && c != '-').filter(|word| word.len() > 1);
        let mut words: Vec<_> = words.filter(|word| *word != verb.word).map(Cow::from).collect();
        let wants = |placeholder| verb.usage.contains(placeholder) && before.len() == 1;
        if wants("METRIC") {
            words.extend(Metric::spellings().into_iter().map(Cow::from));
        }
        // Behind `as` stands a new name.
        if wants("NAME") && !verb.usage.contains(" as NAME") {
            words.extend(self.names.iter().map(|name| Cow::from(name.to_string())));
        }
        words
    }
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, place: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let left = &line[..place];
        let start = left.rfind(char::is_whitespace).map_or(0, |space| space + 1);
        let before: Vec<_> = left[..start].split_whitespace().collect();
        let mut fitting = self.candidates(&before);
        fitting.retain(|word| word.starts_with(&left[start..]));
        fitting.sort();
        fitting.dedup();
        let pair = |word: Cow<'_, str>| Pair { replacement: format!("{word} "), display: word.into_owned() };
        Ok((start, fitting.into_iter().map(pair).collect()))
    }
}

impl Helper for Words {}
impl Highlighter for Words {}
impl Validator for Words {}

impl Hinter for Words {
    type Hint = String;
}

#[cfg(test)]
mod tests {
    use rustyline::Context;
    use rustyline::completion::Completer;
    use rustyline::history::MemHistory;

    use super::{Name, Words};

    fn completed(line: &str) -> Vec<String> {
        let words = Words { names: ["data", "other"].map(|name| Name::new(name).unwrap()).into() };
        let (_, pairs) = words.complete(line, line.len(), &Context::new(&MemHistory::new())).unwrap();
        pairs.into_iter().map(|pair| pair.display).collect()
    }

    #[test]
    fn words_are_completed_by_their_place() {
        assert_eq!(completed("res"), ["reset", "resize"]);
        assert_eq!(completed("repeat 3 { plu"), ["plug"]);
        assert_eq!(completed("verify d"), ["data"]);
        assert_eq!(completed("release "), ["data", "other"]);
        assert_eq!(completed("hog 1M mo"), ["movable"]);
        assert_eq!(completed("hog 1M movable as d"), Vec::<String>::new(), "a new name");
        assert_eq!(completed("expect plu"), ["plugged"]);
        assert_eq!(completed("expect zone.Movable.fr"), ["zone.Movable.free"]);
        assert_eq!(completed("resize 1G wi"), ["within"]);
        assert_eq!(completed("nonsense "), Vec::<String>::new());
    }
}
