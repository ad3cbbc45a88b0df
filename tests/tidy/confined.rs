//! The rule about sessions: each file that starts a VM is in the table "Where a VM is started" of
//! `docs/confinement.md`, which says whether the VM is locked in. So no suite runs without seccomp by oversight.
//!
//! A file starts a VM if its code calls `Vm::start`, `Vm::start_with`, `Vm::apart` or `Vm::apart_with`. A file whose row says that it locks the VM in has
//! one such call, and names `Confinement::STRICT`.

use std::collections::BTreeMap;
use std::fs;

use crate::assert_none;
use crate::source::{code, root, rust};

/// The row of a file that locks in every VM that it starts begins so.
const LOCKED_IN: &str = "yes";

/// The files of the table, and the second cell of each.
fn rows(paper: &str) -> BTreeMap<&str, &str> {
    let section = paper.split_once("## Where a VM is started\n").expect("the section").1;
    let section = section.split("\n## ").next().unwrap_or_default();
    section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | ")).collect()
}

/// What is wrong with a file, whose code is `code` and whose row of the table is `row`.
fn complaint(code: &str, row: Option<&str>) -> Option<String> {
    let calls = ["Vm::start(", "Vm::start_with(", "Vm::apart(", "Vm::apart_with("];
    let starts: usize = calls.iter().map(|call| code.matches(call).count()).sum();
    match (starts, row) {
        (0, Some(_)) => Some("is in the table, and starts no VM".to_owned()),
        (1.., None) => Some("starts a VM, and is not in the table".to_owned()),
        (2.., Some(row)) if row.starts_with(LOCKED_IN) => Some(format!("starts a VM at {starts} places")),
        (1, Some(row)) if row.starts_with(LOCKED_IN) && !code.contains("Confinement::STRICT") => {
            Some("does not lock its VM in".to_owned())
        }
        _ => None,
    }
}

#[test]
fn every_place_that_starts_a_vm_is_listed_with_its_confinement() {
    let paper = fs::read_to_string(root().join("docs/confinement.md")).expect("the paper");
    let mut rows = rows(&paper);
    let mut complaints = Vec::new();
    for file in rust() {
        let row = rows.remove(file.path.as_str());
        complaints.extend(complaint(&code(&file.text), row).map(|what| format!("{}: {what}", file.path)));
    }
    complaints.extend(rows.keys().map(|path| format!("{path}: is in the table, and does not exist")));
    assert_none("VMs that nobody locked in", &complaints);
}

#[test]
fn a_vm_that_is_not_locked_in_is_found() {
    let locked = "Vm::apart(Config { confinement: Confinement::STRICT, ..config }, run)";
    let two = format!("{locked}; Vm::start(config)");
    for (code, row, wrong) in [
        (locked, Some("yes |"), false),
        (locked, None, true),
        (two.as_str(), Some("yes |"), true),
        ("Vm::start(config)", Some("yes |"), true),
        ("Vm::start(config)", Some("as `--seccomp` says |"), false),
        ("Vm::stop(config)", None, false),
        ("Vm::stop(config)", Some("no: it is over |"), true),
    ] {
        assert_eq!(complaint(code, row).is_some(), wrong, "{code}, {row:?}");
    }
    let paper = "## Where a VM is started\n\n| file | locked in |\n| --- | --- |\n| `a/b.rs` | yes |\n\n## End\n| `c` | yes |\n";
    assert_eq!(rows(paper).into_iter().collect::<Vec<_>>(), [("a/b.rs", "yes |")]);
}
