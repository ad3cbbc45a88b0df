//! Machines that the program saves and restores: by a script and by a signal, on a disk that is full, and refused before
//! anything is started.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::endings::{end, kill, until};
use super::{Test, assert_status, program, small, spawn, text, tidevm, utf8, with_input};

pub const HOSTED: &[Test] = &[
    ("what_is_no_snapshot_is_refused", what_is_no_snapshot_is_refused),
    ("a_folder_that_is_not_empty_is_left_alone", a_folder_that_is_not_empty_is_left_alone),
];

pub const TESTS: &[Test] = &[
    ("a_machine_is_saved_at_the_end_and_started_from_there", a_machine_is_saved_at_the_end),
    ("a_machine_without_a_script_is_saved_when_a_signal_ends_it", a_signal_saves_a_machine_without_a_script),
    (
        "a_disk_that_is_full_keeps_a_machine_from_being_saved_and_nothing_is_left",
        a_disk_that_is_full_keeps_a_machine_from_being_saved_and_nothing_is_left,
    ),
];

/// A folder for one test, empty.
fn folder(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("snapshots").join(name);
    drop(fs::remove_dir_all(&path));
    fs::create_dir_all(&path).expect("the scratch folder is writable");
    path
}

/// What is in a folder, sorted. A child of a program that has ended may still be at work, so it is waited for.
fn await_names(folder: &Path, expected: &[&str]) {
    until(&format!("{expected:?} in {}", folder.display()), || {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names == expected
    });
}

fn what_is_no_snapshot_is_refused() {
    let folder = folder("no-snapshot");
    let restore = |path: &Path| tidevm(&["run", "--restore", utf8(path)]);
    assert_status(&restore(&folder.join("nowhere")), 2, "cannot read state");
    assert_status(&restore(&folder), 2, "cannot read state");
    fs::write(folder.join("state"), "something else, and longer than a header").unwrap();
    assert_status(&restore(&folder), 2, "state: this is no snapshot of tidevm");
    fs::write(folder.join("state"), b"tidevmsn\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    assert_status(&restore(&folder), 2, "the snapshot has version 9");
    fs::write(folder.join("state"), b"").unwrap();
    assert_status(&restore(&folder), 2, "it is not complete");
}

fn a_folder_that_is_not_empty_is_left_alone() {
    let folder = folder("full");
    fs::write(folder.join("mine"), "").unwrap();
    let output = with_input(&small(&["--script", "-", "--save", utf8(&folder)]), "stats\n");
    let out = assert_status(&output, 2, "the folder is there and not empty");
    assert_eq!(out, "", "nothing has started");
    await_names(&folder, &["mine"]);
    let output = tidevm(&small(&["--save", utf8(&folder.join("no/such/place"))]));
    assert_status(&output, 2, "cannot make a folder beside it");
    // A script that is wrong starts nothing, and leaves nothing.
    let place = folder.join("snapshot");
    let output = with_input(&small(&["--script", "-", "--save", utf8(&place)]), "jump\n");
    assert_ne!(output.status.code(), Some(0), "{}", text(&output.stderr));
    await_names(&folder, &["mine"]);
}

fn a_machine_is_saved_at_the_end() {
    let folder = folder("saved");
    let place = folder.join("snapshot");
    let script = "plug 128M\nhog 2M movable scattered as data\n";
    let output = with_input(&small(&["--json", "--script", "-", "--save", utf8(&place)]), script);
    let out = assert_status(&output, 0, "");
    let last: Value = serde_json::from_str(out.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&last["event"], &last["saved"]), (&"end".into(), &utf8(&place).into()));
    await_names(&folder, &["snapshot"]);
    await_names(&place, &["memory", "state"]);

    let again = folder.join("again");
    let restore = ["run", "--restore", utf8(&place), "--console", "off", "--script", "-"];
    let save = [&restore[..], &["--save", utf8(&again)]].concat();
    let out = assert_status(&with_input(&save, "verify data\nplug 128M\n"), 0, "");
    assert!(out.contains("512 pages intact") && out.contains("; saved in "), "{out}");
    // The snapshot of a restored machine.
    let from_again = ["run", "--restore", utf8(&again), "--console", "off", "--script", "-"];
    let out = assert_status(&with_input(&from_again, "verify data\nrelease data\nresize 0\n"), 0, "");
    assert!(out.contains("3 steps done"), "{out}");

    let other = [&restore[..], &["--cpus", "2"]].concat();
    assert_status(&with_input(&other, "stats\n"), 2, "--cpus: the saved machine has 1, and this one 2");
    let same = [&restore[..], &["--cpus", "1", "--memory", "128M", "--hotplug", "size=256M"]].concat();
    assert_status(&with_input(&same, "verify data\nreset\nexpect plugged == 128M within 1m\n"), 0, "");
    let unknown = with_input(&restore, "verify other\n");
    assert_status(&unknown, 2, "nothing is called `other` here");
}

fn a_signal_saves_a_machine_without_a_script() {
    let folder = folder("signalled");
    let place = folder.join("snapshot");
    let mut child = spawn(&small(&["--save", utf8(&place)]));
    let mut out = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    out.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("boot")))
        .expect("it boots")
        .expect("text");
    kill("-TERM", &child);
    assert_eq!(end(&mut child).code(), Some(0));
    await_names(&place, &["memory", "state"]);
}

/// A file system of 256 KiB.
fn a_disk_that_is_full_keeps_a_machine_from_being_saved_and_nothing_is_left() {
    const NAME: &str = "a_disk_that_is_full_keeps_a_machine_from_being_saved_and_nothing_is_left";
    let folder = folder("tiny");
    let mount = format!("mount -t tmpfs -o size=256k tmpfs '{}'", folder.display());
    let in_namespace = |then: &str| {
        Command::new("unshare").args(["--mount", "sh", "-c", &format!("{mount} && {then}")]).output()
    };
    if !in_namespace("true").is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP {NAME}: no mount namespace without root");
        return;
    }
    let (place, script) =
        (folder.join("snapshot"), super::scratch("tiny.script", "plug 128M\nhog 2M movable as data\n"));
    let options = small(&["--script", utf8(&script), "--save", utf8(&place)]).join(" ");
    let program = program().get_program().to_str().expect("UTF-8").to_owned();
    let run =
        format!("'{program}' {options}; status=$?; sleep 1; ls -A '{}' >&2; exit $status", folder.display());
    let output = in_namespace(&run).expect("unshare runs");
    let out = assert_status(&output, 1, "");
    assert!(out.contains("the machine was not saved") && out.contains("make room there"), "{out}");
    assert!(!text(&output.stderr).contains("snapshot"), "something is left: {}", text(&output.stderr));
}
