//! `tidevm judge` on tidevm, on QEMU, on Cloud Hypervisor where this host has it, on programs that are none,
//! and on a Firecracker that is tidevm's own API.
//!
//! A test that this host cannot run says `SKIP` and why, and counts as ignored. Each VMM is judged once, and the tests look at
//! what was found.

#[path = "judge/page.rs"]
mod page;

use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::OnceLock;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use page::{Judged, List};
use serde_json::Value;
use tidevm_judge::subject::{CloudHypervisor, Firecracker, Program, Qemu, Subject, Tidevm};
use tidevm_judge::{Level, Limits, Outcome, Verdict, judge, rows};
use tidevm_machine::GUEST_IMAGE;

/// What a test needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Kvm,
    Qemu,
    KvmAndQemu,
    KvmAndCloudHypervisor,
}

const TESTS: &[(&str, Needs, fn())] = &[
    ("every_rule_has_a_proof_or_a_reason", Needs::Nothing, every_rule_has_a_proof_or_a_reason),
    ("a_program_that_is_another_is_refused", Needs::Nothing, a_program_that_is_another_is_refused),
    ("a_machine_that_hangs_is_wedged_and_killed", Needs::Nothing, a_machine_that_hangs_is_wedged_and_killed),
    ("tidevm_keeps_to_every_rule", Needs::Kvm, tidevm_keeps_to_every_rule),
    ("the_program_tells_the_verdicts_to_programs", Needs::Kvm, the_program_tells_the_verdicts_to_programs),
    ("firecrackers_api_is_driven", Needs::Kvm, firecrackers_api_is_driven),
    ("qemu_is_judged", Needs::Qemu, qemu_is_judged),
    ("cloud_hypervisor_is_judged", Needs::KvmAndCloudHypervisor, cloud_hypervisor_is_judged),
    ("the_page_says_what_was_found", Needs::KvmAndQemu, the_page_says_what_was_found),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One at a time: machines share the host's CPUs, and have deadlines.
    arguments.test_threads.get_or_insert(1);
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let no_kvm = device.err().map(|error| format!("/dev/kvm cannot be used: {error}"));
    let no_program = |program: &mut dyn Subject| program.version().err().map(|error| error.to_string());
    let no_qemu = no_program(&mut qemu());
    let no_cloud_hypervisor = no_program(&mut Program::new(CloudHypervisor, None, GUEST_IMAGE));
    let trial = |&(name, needs, test): &(&'static str, Needs, fn())| {
        let missing = match needs {
            Needs::Nothing => None,
            Needs::Kvm => no_kvm.clone(),
            Needs::Qemu => no_qemu.clone(),
            Needs::KvmAndQemu => no_kvm.clone().or_else(|| no_qemu.clone()),
            Needs::KvmAndCloudHypervisor => no_kvm.clone().or_else(|| no_cloud_hypervisor.clone()),
        };
        if let Some(reason) = missing.as_deref().filter(|_| !arguments.list) {
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

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_tidevm").into()
}

fn qemu() -> Program<Qemu> {
    Program::new(Qemu, None, GUEST_IMAGE)
}

fn all_of(subject: &mut dyn Subject, limits: Limits) -> Vec<Outcome> {
    let mut all = Vec::new();
    let each = |outcome: &Outcome| {
        all.push(outcome.clone());
        Ok::<(), Infallible>(())
    };
    judge(subject, limits, each).expect("nothing stops it");
    all
}

/// What came of tidevm, which is judged once.
fn of_tidevm() -> &'static [Outcome] {
    static FOUND: OnceLock<Vec<Outcome>> = OnceLock::new();
    FOUND.get_or_init(|| all_of(&mut Program::new(Tidevm, Some(program()), GUEST_IMAGE), Limits::default()))
}

/// What came of QEMU, which is judged once.
fn of_qemu() -> &'static [Outcome] {
    static FOUND: OnceLock<Vec<Outcome>> = OnceLock::new();
    FOUND.get_or_init(|| all_of(&mut qemu(), Limits::default()))
}

/// `QEMU 7.2.22`.
fn qemu_name() -> String {
    let version = qemu().version().expect("a QEMU");
    format!("QEMU {}", version.split_whitespace().nth(3).unwrap_or_default())
}

/// Fails unless each row is known to the guest, and has a text.
fn assert_told(outcomes: &[Outcome]) {
    assert_eq!(outcomes.len(), rows().count());
    for Outcome { row, sent, came, verdict } in outcomes {
        assert!(!came.contains("does not know this row"), "{}", row.id);
        assert!(!came.is_empty(), "{}: {verdict} without a text", row.id);
        assert!(row.skip.is_some() || !sent.is_empty(), "{}: nothing was sent", row.id);
    }
}

fn every_rule_has_a_proof_or_a_reason() {
    let complaints = List::read().complaints();
    assert!(complaints.is_empty(), "docs/conformance.toml: {complaints:#?}");
}

fn tidevm_keeps_to_every_rule() {
    let outcomes = of_tidevm();
    assert_told(outcomes);
    let bad: Vec<_> =
        outcomes.iter().filter(|one| matches!(one.verdict, Verdict::Fail | Verdict::Wedged)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    // The only rule that its device skips of those that can be judged: it does not run without the feature.
    let skipped = outcomes.iter().filter(|one| one.verdict == Verdict::Skip && one.row.skip.is_none());
    assert_eq!(skipped.map(|one| one.row.id).collect::<Vec<_>>(), ["D20"]);
}

/// QEMU breaks a few rules. Which ones is on the page; here it is only asked that it is judged to the end.
fn qemu_is_judged() {
    assert_judged(of_qemu());
}

/// As for QEMU: which rules Cloud Hypervisor breaks is in docs/judge.md.
fn cloud_hypervisor_is_judged() {
    assert_judged(&all_of(&mut Program::new(CloudHypervisor, None, GUEST_IMAGE), Limits::default()));
}

/// Fails unless the device was judged to the end, and keeps to most rules.
fn assert_judged(outcomes: &[Outcome]) {
    assert_told(outcomes);
    assert!(outcomes.iter().all(|one| one.verdict != Verdict::Wedged), "{outcomes:#?}");
    let passed = outcomes.iter().filter(|one| one.verdict == Verdict::Pass).count();
    assert!(passed > 70, "{outcomes:#?}");
}

/// Writes the page anew if it is not that of this run, and fails then. With another QEMU than the page has, the page stays.
fn the_page_says_what_was_found() {
    let known = fs::read_to_string(page::path()).unwrap_or_default();
    let qemu = qemu_name();
    if !known.is_empty() && !known.contains(&format!("| {qemu} |")) {
        eprintln!("SKIP the_page_says_what_was_found: the page is about another QEMU than {qemu}");
        return;
    }
    let judged = [
        Judged { name: "tidevm".to_owned(), outcomes: of_tidevm() },
        Judged { name: qemu, outcomes: of_qemu() },
    ];
    let page = List::read().render(&judged);
    if page != known {
        fs::write(page::path(), page).expect("the page can be written");
        panic!("docs/conformance.md has changed: look at the difference and commit it");
    }
}

fn run(words: &[&str]) -> Output {
    Command::new(program()).arg("judge").args(words).output().expect("the program runs")
}

fn a_program_that_is_another_is_refused() {
    for vmm in ["tidevm", "qemu", "firecracker", "cloud-hypervisor"] {
        let output = run(&["--vmm", vmm, "--binary", "/bin/true"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{vmm}: {text}");
        assert!(text.contains("/bin/true: is not") && text.contains("--binary"), "{vmm}: {text}");
        assert!(output.stdout.is_empty());
    }
    let output = run(&["--vmm", "qemu", "--binary", "/nowhere/qemu"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/qemu: cannot be run"));
    assert_eq!(run(&["--json", "--tap"]).status.code(), Some(2));
}

/// A script among the temporary files, which is removed when this is dropped.
struct Script(PathBuf);

impl Script {
    /// A program that prints `version` when it is asked for it, and else does `what`.
    fn new(name: &str, version: &str, what: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tidevm-judge-{name}-{}", std::process::id()));
        let text = format!("#!/bin/sh\n[ \"$1\" = --version ] && echo '{version}' && exit\n{what}\n");
        fs::write(&path, text).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a script that runs");
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn a_machine_that_hangs_is_wedged_and_killed() {
    let pid = std::env::temp_dir().join(format!("tidevm-judge-hangs-{}.pid", std::process::id()));
    let what = format!("echo $$ >> {}; exec sleep 1000", pid.display());
    let script = Script::new("hangs", "QEMU emulator version 9.9.9", &what);
    let mut subject = Program::new(Qemu, Some(script.path().to_owned()), GUEST_IMAGE);
    assert_eq!(subject.version().expect("its version line is right"), "QEMU emulator version 9.9.9");
    let limits = Limits { boot: Duration::from_millis(500), row: Duration::from_millis(500) };
    let outcomes = all_of(&mut subject, limits);
    for Outcome { row, came, verdict, .. } in &outcomes {
        let wanted = if row.skip.is_some() { Verdict::Skip } else { Verdict::Wedged };
        assert_eq!(*verdict, wanted, "{}: {came}", row.id);
        assert!(row.skip.is_some() || came.contains("does not come up: its API does not answer"), "{came}");
    }
    let pids = fs::read_to_string(&pid).expect("it ran");
    drop(fs::remove_file(&pid));
    assert_eq!(pids.lines().count(), 2, "the trial ends after two starts");
    for pid in pids.lines() {
        assert!(!Path::new("/proc").join(pid).exists(), "process {pid} is left");
    }
}

fn the_program_tells_the_verdicts_to_programs() {
    let output = run(&["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines.len(), rows().count() + 2);
    assert!(lines[0]["vmm"].as_str().is_some_and(|vmm| vmm.starts_with("tidevm ")), "{}", lines[0]);
    for (line, row) in lines[1..].iter().zip(rows()) {
        assert_eq!((&line["row"], &line["section"]), (&row.id.into(), &row.section.into()));
    }
    assert_eq!(lines[lines.len() - 1]["breaches"], 0);

    let output = run(&["--tap"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("text");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("TAP version 14"));
    assert_eq!(lines.next(), Some(&*format!("1..{}", rows().count())));
    let points: Vec<_> = lines.filter(|line| !line.starts_with([' ', '#'])).collect();
    for ((number, point), row) in (1..).zip(&points).zip(rows()) {
        assert!(point.starts_with(&format!("ok {number} - {}: ", row.id)), "{point}");
    }
    assert_eq!(points.len(), rows().count());
}

/// tidevm understands Firecracker's calls, so it is judged as if it were one. Firecracker refuses a target while no driver
/// runs the device, and so two rows cannot be judged.
fn firecrackers_api_is_driven() {
    let what = format!("exec {} \"$@\"", program().display());
    let script = Script::new("firecracker", "Firecracker v1.16.1", &what);
    let mut subject = Program::new(Firecracker, Some(script.path().to_owned()), GUEST_IMAGE);
    assert_eq!(subject.version().expect("its version line is right"), "Firecracker v1.16.1");
    let outcomes = all_of(&mut subject, Limits::default());
    assert_told(&outcomes);
    let skipped = outcomes.iter().filter(|one| one.verdict == Verdict::Skip && one.row.skip.is_none());
    assert_eq!(skipped.map(|one| one.row.id).collect::<Vec<_>>(), ["D20", "T12", "T14"]);
    let bad: Vec<_> = outcomes.iter().filter(|one| one.row.level != Level::May && one.is_breach()).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
