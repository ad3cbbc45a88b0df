//! The options of `tidevm completions` and `tidevm man`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `tidevm completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell that will read them
    #[arg(value_enum)]
    pub shell: Shell,
}

/// A shell that completes command lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// fish.
    Fish,
}

/// `tidevm man`.
#[derive(Debug, Args)]
pub struct ManPages {
    /// A folder for the pages of all subcommands; without it the page of tidevm is printed
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
}
