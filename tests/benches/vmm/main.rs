//! What the VMM itself costs: its start, its file, its memory, and its lock: `cargo bench -p tidevm-tests --bench vmm`.
//!
//! | file | measures |
//! | --- | --- |
//! | `start` | CPU time from `exec` to the first byte that a guest writes |
//! | `guest` | nothing: it is the guest |
//! | `floor` | the same of a program that asks KVM for the same machine and does nothing else: no VMM can be below |
//! | `footprint` | the file without symbols; memory beside the guest's |
//! | `lock` | how long the device is busy with unplugging memory that the guest had touched |
//!
//! Firecracker takes its turns with tidevm if the variable `FIRECRACKER` names its program, or if it is in `PATH`.
//! Figures are medians; the host runs other work, so the ratio says more than either figure.

mod floor;
mod footprint;
mod guest;
mod lock;
mod start;

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use tidevm_bench::table::Table;
use tidevm_tests::missing_kvm;

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(floor::ARGUMENT) {
        floor::run();
        return ExitCode::SUCCESS;
    }
    if let Some(missing) = missing_kvm() {
        println!("nothing is measured: {missing}");
        return ExitCode::SUCCESS;
    }
    let (program, firecracker) = (program(), firecracker());
    if firecracker.is_none() {
        println!("Firecracker is not measured beside it: set FIRECRACKER to its program");
    }
    let mut table = Table::default();
    start::measure(&mut table, &program, firecracker.as_deref());
    footprint::measure(&mut table, &program, firecracker.as_deref());
    lock::measure(&mut table);
    print!("{table}");
    ExitCode::SUCCESS
}

/// The program as it is released, which cargo builds if it is not up to date.
fn program() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--release", "--package", "tidevm", "--message-format=json-render-diagnostics"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
    let output = build.output().expect("cargo runs");
    assert!(output.status.success(), "cargo cannot build tidevm");
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == "tidevm");
    programs
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the program")
}

/// Firecracker, if there is one.
fn firecracker() -> Option<PathBuf> {
    let named = env::var_os("FIRECRACKER").map(PathBuf::from);
    let found = || {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).map(|folder| folder.join("firecracker")).find(|program| program.is_file())
    };
    named.or_else(found)
}
