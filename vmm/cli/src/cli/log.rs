//! `--log-level` and `--log-file`, which every subcommand has.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use log::LevelFilter;

/// What is logged, and where.
#[derive(Debug, Args)]
pub struct Logging {
    /// What is logged, at most; without it the level that the variable TIDEVM_LOG names, or warn
    #[arg(long, global = true, value_name = "LEVEL", ignore_case = true, value_parser = level(), help_heading = "Log")]
    pub log_level: Option<LevelFilter>,
    /// A file or named pipe to whose end the log goes, instead of standard error
    #[arg(long, global = true, value_name = "PATH", help_heading = "Log")]
    pub log_file: Option<PathBuf>,
}

fn level() -> impl TypedValueParser<Value = LevelFilter> {
    let levels = LevelFilter::iter().map(|level| level.as_str().to_ascii_lowercase());
    PossibleValuesParser::new(levels)
        .try_map(|text| text.parse::<LevelFilter>().map_err(|error| error.to_string()))
}
