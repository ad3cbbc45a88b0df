//! The commands of `tidevm ctl`. Those that scripts know are parsed by the grammar of scripts.

use std::fmt;
use std::path::PathBuf;

use tidevm_abi::Command;
use tidevm_abi::command::{Resize, Verb};
use tidevm_sizer::Wish as Sizes;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// `resize`, `plug`, `unplug`.
    Resize(Resize),
    /// The memory of the machine now.
    Status,
    /// The same, and what changes.
    Watch,
    /// The guest's counters.
    Stats,
    /// The API's events.
    Events,
    /// The guest stands still.
    Pause,
    /// The guest runs on.
    Resume,
    /// The guest powers off.
    Stop,
    /// The machine goes to this file.
    Save(PathBuf),
    /// The machine is sized by what its guest uses.
    Auto(Auto),
}

/// `auto`: what about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto {
    /// How the machine is sized.
    Show,
    /// Within these bounds, from now on.
    Within(Sizes),
    /// Not any more.
    Off,
    /// The present size stays.
    Hold,
    /// It stays no longer.
    Release,
}

/// The words of `auto` that are no bounds.
const AUTO: &[(&str, Auto)] = &[("off", Auto::Off), ("hold", Auto::Hold), ("release", Auto::Release)];

/// The commands that scripts do not know, or that take nothing.
const WORDS: &[(&str, Wish)] = &[
    ("status", Wish::Status),
    ("watch", Wish::Watch),
    ("events", Wish::Events),
    ("pause", Wish::Pause),
    ("resume", Wish::Resume),
    ("stop", Wish::Stop),
];

/// All commands, for messages.
const ALL: &str = "resize, plug, unplug, stats, status, watch, events, pause, resume, stop, save, auto";

impl Wish {
    /// Reads a command.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let line = words.join(" ");
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((word, wish)) = WORDS.iter().find(|(word, _)| *word == first) {
            return if line.trim() == *word {
                Ok(wish.clone())
            } else {
                Err(format!("`{line}`: {word} takes nothing"))
            };
        }
        if first == "save" {
            return match words {
                [_, file] => Ok(Self::Save(PathBuf::from(file))),
                _ => Err(format!("`{line}`: save takes the path of a file")),
            };
        }
        if first == "auto" {
            return auto(&line).map(Self::Auto).map_err(|error| format!("`{line}`: {error}"));
        }
        if Verb::new(first).is_none() {
            return Err(format!("`{first}` is no command; the commands are: {ALL}"));
        }
        match line.parse::<Command>() {
            Ok(Command::Resize(resize)) => Ok(Self::Resize(resize)),
            Ok(Command::Stats) => Ok(Self::Stats),
            Ok(_) => Err(format!("`{first}` is a command of scripts alone; the commands are: {ALL}")),
            Err(error) => Err(format!("`{line}`, character {}: {error}", error.column)),
        }
    }
}

/// Reads the words of `auto`.
fn auto(line: &str) -> Result<Auto, String> {
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    match words[..] {
        [] => Ok(Auto::Show),
        [word] if !word.contains('=') => {
            AUTO.iter().find(|(known, _)| *known == word).map(|(_, auto)| *auto).ok_or_else(|| {
                "auto takes min=SIZE,max=SIZE[,headroom=10%], hold, release, off, or nothing".to_owned()
            })
        }
        [sizes] => sizes.parse().map(Auto::Within),
        _ => Err("auto takes one word".to_owned()),
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resize(resize) => resize.fmt(f),
            Self::Stats => f.write_str("stats"),
            Self::Save(file) => write!(f, "save {}", file.display()),
            Self::Auto(Auto::Show) => f.write_str("auto"),
            Self::Auto(Auto::Within(sizes)) => write!(f, "auto {sizes}"),
            Self::Auto(auto) => {
                let word = AUTO.iter().find(|(_, other)| other == auto).map_or("?", |(word, _)| word);
                write!(f, "auto {word}")
            }
            wish => f.write_str(WORDS.iter().find(|(_, other)| other == wish).map_or("?", |(word, _)| word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Wish;

    fn parse(line: &str) -> Result<Wish, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Wish::parse(&words)
    }

    #[test]
    fn each_command_prints_as_it_is_read() {
        let lines = [
            "resize 2G device 1 within 10s",
            "plug 512M",
            "unplug 2M within 500ms",
            "save a/b",
            "auto min=256M,max=8G,headroom=10%",
            "auto hold",
            "auto release",
            "auto off",
        ];
        let words =
            super::ALL.split(", ").filter(|word| !["resize", "plug", "unplug", "save"].contains(word));
        for line in lines.into_iter().chain(words) {
            assert_eq!(parse(line).unwrap_or_else(|error| panic!("{error}")).to_string(), line);
        }
        // A shell may pass the command as one word.
        assert_eq!(Wish::parse(&["resize 2G device 1".to_owned()]), parse("resize 2G device 1"));
    }

    #[test]
    fn what_is_no_command_is_told() {
        for (line, part) in [
            ("", "is no command"),
            ("grow 2G", "`grow` is no command; the commands are: resize"),
            ("hog 2M movable as a", "of scripts alone"),
            ("resize größe", "character 8: expected a size such as 2G"),
            ("resize 2G 3G", "expected the end of the line"),
            ("pause now", "pause takes nothing"),
            ("save", "save takes the path"),
            ("auto on", "auto takes min=SIZE,max=SIZE[,headroom=10%], hold, release, off, or nothing"),
            ("auto min=256M", "max=SIZE is missing"),
            ("auto off now", "auto takes one word"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
