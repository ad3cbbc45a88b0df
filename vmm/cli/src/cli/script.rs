//! The subcommands of `tidevm script`.

use std::path::PathBuf;

use clap::Subcommand;

/// `tidevm script`.
#[derive(Debug, Subcommand)]
pub enum ScriptAction {
    /// Parse a script and report every error with its line and column
    Check {
        /// The script, - for standard input
        file: PathBuf,
    },
}
