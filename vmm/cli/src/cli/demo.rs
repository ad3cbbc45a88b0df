//! The options of `tidevm demo`, and its machine.

use clap::Args;
use tidevm_machine::{Config, ConsoleMode, HotplugConfig, Size};

use super::confine::{Filter, confinement};
use super::values::size;

/// `tidevm demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// vCPUs
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u8,
    /// Boot memory; the demo has 128M of pages in it at its end
    #[arg(long, value_name = "SIZE", default_value_t = Size::mib(256), value_parser = size)]
    memory: Size,
    /// One JSON object per line on standard output
    #[arg(long)]
    pub json: bool,
    /// At a system call that a thread has no use for: nothing, let the kernel log it, or end with a report (status 159)
    #[arg(long, value_name = "off|log|on", value_enum, hide_possible_values = true, default_value_t = Filter::On)]
    seccomp: Filter,
}

impl Demo {
    /// The VM of `tidevm demo`.
    pub fn config(&self) -> Config {
        Config {
            cpus: self.cpus,
            memory: self.memory,
            hotplug: vec![HotplugConfig::new(Size::gib(8))],
            console: ConsoleMode::Off,
            confinement: confinement(self.seccomp),
            ..Config::default()
        }
    }
}
