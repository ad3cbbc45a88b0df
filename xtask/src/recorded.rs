//! Which run of all tests `docs/features.md` records: its date, its commit and its hosts.
//!
//! The record must not make the document differ from run to run, or CI could not compare what it wrote with
//! what is committed. So a run leaves an older record in place as long as everything else is the same. The record
//! names the run that last wrote the document; each later run had the same results, or it would have written it
//! anew. Without its record the document counts as changed: delete the line to record the next run.

use std::fs;
use std::path::Path;
use std::process::Command;

use tidevm_guest_image::workspace_root;

/// How the line of the record begins.
const BEGINNING: &str = "Recorded on ";

/// The line for a run that ends now, with its line end.
pub fn line() -> String {
    let (date, commit) = (date(), commit());
    let linux = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "of an unknown version".to_owned());
    let cpus = read("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu_model(&cpus).unwrap_or("an unknown CPU");
    let kvm = if Path::new("/dev/kvm").exists() { "with" } else { "without" };
    format!(
        "{BEGINNING}{date} at {commit}: Linux {linux}, {cpu}, {kvm} a KVM of its own; and the nested host.\n"
    )
}

/// Today, in UTC.
pub fn date() -> String {
    output("date", &["-u", "+%Y-%m-%d"]).unwrap_or_else(|| "an unknown day".to_owned())
}

/// The commit that is checked out, and whether the working tree differs from it.
pub fn commit() -> String {
    output("git", &["rev-parse", "--short=12", "HEAD"]).map_or_else(
        || "an unknown commit".to_owned(),
        |commit| match output("git", &["status", "--porcelain", "--untracked-files=no"]) {
            Some(changes) if changes.is_empty() => format!("commit {commit}"),
            _ => format!("commit {commit} with changes"),
        },
    )
}

/// The model in the text of `/proc/cpuinfo`.
fn cpu_model(cpus: &str) -> Option<&str> {
    let line = cpus.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(": ")?.1.trim())
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The output of a command that succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(workspace_root()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The document without its record, and whether it had one.
pub fn without(document: &str) -> (String, bool) {
    let is_record = |line: &&str| line.starts_with(BEGINNING);
    let rest: String = document.split_inclusive('\n').filter(|line| !is_record(line)).collect();
    let had_one = rest.len() != document.len();
    (rest, had_one)
}

#[cfg(test)]
mod tests {
    use super::{cpu_model, line, without};

    #[test]
    fn a_record_is_one_line_and_can_be_told_from_the_document() {
        let line = line();
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.ends_with(" the nested host.\n"), "{line}");
        let document = "# Features\n\nsomething\n";
        assert_eq!(without(&format!("# Features\n\n{line}something\n")), (document.to_owned(), true));
        assert_eq!(without(document), (document.to_owned(), false));
    }

    #[test]
    fn the_cpu_is_named_by_its_model() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: AMD EPYC 7\nflags\t: x\n"), Some("AMD EPYC 7"));
        assert_eq!(cpu_model("processor\t: 0\n"), None);
    }
}
