//! The command line: a file per subcommand, whose options become a [`Config`](tidevm_machine::Config) and the name of the session's script.
//!
//! Only syntax is checked here. `Config::validate` refuses a VM that cannot be built.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use check_host::CheckHost;
pub use ctl::Ctl;
pub use demo::Demo;
pub use experiment::Experiment;
pub use judge::{Judge, Vmm as JudgedVmm};
pub use later::Later;
pub use log::Logging;
pub use pages::{Completions, ManPages, Shell};
pub use report::ReportPage;
pub use run::Run;
pub use script::{ScriptAction, Scripts};
pub use spawn::Spawn;
pub use top::Top;

mod check_host;
mod confine;
mod ctl;
mod demo;
mod experiment;
mod judge;
mod later;
mod log;
mod pages;
mod report;
mod results;
mod run;
mod script;
mod spawn;
mod top;
mod values;

/// A microVM whose memory rises and falls.
#[derive(Debug, Parser)]
#[command(name = "tidevm", version = VERSION, arg_required_else_help = true, after_help = STATUSES)]
#[command(subcommand_negates_reqs = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Option<Action>,
    /// What to do without a subcommand.
    #[command(flatten)]
    pub spawn: Spawn,
    /// What is logged.
    #[command(flatten)]
    pub logging: Logging,
}

/// The version and the commit, as `build.rs` found them.
const VERSION: &str = env!("TIDEVM_VERSION");

impl Cli {
    /// Reads the command line of this process. Ends the process if it is wrong, or if it asks for help or for the version.
    pub fn read() -> Self {
        Self::of(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn of<W: Into<OsString> + Clone>(words: impl IntoIterator<Item = W>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(words)?;
        match misplaced(&command, &matches) {
            Some(message) => Err(command.error(ErrorKind::ArgumentConflict, message)),
            None => Self::from_arg_matches(&matches),
        }
    }
}

/// What is wrong with an option of Firecracker's form beside a subcommand.
fn misplaced(command: &Command, matches: &ArgMatches) -> Option<String> {
    let name = matches.subcommand_name()?;
    let spawn = Spawn::augment_args(Command::new(""));
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let option = spawn.get_arguments().find(|option| given(option.get_id().as_str()))?.get_long()?;
    let known =
        |subcommand: &Command| subcommand.get_arguments().any(|inner| inner.get_long() == Some(option));
    let remedy = match command.find_subcommand(name).is_some_and(known) {
        true => format!("write `tidevm {name} --{option}`"),
        false => format!("`tidevm {name}` has no such option; leave it or `{name}` out"),
    };
    Some(format!("--{option} before `{name}` is an option of tidevm without a subcommand: {remedy}"))
}

const STATUSES: &str = "\
Exit status:
  0  the session did what it asked
  1  an expectation failed, a resize was refused, blocked or too late, an experiment did not
     show what it should, or a device that was judged breaks a rule
  2  bad usage, configuration or script
  3  the host cannot run it, or refuses what it needs to go on
  4  the guest died, its kernel panicked, or it reset the machine under --no-reboot
  124  the session took longer than --timeout
  128 + N  a script was ended by signal N
  159  a thread made a system call that it has no use for: a fault of tidevm, or an attack";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Boot, grow, use, shrink under use, verify, power off
    Demo(Later<Demo>),
    /// Run a machine, with a script or until it is ended
    Run(Later<Box<Run>>),
    /// Resize, watch or end a running machine
    Ctl(Later<Ctl>),
    /// Show the memory of a running machine, live in this terminal
    Top(Later<Top>),
    /// Show a session as a page: memory over time, memory blocks, how long steps took, and the steps
    Report(Later<ReportPage>),
    /// Show what a mechanism prevents: the guest with it off and on, side by side
    Experiment(Later<Experiment>),
    /// Judge the virtio-mem device of a VMM, rule by rule
    Judge(Later<Judge>),
    /// Work with scripts, without a machine
    Script(Scripts),
    /// Say what this host can do for a machine, and what would help; ends with status 0 or 3
    CheckHost(Later<CheckHost>),
    /// Print the completions of this command line for a shell
    Completions(Later<Completions>),
    /// Print the man page, or write those of all subcommands into a folder
    Man(Later<ManPages>),
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
