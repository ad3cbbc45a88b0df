//! The options of `tidevm report`.

use std::path::PathBuf;

use clap::Args;

/// `tidevm report`.
#[derive(Debug, Args)]
pub struct ReportPage {
    /// What `tidevm run --json` wrote; - for standard input
    pub session: PathBuf,
    /// Where to write the page; without it to standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}
