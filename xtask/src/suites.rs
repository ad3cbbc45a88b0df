//! Every test on every host that there is here: this machine, and the nested host, whose KVM is another
//! one. Ends with a table of which host ran what.

use std::fs::OpenOptions;
use std::process::ExitCode;

use anyhow::Result;

use crate::nested::{self, Host};
use crate::{cargo, status};

/// Suites that need a KVM, and are run on the nested host as well.
const NESTED: [&str; 2] = ["sessions", "linux"];

/// Hosts that may break under a suite before it counts as failed.
const ATTEMPTS: u32 = 3;

/// What one host made of some tests.
struct Row {
    host: &'static str,
    kvm: &'static str,
    tests: &'static str,
    /// `None` when they were skipped.
    passed: Option<bool>,
}

/// Runs everything.
///
/// # Errors
/// Something could not even be started.
pub fn run() -> Result<ExitCode> {
    // First, because it brings QEMU, on which tests of this host run too.
    let nested = Host::prepare();
    let mut rows = here(nested::missing_qemu().is_some())?;
    for suite in NESTED {
        let passed = match &nested {
            Ok(host) => Some(passes(host, suite)),
            Err(missing) => {
                println!("SKIP {suite} on the nested host: {missing:#}");
                None
            }
        };
        rows.push(Row { host: "nested", kvm: "SVM, emulated", tests: suite, passed });
    }
    print(&rows);
    let failed = rows.iter().any(|row| row.passed == Some(false));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs a suite on the nested host. When the host breaks, which its emulator brings about now and then, the
/// suite is run again from its start: nothing is known of it then. One that breaks it every time has failed.
fn passes(host: &Host, suite: &str) -> bool {
    let program = match nested::program(suite) {
        Ok(program) => program,
        Err(error) => {
            println!("{suite} for the nested host: {error:#}");
            return false;
        }
    };
    for attempt in 1..=ATTEMPTS {
        match host.run(&program, &[]) {
            Ok(code) => return code == ExitCode::SUCCESS,
            Err(error) => println!("{suite}, attempt {attempt} of {ATTEMPTS}: {error:#}"),
        }
    }
    false
}

/// Runs all tests on this host. Those whose kind of machine it does not have skip themselves.
fn here(no_qemu: bool) -> Result<Vec<Row>> {
    let passed = status(cargo().args(["test", "--workspace", "--no-fail-fast"]))? == ExitCode::SUCCESS;
    let row = |kvm, tests, passed| Row { host: "this", kvm, tests, passed };
    let no_kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err();
    let kvm = if no_kvm { "none" } else { "/dev/kvm" };
    let needs_kvm = row(kvm, "sessions, and the VMM's", if no_kvm { None } else { Some(passed) });
    let needs_qemu = row("not needed", "qemu", if no_qemu { None } else { Some(passed) });
    Ok(vec![needs_kvm, needs_qemu, row("not needed", "all others", Some(passed))])
}

fn print(rows: &[Row]) {
    println!("\n{:8}{:15}{:25}result", "host", "kvm", "tests");
    for Row { host, kvm, tests, passed } in rows {
        let result = match passed {
            Some(true) => "passed",
            Some(false) => "FAILED",
            None => "SKIPPED",
        };
        println!("{host:8}{kvm:15}{tests:25}{result}");
    }
}
