//! The options of `tidevm demo`, and its machine.

use clap::Args;
use tidevm_machine::{Config, ConsoleMode, HotplugConfig, Size};

use super::confine::{Filter, confinement};

/// `tidevm demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// At a system call that a thread has no use for: nothing, let the kernel log it, or end with a report (status 159)
    #[arg(long, value_name = "off|log|on", value_enum, hide_possible_values = true, default_value_t = Filter::On)]
    seccomp: Filter,
}

impl Demo {
    /// The VM of `tidevm demo`.
    pub fn config(&self) -> Config {
        Config {
            cpus: 2,
            memory: Size::mib(256),
            hotplug: vec![HotplugConfig::new(Size::gib(8))],
            console: ConsoleMode::Off,
            confinement: confinement(self.seccomp),
            ..Config::default()
        }
    }
}
