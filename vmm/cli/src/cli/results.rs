//! The options of `tidevm run` for CI: results that programs read, and what counts as a failure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::values::duration;

/// `-` as the name of a file: standard output.
const STDOUT: &str = "-";

/// What CI wants of a session.
#[derive(Debug, Args)]
pub struct Results {
    /// Where to write the results as JUnit's XML: a test case for each named step, and for each command without a name
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// The same results as TAP, on standard output in place of the table, or in a file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    pub tap: Option<PathBuf>,
    /// A folder for console.log, session.jsonl and session.html; it is made if need be
    #[arg(long, value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
    /// How long the session may take, with its boot: then it ends with status 124
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Go on when the guest's kernel tells of its own trouble on the console: an oops, a warning, a stall, a panic
    #[arg(long)]
    pub allow_warnings: bool,
}

impl Results {
    /// Whether TAP is written to standard output.
    pub fn take_stdout(&self) -> bool {
        self.tap.as_deref() == Some(Path::new(STDOUT))
    }

    /// The file of the guest's console among the artifacts.
    pub fn console(&self) -> Option<PathBuf> {
        Some(self.artifacts.as_ref()?.join("console.log"))
    }
}
