//! The subcommands of `tidevm script`, and what its help says about commands: the grammar's own table.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tidevm_abi::command::{REPETITION, VERBS};
use tidevm_abi::kernel::KERNELS;
use tidevm_abi::{Kernel, value_of};

/// `tidevm script`.
#[derive(Debug, Args)]
#[command(after_help = commands())]
pub struct Scripts {
    /// What to do with one.
    #[command(subcommand)]
    pub action: ScriptAction,
}

/// What to do with a script.
#[derive(Debug, Subcommand)]
pub enum ScriptAction {
    /// Parse a script and report every error with its line and column
    Check {
        /// The script, - for standard input
        file: PathBuf,
        /// Report steps too that this guest cannot carry out
        #[arg(long, value_name = "tidevm|linux", value_parser = guest, default_value = "tidevm")]
        guest: Kernel,
    },
}

fn guest(text: &str) -> Result<Kernel, String> {
    value_of(KERNELS, text).ok_or_else(|| "the guests are: tidevm, linux".to_owned())
}

/// Each command of a script, and an example of it.
fn commands() -> String {
    let commands = VERBS.iter().map(|verb| [verb.usage, verb.about, verb.example]).chain([REPETITION]);
    let text = commands
        .map(|[usage, about, example]| format!("  {usage}\n      {about}\n      example: {example}\n"));
    let lines: String = text.collect();
    format!("Commands of a script, one on a line; # begins a comment:\n{}", lines.trim_end())
}
