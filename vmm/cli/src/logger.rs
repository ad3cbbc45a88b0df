//! Prints what tidevm's own crates log, on stderr or in a file. What other crates log is dropped: the guest can cause
//! it, for instance by a wrong queue, and could fill the terminal.
//!
//! The level is that of `--log-level`, of the variable [`VARIABLE`], or `warn`. `PUT /logger` of Firecracker's API
//! changes it later, and the file too.
//!
//! The guest can cause some of tidevm's own messages too, again and again while the host refuses something. So
//! the number of lines in a time is limited; lines that are left out are counted.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use tidevm_abi::{Counted, either};
use tidevm_machine::printable;

/// Most lines in one [`PERIOD`].
const MAX_LINES: u32 = 50;

const PERIOD: Duration = Duration::from_secs(60);

struct Logger {
    budget: Mutex<Budget>,
    /// Prints one line.
    print: fn(&str),
}

static STDERR: Logger = Logger {
    budget: Mutex::new(Budget::NEW),
    // A closed terminal must not cause a panic, and neither must a full disk.
    print: |line| match FILE.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        Some(file) => drop(file.write_all(format!("tidevm: {line}\n").as_bytes())),
        None => drop(writeln!(io::stderr(), "tidevm: {line}")),
    },
};

/// The variable of the environment that names a level.
const VARIABLE: &str = "TIDEVM_LOG";

/// The level when none was asked for.
const DEFAULT: LevelFilter = LevelFilter::Warn;

/// A level was asked for at the start.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Where lines go instead of stderr.
static FILE: Mutex<Option<File>> = Mutex::new(None);

/// Has lines go to `file` from now on, if there is one, and has lines from `level` on printed, if it is given.
pub fn redirect(file: Option<File>, level: Option<tidevm_api::body::Level>) {
    use tidevm_api::body::Level;
    lead_to(file);
    let filter = level.map(|level| match level {
        Level::Off => LevelFilter::Off,
        Level::Trace => LevelFilter::Trace,
        Level::Debug => LevelFilter::Debug,
        Level::Info => LevelFilter::Info,
        Level::Warn => LevelFilter::Warn,
        Level::Error => LevelFilter::Error,
    });
    if let Some(filter) = filter {
        log::set_max_level(filter);
    }
}

fn lead_to(file: Option<File>) {
    if file.is_some() {
        *FILE.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }
}

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
    const NEW: Self = Self { since: None, lines: 0, left_out: 0 };

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

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tidevm")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = self.budget.lock().unwrap_or_else(PoisonError::into_inner).line(Instant::now());
        let Line::Print { left_out } = line else { return };
        if left_out > 0 {
            let were = either(left_out, "was", "were");
            (self.print)(&format!("{} {were} left out", Counted(left_out, "more message")));
        }
        (self.print)(&printable(record.args().to_string().as_bytes()));
    }

    fn flush(&self) {}
}

/// Prints messages too that are no warnings, unless a level was asked for.
pub fn tell_more() {
    if !ASKED.load(Ordering::Relaxed) {
        log::set_max_level(LevelFilter::Info);
    }
}

/// The level that the environment asks for, if it does.
///
/// # Errors
/// What is wrong with it.
pub fn level_of_environment() -> Result<Option<LevelFilter>, String> {
    let text = env::var_os(VARIABLE).unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let text = text.to_string_lossy();
    let levels = || LevelFilter::iter().map(|level| level.as_str().to_ascii_lowercase()).collect::<Vec<_>>();
    let wrong =
        |_| format!("{VARIABLE}={text} in the environment is no level: it can be {}", levels().join(", "));
    text.parse().map(Some).map_err(wrong)
}

/// Prints messages up to `level` from now on, into `file` if there is one.
pub fn start(level: Option<LevelFilter>, file: Option<File>) {
    // This fails only if a logger was set before. Then that one stays.
    if log::set_logger(&STDERR).is_ok() {
        ASKED.store(level.is_some(), Ordering::Relaxed);
        lead_to(file);
        log::set_max_level(level.unwrap_or(DEFAULT));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    use log::{Level, Log, Record};

    use super::{Budget, Line, Logger, MAX_LINES, PERIOD};

    thread_local! {
        static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    fn logger() -> Logger {
        let print = |line: &str| LINES.with_borrow_mut(|lines| lines.push(line.to_owned()));
        Logger { budget: Mutex::new(Budget::NEW), print }
    }

    /// Logs one line, and returns the lines that are printed for it.
    fn lines(logger: &Logger, level: Level, target: &str, text: &str) -> Vec<String> {
        logger.log(&Record::builder().level(level).target(target).args(format_args!("{text}")).build());
        LINES.take()
    }

    #[test]
    fn warnings_without_end_are_counted_and_not_shown() {
        let (mut budget, start) = (Budget::NEW, Instant::now());
        let shown = (0..1000).filter(|_| budget.line(start) != Line::LeaveOut).count();
        assert_eq!(shown, MAX_LINES as usize);
        assert_eq!(budget.line(start + PERIOD - Duration::from_nanos(1)), Line::LeaveOut);
        assert_eq!(budget.line(start + PERIOD), Line::Print { left_out: 1001 - u64::from(MAX_LINES) });
        assert_eq!(budget.line(start + PERIOD), Line::Print { left_out: 0 });
    }

    #[test]
    fn a_guest_that_causes_warnings_without_end_fills_no_terminal() {
        let logger = logger();
        let warn = |text: &str| lines(&logger, Level::Warn, "tidevm_machine::memory", text);
        let shown: usize = (0..1000).map(|_| warn("again").len()).sum();
        assert_eq!(shown, MAX_LINES as usize);
        // As if the period were over.
        logger.budget.lock().unwrap().since = None;
        let left_out = 1000 - MAX_LINES;
        assert_eq!(warn("later"), [format!("{left_out} more messages were left out"), "later".to_owned()]);
        assert_eq!(warn("\x1b[2Jmine"), ["\\u{1b}[2Jmine"]);
    }

    #[test]
    fn lines_that_are_not_printed_take_nothing_from_those_that_are() {
        let logger = logger();
        for _ in 0..1000 {
            assert!(lines(&logger, Level::Warn, "virtio_queue", "a wrong queue").is_empty());
        }
        assert_eq!(lines(&logger, Level::Error, "tidevm_machine", "an error"), ["an error"]);
    }
}
