//! Clients that were written for Firecracker drive tidevm: an SDK in Rust, one in Python, and curl.
//!
//! They are unchanged: what they cannot do here is listed in `docs/api.md`. A client that is not there, or cannot be
//! installed, is skipped, with the reason on standard error. So are all of them where /dev/kvm cannot be used.
//!
//! A package of its own, because the SDK brings an asynchronous runtime that nothing else needs.

mod curl;
mod fctools;
mod python;

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// Why a test is skipped, unless it can run.
type Missing = Option<String>;

type Test = (&'static str, fn() -> Missing, fn());

const TESTS: &[Test] = &[
    ("fctools_configures_a_machine_and_resizes_it", || None, fctools::by_calls),
    ("fctools_starts_a_machine_from_a_file", || None, fctools::from_a_file),
    ("firecracker_python_drives_a_machine", python::missing, python::drives_a_machine),
    ("curl_does_the_rest", curl::missing, curl::does_the_rest),
];

/// Longest time until a guest is up, has a new size, or has ended.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One at a time: VMs share the host's CPUs, and have deadlines.
    arguments.test_threads.get_or_insert(1);
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let no_kvm = device.err().map(|error| format!("/dev/kvm cannot be used: {error}"));
    let trial = |&(name, missing, test): &Test| {
        let missing = if arguments.list { None } else { no_kvm.clone().or_else(missing) };
        if let Some(reason) = &missing {
            eprintln!("SKIP {name}: {reason}");
        }
        let run = move || {
            test();
            Ok::<(), Failed>(())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&arguments, TESTS.iter().map(trial).collect()).exit_code()
}

/// The program, which cargo builds if it is not up to date: cargo builds programs for the tests of their own package alone.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "tidevm", "--message-format=json-render-diagnostics"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
        let output = build.output().expect("cargo runs");
        assert!(output.status.success(), "cargo cannot build tidevm");
        let text = String::from_utf8_lossy(&output.stdout);
        let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut programs = messages.filter(|message| message["target"]["name"] == "tidevm");
        let path = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
        path.expect("cargo names the program")
    })
}

/// An empty folder for the files of one test. Paths of sockets are short, so it is where temporary files are.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tidevm-{name}-{}", std::process::id()));
    drop(fs::remove_dir_all(&path));
    fs::create_dir_all(&path).expect("the folder of temporary files is writable");
    path
}
