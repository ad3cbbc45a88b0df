//! Warnings and errors of the library, on stderr. Only its own: what the crates below it have to
//! say of a queue or a register is in the guest's hands, which could fill the terminal with it.

use std::io::{self, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn && metadata.target().starts_with("tidevm")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // A terminal that hung up is no reason to panic.
            drop(writeln!(io::stderr(), "tidevm: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Lets warnings be seen from here on.
pub fn start() {
    // It fails only where a logger was set before, and then that one is good enough.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
