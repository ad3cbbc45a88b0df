//! Every test on every host that there is here: this machine, and the nested host, whose KVM is another
//! one. Ends with a table of which host ran what.

use std::fs::OpenOptions;
use std::process::ExitCode;

use anyhow::Result;

use crate::nested::{self, Host};
use crate::{cargo, status};

/// Suites that need a KVM, and are run on the nested host as well.
const NESTED: [&str; 2] = ["sessions", "linux"];

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
    let mut rows = here()?;
    let skipped = |suite| Row { host: "nested", kvm: "SVM, emulated", tests: suite, passed: None };
    match nested {
        Ok(host) => {
            for suite in NESTED {
                let code = host.run(&nested::program(suite)?, &[])?;
                rows.push(Row { passed: Some(code == ExitCode::SUCCESS), ..skipped(suite) });
            }
        }
        Err(missing) => {
            println!("SKIP {} on the nested host: {missing:#}", NESTED.join(" and "));
            rows.extend(NESTED.map(skipped));
        }
    }
    print(&rows);
    let failed = rows.iter().any(|row| row.passed == Some(false));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn here() -> Result<Vec<Row>> {
    let passed = status(cargo().args(["test", "--workspace", "--no-fail-fast"]))? == ExitCode::SUCCESS;
    let row = |tests, passed| Row { host: "this", kvm: "/dev/kvm", tests, passed };
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok() {
        return Ok(vec![row("all but linux", Some(passed))]);
    }
    let without = |tests, passed| Row { kvm: "none", ..row(tests, passed) };
    Ok(vec![without("all but sessions, linux", Some(passed)), without("sessions", None)])
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
