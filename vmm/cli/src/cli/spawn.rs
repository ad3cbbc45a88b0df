//! The options of `tidevm` without a subcommand: Firecracker's own form.

use std::path::PathBuf;

use clap::Args;
use tidevm_api::body::{Level, LoggerConfig, MetricsConfig};
use tidevm_machine::{Config, ConsoleMode};

use super::confine::{Filter, confinement};
use super::values::{DEFAULT_ID, id};

/// `tidevm` without a subcommand: Firecracker's form.
#[derive(Debug, Args)]
pub struct Spawn {
    /// Firecracker's form: a socket for its API, by which a machine is configured and started
    #[arg(long, value_name = "PATH", required_unless_present = "no_api")]
    pub api_sock: Option<PathBuf>,
    /// The name of the machine: letters, digits and hyphens, at most 64
    #[arg(long, value_name = "ID", default_value = DEFAULT_ID, value_parser = id)]
    pub id: String,
    /// A machine in Firecracker's JSON, which starts at once
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// No socket
    #[arg(long, requires = "config_file", conflicts_with = "api_sock")]
    pub no_api: bool,
    /// At a system call that a thread has no use for: nothing, let the kernel log it, or end with a report (status 159)
    #[arg(long, value_name = "off|log|on", value_enum, hide_possible_values = true, default_value_t = Filter::On)]
    seccomp: Filter,
    /// The same as --seccomp off, as Firecracker spells it
    #[arg(long, conflicts_with = "seccomp")]
    no_seccomp: bool,
    /// Firecracker's word for --log-file
    #[arg(long, value_name = "FILE", conflicts_with = "log_file")]
    log_path: Option<PathBuf>,
    /// Firecracker's word for --log-level
    #[arg(long, value_name = "LEVEL", value_parser = str::parse::<Level>, conflicts_with = "log_level")]
    level: Option<Level>,
    // The three below are accepted and change nothing, as in PUT /logger.
    #[arg(long, hide = true)]
    show_level: bool,
    #[arg(long, hide = true)]
    show_log_origin: bool,
    #[arg(long, hide = true)]
    module: Option<String>,
    /// A file for metrics: a line of JSON a minute, and when a client asks for it
    #[arg(long, value_name = "FILE", conflicts_with = "no_api")]
    metrics_path: Option<PathBuf>,
}

impl Spawn {
    /// What Firecracker's interface does not say about a machine.
    pub fn base(&self) -> Config {
        let filter = if self.no_seccomp { Filter::Off } else { self.seccomp };
        Config { console: ConsoleMode::Stdio, confinement: confinement(filter), ..Config::default() }
    }

    /// Where the log goes, if Firecracker's options say so.
    pub fn logger(&self) -> Option<LoggerConfig> {
        let said = LoggerConfig {
            log_path: self.log_path.clone(),
            level: self.level,
            show_level: self.show_level.then_some(true),
            show_log_origin: self.show_log_origin.then_some(true),
            module: self.module.clone(),
        };
        (said != LoggerConfig::default()).then_some(said)
    }

    /// Where metrics go, if the options say so.
    pub fn metrics(&self) -> Option<MetricsConfig> {
        let metrics_path = self.metrics_path.clone()?;
        Some(MetricsConfig { metrics_path, emit_id: false, properties: None })
    }
}
