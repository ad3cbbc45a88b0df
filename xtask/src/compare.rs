//! The same session on stock Linux and on tidevm's guest, on the same emulated machines, side by side.
//!
//! A program of its own measures and shows it (`vmm/lab/src/bin/compare.rs`), because this one must build
//! before the guest's compiler is there. Here is what it needs, where it runs, and what it printed.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use tidevm_guest_image::workspace_root;

use crate::nested::{self, Host};

/// Boot memory and plugged memory of a guest of the nested host, and the host's own.
const NESTED_MEMORY_MIB: u32 = 8 * 1024;

const HOSTS: [&str; 3] = ["qemu", "qemu-counting", "tidevm"];
const GUESTS: [&str; 2] = ["linux", "tidevm"];

/// Runs all sessions and prints the table; its status.
///
/// # Errors
/// What is missing, or does not start.
pub fn run() -> Result<ExitCode> {
    let nested = Host::prepare()?;
    let program = nested::program("compare")?;
    let target = workspace_root().join("target");
    let [initrd, file] = ["nested/agent-initrd", "compare.json"].map(|name| target.join(name));
    fs::write(&initrd, nested.stock.agent()?)?;
    let mut records = Vec::new();
    for host in HOSTS {
        for guest in GUESTS {
            eprintln!("{guest} on {host}");
            let files = [&nested.stock.kernel, &initrd].map(|path| path.display().to_string());
            let words = ["measure", host, guest].map(str::to_owned);
            let record = match host {
                "tidevm" => measure_nested(&nested, &program, &[&words[..], &files[..]].concat()),
                _ => measure_here(&program, &[&words[..], &files[..]].concat()),
            };
            let record = record.with_context(|| format!("nothing was measured of {guest} on {host}"))?;
            if let Some(error) = record["error"].as_str() {
                eprintln!("{error}");
            }
            records.push(record);
        }
    }
    fs::write(&file, format!("{:#}\n", Value::Array(records)))?;
    crate::status(Command::new(&program).arg("table").arg(&file))
}

fn measure_here(program: &Path, arguments: &[String]) -> Result<Value> {
    let output = Command::new(program).args(arguments).stderr(Stdio::inherit()).output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// There, what it says on standard error comes the same way as the record.
fn measure_nested(host: &Host, program: &Path, arguments: &[String]) -> Result<Value> {
    let mut record = None;
    host.run_for(program, arguments, NESTED_MEMORY_MIB, |line| match serde_json::from_str(line) {
        Ok(value) => record = Some(value),
        Err(_) => eprintln!("{line}"),
    })?;
    record.context("it printed no record")
}
