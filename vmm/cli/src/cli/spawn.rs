//! The options of `tidevm` without a subcommand: Firecracker's own form.

use std::path::PathBuf;

use clap::Args;
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
}

impl Spawn {
    /// What Firecracker's interface does not say about a machine.
    pub fn base(&self) -> Config {
        let filter = if self.no_seccomp { Filter::Off } else { self.seccomp };
        Config { console: ConsoleMode::Stdio, confinement: confinement(filter), ..Config::default() }
    }
}
