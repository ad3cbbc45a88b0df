//! Where a command shows something: JSON lines, plain lines, or one line that is written anew on a terminal.
//!
//! Invariant: what a guest or the API says cannot command the terminal.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidevm_abi::Size;
use tidevm_machine::printable;

/// Narrowest bar that is drawn.
const MIN_BAR: usize = 8;

/// Widest bar.
const MAX_BAR: usize = 40;

/// Least time between two plain lines about progress.
const LINE_PERIOD: Duration = Duration::from_secs(1);

/// A way to show something.
pub struct Screen<W> {
    out: W,
    json: bool,
    /// The columns of the terminal, if it is one.
    width: Option<usize>,
    /// A bar is on the last line.
    drawn: bool,
    last_line: Option<Instant>,
}

/// How far a resize is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What was plugged at first.
    pub from: Size,
    /// What is plugged.
    pub plugged: Size,
    /// What shall be plugged.
    pub target: Size,
}

impl<W: Write> Screen<W> {
    /// Shows on `out`: JSON, or text. `width`: `out` is a terminal of so many columns.
    pub fn new(out: W, json: bool, width: Option<usize>) -> Self {
        Self { out, json, width, drawn: false, last_line: None }
    }

    /// Whether programs read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether progress is a line that is written anew.
    pub fn is_terminal(&self) -> bool {
        self.width.is_some()
    }

    /// A JSON value on a line.
    pub fn json(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.out, "{value}")?;
        self.out.flush()
    }

    /// Lines of text.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        self.end_bar()?;
        for line in text.lines() {
            writeln!(self.out, "{}", printable(line.as_bytes()))?;
        }
        self.out.flush()
    }

    /// Shows progress: a bar on a terminal, and a line now and then elsewhere.
    pub fn progress(&mut self, progress: Progress) -> io::Result<()> {
        let Some(width) = self.width else {
            let now = Instant::now();
            if self.last_line.is_some_and(|last| now - last < LINE_PERIOD) {
                return Ok(());
            }
            self.last_line = Some(now);
            return self.text(&progress.text());
        };
        // To the begin of the line, the new text, and nothing of the old text behind it.
        write!(self.out, "\r{}\x1b[K", progress.bar(width))?;
        self.drawn = true;
        self.out.flush()
    }

    /// Leaves the line of a bar.
    pub fn end_bar(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.drawn) { writeln!(self.out) } else { Ok(()) }
    }
}

#[cfg(test)]
impl Screen<Vec<u8>> {
    /// What was shown.
    pub fn into_text(self) -> String {
        String::from_utf8(self.out).expect("text")
    }
}

impl Progress {
    fn text(self) -> String {
        format!("{} of {}", self.plugged, self.target)
    }

    /// A line of at most `width - 1` columns: in the last one, some terminals begin the next line.
    fn bar(self, width: usize) -> String {
        let text = self.text();
        let room = width.saturating_sub(text.len() + 4).min(MAX_BAR);
        if room < MIN_BAR {
            return text.chars().take(width.saturating_sub(1)).collect();
        }
        let whole = self.target.0.abs_diff(self.from.0);
        let left = self.target.0.abs_diff(self.plugged.0).min(whole);
        let filled = match whole {
            0 => room,
            _ => usize::try_from(u128::from(whole - left) * room as u128 / u128::from(whole)).unwrap_or(room),
        };
        format!("[{}{}] {text}", "#".repeat(filled), ".".repeat(room - filled))
    }
}

#[cfg(test)]
mod tests {
    use super::{Progress, Screen};
    use tidevm_abi::Size;

    fn progress(from: u64, plugged: u64, target: u64) -> Progress {
        Progress { from: Size::mib(from), plugged: Size::mib(plugged), target: Size::mib(target) }
    }

    #[test]
    fn a_bar_fits_its_terminal_and_its_resize() {
        assert_eq!(progress(0, 256, 1024).bar(24), "[##........] 256M of 1G");
        assert_eq!(progress(1024, 256, 0).bar(24), "[########...] 256M of 0");
        assert_eq!(progress(0, 1024, 1024).bar(20), "[########] 1G of 1G");
        assert_eq!(progress(512, 512, 512).bar(27), "[###########] 512M of 512M");
        assert_eq!(progress(512, 0, 1024).bar(20), "[.........] 0 of 1G", "farther away than at first");
        assert_eq!(progress(0, 256, 1024).bar(8), "256M of");
        assert_eq!(progress(0, u64::MAX >> 20, u64::MAX >> 20).bar(0), "");
        for width in 0..100 {
            assert!(progress(0, 256, 1024).bar(width).len() <= width.saturating_sub(1), "{width}");
        }
    }

    #[test]
    fn a_terminal_has_one_line_and_a_file_plain_lines() {
        let show = |width| {
            let mut screen = Screen::new(Vec::new(), false, width);
            screen.progress(progress(0, 256, 1024)).unwrap();
            screen.progress(progress(0, 512, 1024)).unwrap();
            screen.text("done\x1b[2J").unwrap();
            String::from_utf8(screen.out).unwrap()
        };
        let terminal = show(Some(24));
        assert_eq!(terminal.matches('\r').count(), 2);
        assert!(terminal.contains("[#####.....] 512M of 1G\x1b[K\ndone"), "{terminal:?}");
        let file = show(None);
        assert!(file.starts_with("256M of 1G\ndone"), "not more than a line per second: {file:?}");
        assert!(!file.contains('\x1b'), "{file:?}");
    }
}
