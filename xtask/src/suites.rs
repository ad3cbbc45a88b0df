//! `cargo xtask test`: every test on every available host. The hosts are this machine and the nested host, which
//! has a KVM of its own. Ends with a table of suites by host, and with the state of the features.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::cargo;
use crate::features::Features;
use crate::nested::{self, Host};
use crate::packages;
use crate::results::{Reader, Results};

/// Suites that need a KVM. They also run on the nested host.
const NESTED: [&str; 2] = ["sessions", "linux"];

/// Suites with tests that need a KVM: sessions, stock Linux, the VMM's own, and the judge's.
const NEED_KVM: [&str; 5] = ["sessions", "linux", "tidevm_machine", "cli", "judge"];

/// The suite that needs QEMU.
const QEMU: &str = "qemu";
/// Suites of `guest/mm` below a model checker, which is a feature. Each is a program of its own, so that the other
/// suites are built without the checker. `.ci/run` has clippy look at both.
const MODELS: [&[&str]; 2] =
    [&["--features", "shuttle", "--test", "interleavings"], &["--features", "loom", "--lib", "sync::tests"]];

/// Number of nested hosts that may break during a suite before the suite counts as failed.
const ATTEMPTS: u32 = 8;

/// The result of some tests on one host.
struct Row {
    host: &'static str,
    kvm: &'static str,
    tests: &'static str,
    /// `None` when the tests were skipped.
    passed: Option<bool>,
}

/// Runs all tests.
///
/// # Errors
/// A program could not be started, or `docs/features.toml` names tests that do not exist.
pub fn run() -> Result<ExitCode> {
    let features = Features::read()?;
    let unknown = features.unknown_tests()?;
    if !unknown.is_empty() {
        bail!("docs/features.toml names tests that do not exist:\n  {}", unknown.join("\n  "));
    }
    // First, because it installs QEMU, which tests on this host need too.
    let nested = Host::prepare();
    // Tests that count instructions skip themselves without valgrind.
    if let Err(missing) = packages::need_program("valgrind", "valgrind") {
        println!("no instruction counts: {missing:#}");
    }
    // Tests that look at pages skip themselves without a browser.
    if let Err(missing) = packages::need_browser() {
        println!("no pictures of pages: {missing:#}");
    }
    if let Err(missing) = packages::need_program("promtool", "prometheus") {
        println!("no lint of metrics: {missing:#}");
    }
    let (mut rows, mut results) = here(nested::missing_qemu().is_some())?;
    // The nested host has one CPU. The models have no deadlines, so they take another one meanwhile.
    let (there, models) = thread::scope(|scope| {
        let models = scope.spawn(models);
        (on_nested(&nested), models.join())
    });
    let (text, models_passed, models) = models.map_err(|_| anyhow!("the models' thread panicked"))??;
    io::stdout().write_all(&text)?;
    rows.push(Row { host: "this", kvm: "not needed", tests: "models of mm", passed: Some(models_passed) });
    results.merge(models);
    for (row, found) in there {
        rows.push(row);
        results.merge(found);
    }
    print(&rows);
    let proven = features.conclude(&results)?;
    let failed = rows.iter().any(|row| row.passed == Some(false));
    Ok(if failed || !proven { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs all suites that run on the nested host.
fn on_nested(host: &Result<Host>) -> Vec<(Row, Results)> {
    let run = |tests| {
        let (passed, results) = match host {
            Ok(host) => {
                let (passed, results) = passes(host, tests);
                (Some(passed), results)
            }
            Err(missing) => {
                println!("SKIP {tests} on the nested host: {missing:#}");
                (None, Results::default())
            }
        };
        (Row { host: "nested", kvm: "SVM, emulated", tests, passed }, results)
    };
    NESTED.map(run).into_iter().chain([(judge(host), Results::default())]).collect()
}

/// Has the judge judge tidevm on the nested host, whose KVM is SVM's.
fn judge(host: &Result<Host>) -> Row {
    let judged = |host: &Host| {
        let program = nested::program("tidevm")?;
        let arguments = ["judge".to_owned()];
        host.run_for(&program, &arguments, nested::MEMORY_MIB, |line| println!("{line}"))
    };
    let passed = match host {
        Ok(host) => Some(judged(host).map_or_else(
            |error| {
                println!("the judge on the nested host: {error:#}");
                false
            },
            |code| code == ExitCode::SUCCESS,
        )),
        Err(missing) => {
            println!("SKIP the judge on the nested host: {missing:#}");
            None
        }
    };
    Row { host: "nested", kvm: "SVM, emulated", tests: "the judge", passed }
}

/// Runs the models of `guest/mm`, one at a time. Returns what they wrote, and whether all of them passed.
fn models() -> Result<(Vec<u8>, bool, Results)> {
    let (mut text, mut all_passed, mut results) = (Vec::new(), true, Results::default());
    for arguments in MODELS {
        let mut command = cargo();
        command.args(["test", "--package", "tidevm-mm", "--profile", "models"]).args(arguments);
        command.env("CARGO_TERM_COLOR", "never").env("RUST_TEST_THREADS", "1");
        let (passed, found) = watch(command, &mut text)?;
        results.merge(found);
        all_passed &= passed;
    }
    Ok((text, all_passed, results))
}

/// Runs a suite on the nested host. The emulator sometimes breaks the host. Then the tests that have not passed run
/// on a new host. A test that breaks every host has failed.
fn passes(host: &Host, suite: &str) -> (bool, Results) {
    let mut results = Results::default();
    let program = match nested::program(suite) {
        Ok(program) => program,
        Err(error) => {
            println!("{suite} for the nested host: {error:#}");
            return (false, results);
        }
    };
    for attempt in 1..=ATTEMPTS {
        // The host's serial port looks like a terminal.
        let mut arguments = vec!["--color=never".to_owned(), "--exact".to_owned()];
        arguments.extend(results.passed(suite).flat_map(|test| ["--skip".to_owned(), test.to_owned()]));
        let mut reader = Reader::new(Some(suite));
        let code = host.run_for(&program, &arguments, nested::MEMORY_MIB, |line| {
            println!("{line}");
            reader.line(line);
        });
        results.merge(reader.finish());
        match code {
            Ok(code) => return (code == ExitCode::SUCCESS && !results.any_failed(), results),
            Err(error) => println!("{suite}, attempt {attempt} of {ATTEMPTS}: {error:#}"),
        }
    }
    (false, results)
}

/// Runs all tests on this host but the models. A test skips itself when this host lacks what it needs.
fn here(no_qemu: bool) -> Result<(Vec<Row>, Results)> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]).env("CARGO_TERM_COLOR", "never");
    let (passed, results) = watch(command, &mut io::stdout())?;
    let row = |kvm, tests, passed| Row { host: "this", kvm, tests, passed };
    let good = |wanted: &dyn Fn(&str) -> bool| Some(are_good(passed, &results, wanted));
    let needs_kvm = |suite: &str| NEED_KVM.contains(&suite);
    let no_kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err();
    let kvm = if no_kvm { "none" } else { "/dev/kvm" };
    let rows = vec![
        row(kvm, "sessions, and the VMM's", if no_kvm { None } else { good(&needs_kvm) }),
        row("not needed", QEMU, if no_qemu { None } else { good(&|suite| suite == QEMU) }),
        // Without a KVM the first row is skipped, but a test of its suites that needs none may have failed.
        row("not needed", "all others", good(&|suite| suite != QEMU && (no_kvm || !needs_kvm(suite)))),
    ];
    Ok((rows, results))
}

/// Whether the suites that are `wanted` are good after a run of cargo that `passed` as a whole, or not. A run that
/// failed without a bad test did not run all tests: then no suite is good.
fn are_good(passed: bool, results: &Results, wanted: impl Fn(&str) -> bool) -> bool {
    !results.any_bad(wanted) && (passed || results.any_bad(|_| true))
}

/// Runs cargo's tests, and writes their output to `shown` and reads it. Both output streams are read as one, because one names the
/// program and the other has its results.
fn watch(mut command: Command, shown: &mut impl Write) -> Result<(bool, Results)> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    // The command holds the pipe open.
    drop(command);
    let mut results = Reader::new(None);
    for line in BufReader::new(reader).split(b'\n') {
        let mut line = line?;
        results.line(&String::from_utf8_lossy(&line));
        line.push(b'\n');
        shown.write_all(&line)?;
    }
    Ok((child.wait()?.success(), results.finish()))
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

#[cfg(test)]
mod tests {
    use super::{NEED_KVM, are_good};
    use crate::results::{Reader, Results};

    fn results(text: &str) -> Results {
        let mut reader = Reader::new(None);
        text.lines().for_each(|line| reader.line(line));
        reader.finish()
    }

    /// The rows `sessions, and the VMM's`, `qemu` and `all others` after a run of cargo that failed.
    fn rows(text: &str) -> [bool; 3] {
        let results = results(text);
        let kvm = |suite: &str| NEED_KVM.contains(&suite);
        [
            are_good(false, &results, kvm),
            are_good(false, &results, |suite| suite == "qemu"),
            are_good(false, &results, |suite| suite != "qemu" && !kvm(suite)),
        ]
    }

    /// The output of the suite `name`, whose program prints these `lines`.
    fn suite(name: &str, lines: &str) -> String {
        format!("Running tests/{name}.rs (target/debug/deps/{name}-0a)\n{lines}\n")
    }

    #[test]
    fn a_failed_session_fails_the_row_of_the_sessions_alone() {
        let good = "test a ... ok\ntest result: ok. 1 passed";
        let failed = "test a ... FAILED\ntest result: FAILED. 0 passed; 1 failed";
        let sessions = suite("sessions", failed);
        let (qemu, mm) = (suite("qemu", good), suite("mm", good));
        assert_eq!(rows(&format!("{mm}{qemu}{sessions}")), [false, true, true]);
        let crash = suite("qemu", "test a ... ");
        assert_eq!(rows(&format!("{crash}{mm}")), [true, false, true]);
        let doctest = "Doc-tests tidevm_mm\ntest src/lib.rs - x (line 3) ... FAILED\n";
        assert_eq!(rows(&format!("{mm}{doctest}")), [true, true, false]);
    }

    /// Its tests run several at a time, so the test that crashed has no line.
    #[test]
    fn a_suite_that_crashes_is_not_good_because_another_one_failed() {
        let crash =
            "running 2 tests\ntest a ... ok\nerror: test failed, to rerun pass `-p tidevm-mm --test mm`";
        let sessions = suite("sessions", "test a ... FAILED\ntest result: FAILED. 0 passed; 1 failed");
        assert_eq!(rows(&format!("{}{sessions}", suite("mm", crash))), [false, true, false]);
        assert_eq!(rows(&format!("{sessions}{}", suite("qemu", "running 2 tests"))), [false, false, true]);
    }

    #[test]
    fn a_run_that_failed_before_its_tests_fails_every_row() {
        assert_eq!(rows("error: could not compile `tidevm-mm`"), [false; 3]);
        assert!(are_good(true, &results(""), |_| true));
    }
}
