//! The options of `tidevm check-host`.

use clap::Args;

/// `tidevm check-host`.
#[derive(Debug, Args)]
pub struct CheckHost {
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
}
