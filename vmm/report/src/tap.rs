//! Test cases as TAP, version 13, which kselftest, prove and Meson speak.
//!
//! Invariant: a text of the session is on one line, and is no directive.

use std::fmt::Write;

use crate::cases::{Result, Results};

impl Results {
    /// The text: the plan, and a line per case, with a block of YAML below one that failed.
    #[must_use]
    pub fn tap(&self) -> String {
        let cases = self.told();
        let mut text = format!("TAP version 13\n1..{}\n", cases.len());
        for (number, (name, time, result)) in (1..).zip(&cases) {
            let name = description(name);
            let _ = match result {
                Result::Passed => writeln!(text, "ok {number} - {name}"),
                Result::Skipped => writeln!(text, "ok {number} - {name} # SKIP not reached"),
                Result::Failed(_, all) => {
                    write!(text, "not ok {number} - {name}\n{}", block("fail", *time, all))
                }
                Result::Error(message, all) => {
                    let all = if all.is_empty() { message } else { all };
                    write!(text, "not ok {number} - {name}\n{}", block("error", *time, all))
                }
            };
        }
        text
    }
}

/// What is below a test that failed. A string of JSON is one of YAML.
fn block(severity: &str, time: f64, message: &str) -> String {
    let mut quoted = String::new();
    for c in message.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted += "\\n",
            '\t' => quoted += "\\t",
            c if c.is_control() => quoted.push('\u{fffd}'),
            c => quoted.push(c),
        }
    }
    format!("  ---\n  message: \"{quoted}\"\n  severity: {severity}\n  seconds: {time:.3}\n  ...\n")
}

/// A name behind a number: `#` begins a directive, and a backslash escapes it.
fn description(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        match c {
            '#' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => text.push('\u{fffd}'),
            c => text.push(c),
        }
    }
    text
}
