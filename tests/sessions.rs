//! Sessions in a booted guest, on this host's KVM. Sizes are small, because on some hosts a guest kernel runs three
//! instructions per microsecond. In all files, identifiers such as S3.1 are claims of `docs/features.toml`.

#[path = "sessions/auto.rs"]
mod auto;
#[path = "sessions/balloon.rs"]
mod balloon;
#[path = "sessions/blocked.rs"]
mod blocked;
#[path = "sessions/boot_memory.rs"]
mod boot_memory;
#[path = "sessions/boundaries.rs"]
mod boundaries;
#[path = "sessions/contig.rs"]
mod contig;
#[path = "sessions/corrupt.rs"]
mod corrupt;
#[path = "sessions/cycles.rs"]
mod cycles;
#[path = "sessions/driver.rs"]
mod driver;
#[path = "sessions/experiments.rs"]
mod experiments;
#[path = "sessions/idle.rs"]
mod idle;
#[path = "sessions/init.rs"]
mod init;
#[path = "sessions/injection.rs"]
mod injection;
#[path = "sessions/large.rs"]
mod large;
#[path = "sessions/numa.rs"]
mod numa;
#[path = "sessions/pmem.rs"]
mod pmem;
#[path = "sessions/probes.rs"]
mod probes;
#[path = "sessions/resets.rs"]
mod resets;
#[path = "sessions/snapshots.rs"]
mod snapshots;
#[path = "sessions/stacks.rs"]
mod stacks;
#[path = "sessions/switches.rs"]
mod switches;
#[path = "sessions/targets.rs"]
mod targets;
#[path = "sessions/unfit.rs"]
mod unfit;

use std::process::ExitCode;

use tidevm_tests::{missing_kvm, run_if};

fn main() -> ExitCode {
    let groups = [
        auto::TESTS,
        balloon::TESTS,
        blocked::TESTS,
        boot_memory::TESTS,
        boundaries::TESTS,
        contig::TESTS,
        corrupt::TESTS,
        cycles::TESTS,
        driver::TESTS,
        experiments::TESTS,
        idle::TESTS,
        init::TESTS,
        injection::TESTS,
        large::TESTS,
        numa::TESTS,
        pmem::TESTS,
        probes::TESTS,
        resets::TESTS,
        snapshots::TESTS,
        stacks::TESTS,
        switches::TESTS,
        targets::TESTS,
        unfit::TESTS,
    ];
    let no_kvm = missing_kvm();
    run_if(&groups.concat(), |_| no_kvm.clone())
}
