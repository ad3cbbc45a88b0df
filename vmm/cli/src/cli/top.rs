//! The options of `tidevm top`.

use std::path::PathBuf;

use clap::Args;

/// `tidevm top`.
#[derive(Debug, Args)]
pub struct Top {
    /// The socket of the machine's API
    #[arg(long, value_name = "PATH")]
    pub api_sock: PathBuf,
}
