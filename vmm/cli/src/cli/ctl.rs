//! The options of `tidevm ctl`.

use std::path::PathBuf;

use clap::Args;

/// `tidevm ctl`.
#[derive(Debug, Args)]
#[command(after_help = crate::ctl::COMMANDS)]
pub struct Ctl {
    /// The socket of the machine's API
    #[arg(long, value_name = "PATH")]
    pub api_sock: PathBuf,
    /// One JSON object per line on standard output
    #[arg(long)]
    pub json: bool,
    /// What to do, as in a script
    #[arg(required = true, value_name = "COMMAND")]
    pub words: Vec<String>,
}
