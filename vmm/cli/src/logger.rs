//! Prints warnings and errors of tidevm's own crates on stderr. Warnings of other crates are dropped: the guest
//! can cause them, for instance by a wrong queue, and could fill the terminal.
//!
//! The guest can cause some of tidevm's own warnings too, again and again while the host refuses something. So
//! the number of lines in a time is limited; lines that are left out are counted.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use tidevm_machine::printable;

/// Most lines in one [`PERIOD`].
const MAX_LINES: u32 = 50;

const PERIOD: Duration = Duration::from_secs(60);

struct Stderr(Mutex<Budget>);

static STDERR: Stderr = Stderr(Mutex::new(Budget { since: None, lines: 0, left_out: 0 }));

/// The lines of the current period.
struct Budget {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

/// What to do with a line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// Print it, after a line on those that were left out before, if there are any.
    Print {
        left_out: u64,
    },
    LeaveOut,
}

impl Budget {
    fn line(&mut self, now: Instant) -> Line {
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= MAX_LINES {
            self.left_out += 1;
            return Line::LeaveOut;
        }
        self.lines += 1;
        Line::Print { left_out: std::mem::take(&mut self.left_out) }
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info && metadata.target().starts_with("tidevm")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner).line(Instant::now());
        let Line::Print { left_out } = line else { return };
        // A closed terminal must not cause a panic.
        if left_out > 0 {
            drop(writeln!(io::stderr(), "tidevm: {left_out} more warnings were left out"));
        }
        let text = printable(record.args().to_string().as_bytes());
        drop(writeln!(io::stderr(), "tidevm: {text}"));
    }

    fn flush(&self) {}
}

/// Prints messages of tidevm's own crates too that are no warnings.
pub fn tell_all() {
    log::set_max_level(LevelFilter::Info);
}

/// Prints warnings from now on.
pub fn start() {
    // This fails only if a logger was set before. Then that one stays.
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Budget, Line, MAX_LINES, PERIOD};

    #[test]
    fn warnings_without_end_are_counted_and_not_shown() {
        let (mut budget, start) = (Budget { since: None, lines: 0, left_out: 0 }, Instant::now());
        let shown = (0..1000).filter(|_| budget.line(start) != Line::LeaveOut).count();
        assert_eq!(shown, MAX_LINES as usize);
        assert_eq!(budget.line(start + PERIOD), Line::Print { left_out: 1000 - u64::from(MAX_LINES) });
        assert_eq!(budget.line(start + PERIOD), Line::Print { left_out: 0 });
    }
}
