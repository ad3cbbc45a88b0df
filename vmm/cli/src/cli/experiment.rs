//! The options of `tidevm experiment`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;
use tidevm_lab::experiment;
use tidevm_machine::Confinement;

use super::confine::{Filter, confinement};

/// `tidevm experiment`.
#[derive(Debug, Args)]
pub struct Experiment {
    /// Which one, or all of them
    #[arg(value_name = "NAME|all", value_parser = experiments())]
    pub name: String,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Where to write experiments.txt, experiments.json and experiments.html; with `all` the current
    /// directory by default
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// At a system call that a thread has no use for: nothing, let the kernel log it, or end with a report (status 159)
    #[arg(long, value_name = "off|log|on", value_enum, hide_possible_values = true, default_value_t = Filter::On)]
    seccomp: Filter,
}

impl Experiment {
    /// What the process and each session give away.
    pub fn confinement(&self) -> Confinement {
        confinement(self.seccomp)
    }
}

fn experiments() -> PossibleValuesParser {
    PossibleValuesParser::new(experiment::ALL.iter().map(|experiment| experiment.name).chain(["all"]))
}
