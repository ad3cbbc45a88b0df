//! The command line: a file per subcommand, whose options become a [`Config`](tidevm_machine::Config) and the name of the session's script.
//!
//! Only syntax is checked here. `Config::validate` refuses a VM that cannot be built.

use clap::{Parser, Subcommand};

pub use ctl::Ctl;
pub use demo::Demo;
pub use experiment::Experiment;
pub use run::Run;
pub use script::ScriptAction;
pub use spawn::Spawn;

mod confine;
mod ctl;
mod demo;
mod experiment;
mod run;
mod script;
mod spawn;
mod values;

/// A microVM whose memory rises and falls.
#[derive(Debug, Parser)]
#[command(name = "tidevm", version, arg_required_else_help = true, after_help = STATUSES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Option<Action>,
    /// What to do without a subcommand.
    #[command(flatten)]
    pub spawn: Spawn,
}

const STATUSES: &str = "\
Exit status:
  0  the session did what it asked
  1  an expectation failed, a resize was refused, blocked or too late, or an experiment did not
     show what it should
  2  bad usage, configuration or script
  3  the host cannot run it, or refuses what it needs to go on
  4  the guest died, or reset the machine under --no-reboot
  128 + N  a script was ended by signal N
  159  a thread made a system call that it has no use for: a fault of tidevm, or an attack";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Boot, grow, use, shrink under use, verify, power off
    Demo(Demo),
    /// Run a machine, with a script or until it is ended
    Run(Box<Run>),
    /// Resize, watch or end a running machine
    Ctl(Ctl),
    /// Show what a mechanism prevents: the guest with it off and on, side by side
    Experiment(Experiment),
    /// Work with scripts, without a machine
    Script {
        /// What to do with one.
        #[command(subcommand)]
        action: ScriptAction,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }
}
