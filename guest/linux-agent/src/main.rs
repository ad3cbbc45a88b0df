//! The agent in a Linux guest: carries out the calls of the VMM, as `guest/kernel/src/agent` does in tidevm's own guest, by
//! what Linux offers to programs.
//!
//! The VMM puts this program into the guest's initramfs, in front of the user's own archive, and has the kernel start it as
//! the first process (`rdinit=`). It has three roles:
//!
//! | role | process | does |
//! | --- | --- | --- |
//! | `init` | the first one | starts the second one, and then becomes the user's init |
//! | `serve` | `@tidevm-agent serve` | speaks with the VMM on a port of virtio-console, and starts the workloads |
//! | `worker` | `@tidevm-agent work` | one workload: its pages, or its threads |
//!
//! The agent keeps out of the way of the user's init. It mounts nothing where others see it (`files`), holds no terminal,
//! and its name begins with `@`, so that systemd leaves it alone when it changes the root file system.
//!
//! Invariant: a workload is a process of its own, and the kernel ends that first when memory is short. So a workload that
//! does not fit costs neither the agent nor the user's processes.

mod blocks;
mod check;
mod churn;
mod files;
mod init;
mod pages;
mod pipes;
mod port;
mod room;
mod serve;
mod stats;
mod worker;
mod workload;
mod zoneinfo;

use std::process::ExitCode;

/// The name of the agent's processes.
const NAME: &str = "@tidevm-agent";
/// Argument of the process that speaks with the VMM.
const SERVE: &str = "serve";
/// Argument of a workload's process.
const WORK: &str = "work";

fn main() -> ExitCode {
    // The kernel passes words of its command line to the first process, which may be any words.
    if std::process::id() == 1 {
        return init::run();
    }
    let role = std::env::args().nth(1);
    let result = match role.as_deref() {
        Some(SERVE) => serve::run(),
        Some(WORK) => worker::run(),
        _ => {
            eprintln!("{NAME}: this is a part of tidevm, which starts it in a guest (tidevm run --agent)");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            files::log(&format!("the agent ends: {error}"));
            ExitCode::FAILURE
        }
    }
}
