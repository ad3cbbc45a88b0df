//! The same session on stock Linux and on tidevm's guest, on the same emulated machines, side by side.
//!
//! The lab's program `compare` (`vmm/lab/src/bin/compare.rs`) does all of it, except running itself on the
//! nested host. It is a separate program because xtask must build before the guest's compiler is installed.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::Result;
use tidevm_guest_image::workspace_root;

use crate::nested::{self, Host};

/// Boot memory and plugged memory of a guest of the nested host, and the host's own.
const NESTED_MEMORY_MIB: u32 = 8 * 1024;

const GUESTS: [&str; 2] = ["linux", "tidevm"];

/// Runs all sessions and prints the table; its status.
///
/// # Errors
/// What is missing, or does not start.
pub fn run() -> Result<ExitCode> {
    let nested = Host::prepare()?;
    let program = nested::program("compare")?;
    let target = workspace_root().join("target");
    let [initrd, file] = ["nested/agent-initrd", "compare.jsonl"].map(|name| target.join(name));
    fs::write(&initrd, nested.stock.agent()?)?;
    let files = [&nested.stock.kernel, &initrd].map(|path| path.display().to_string());
    let mut records = String::new();
    for guest in GUESTS {
        eprintln!("{guest} on the nested host");
        let words = ["measure", guest].map(str::to_owned);
        nested.run_for(&program, &[&words[..], &files[..]].concat(), NESTED_MEMORY_MIB, |line| {
            // What it says on standard error comes the same way as its record, a JSON object.
            if line.starts_with('{') {
                records.push_str(line);
                records.push('\n');
            } else {
                eprintln!("{line}");
            }
        })?;
    }
    fs::write(&file, records)?;
    crate::status(Command::new(&program).arg("run").args(files).arg(&file))
}
