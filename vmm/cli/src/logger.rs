//! Prints warnings and errors of tidevm's own crates on stderr. Warnings of other crates are dropped: the guest
//! can cause them, for instance by a wrong queue, and could fill the terminal.

use std::io::{self, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};
use tidevm_machine::printable;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn && metadata.target().starts_with("tidevm")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = printable(record.args().to_string().as_bytes());
            // A closed terminal must not cause a panic.
            drop(writeln!(io::stderr(), "tidevm: {text}"));
        }
    }

    fn flush(&self) {}
}

/// Prints warnings from now on.
pub fn start() {
    // This fails only if a logger was set before. Then that one stays.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
