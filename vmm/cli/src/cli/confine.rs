//! `--seccomp`, which several subcommands have.

use clap::ValueEnum;
use tidevm_machine::{Confinement, Seccomp};

/// `--seccomp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Filter {
    Off,
    Log,
    On,
}

/// Everything is given away, system calls as `filter` says.
pub(super) fn confinement(filter: Filter) -> Confinement {
    let seccomp = match filter {
        Filter::Off => Seccomp::Off,
        Filter::Log => Seccomp::Log,
        Filter::On => Seccomp::On,
    };
    Confinement { seccomp, ..Confinement::STRICT }
}
