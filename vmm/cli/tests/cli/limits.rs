//! Tests of a host that refuses: whatever is refused, and whenever, the status is 3, and the message names it.

use std::fs::{self, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use super::{Test, assert_status, kernel, program, scratch, text};

pub const TESTS: &[Test] = &[
    ("more_than_the_host_can_map_is_status_3", more_than_the_host_can_map_is_status_3),
    ("a_region_needs_no_more_addresses_than_its_size", a_region_needs_no_more_addresses_than_its_size),
    (
        "a_limit_of_addresses_is_status_3_wherever_it_is_met",
        a_limit_of_addresses_is_status_3_wherever_it_is_met,
    ),
    (
        "a_limit_of_descriptors_is_status_3_wherever_it_is_met",
        a_limit_of_descriptors_is_status_3_wherever_it_is_met,
    ),
    ("a_limit_of_tasks_is_status_3_wherever_it_is_met", a_limit_of_tasks_is_status_3_wherever_it_is_met),
    ("a_full_disk_is_status_3", a_full_disk_is_status_3),
    ("verdicts_on_a_full_disk_are_status_3", verdicts_on_a_full_disk_are_status_3),
    ("a_console_on_a_full_disk_is_lost_and_told", a_console_on_a_full_disk_is_lost_and_told),
];

/// Runs the program from a shell that has set a limit.
fn under(limit: &str, arguments: &str) -> Output {
    let script = format!("{limit} && exec \"$0\" {arguments}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_tidevm")]).stdin(Stdio::null());
    command.output().expect("there is a shell")
}

/// Runs on a host that limits a process to 4 GiB of addresses.
fn more_than_the_host_can_map_is_status_3() {
    let limited = |arguments: &str| under(&format!("ulimit -v {}", 4 << 20), &format!("run {arguments}"));
    for (arguments, what) in [
        ("--hotplug size=64G", "the host refuses hotplug region #0 of 64G: Cannot allocate memory"),
        ("--memory 8G", "the host refuses boot memory of 8G: Cannot allocate memory"),
    ] {
        let output = limited(arguments);
        assert_eq!(assert_status(&output, 3, what), "");
        assert_status(&output, 3, "make --memory, --hotplug size= or --pmem size= smaller");
    }
}

/// 16 regions of 1 GiB, on a host that limits a process to 19 GiB of addresses.
fn a_region_needs_no_more_addresses_than_its_size() {
    let path = kernel::write("sixteen-regions", &kernel::exit_with(0));
    let regions = " --hotplug size=1G".repeat(16);
    let output =
        under(&format!("ulimit -v {}", 19 << 20), &format!("run --kernel {}{regions}", path.display()));
    assert_status(&output, 0, "");
}

/// Raises a limit from 1 on until the program runs to its end. Every run before was refused.
#[track_caller]
fn until_it_runs(most: u32, run: impl Fn(u32) -> Output) {
    for limit in 1..=most {
        let output = run(limit);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => {
                assert!(limit > 1, "the limit does not act");
                return;
            }
            // The dynamic linker could not even start the program.
            Some(127) if text.contains("error while loading shared libraries") => {}
            code => assert_eq!(code, Some(3), "limit {limit}: {text}"),
        }
    }
    panic!("still refused with {most}");
}

/// From a limit under which the system cannot even start the program, in steps of 64 KiB, to one under which the
/// program tells that there is no room for the guest.
fn a_limit_of_addresses_is_status_3_wherever_it_is_met() {
    let path = kernel::write("addresses", &kernel::exit_with(0));
    let arguments = format!("run --kernel {}", path.display());
    // Where the system places what it maps is random. So the limit under which it starts the program varies a little.
    const VARIES_KIB: u64 = 1 << 10;
    let mut said: Option<u64> = None;
    for kib in (4 << 10..).step_by(64) {
        let output = under(&format!("ulimit -v {kib}"), &arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let by_the_system = said.is_none_or(|first| kib < first + VARIES_KIB);
        match output.status.code() {
            Some(0) => panic!("the limit does not act: {kib} KiB"),
            Some(3) if text.contains("no room to start") => said = said.or(Some(kib)),
            Some(3) => {}
            // The system ends a program whose file it cannot map, or its dynamic linker tells of a library.
            None if output.status.signal() == Some(libc::SIGSEGV) && text.is_empty() && by_the_system => {}
            Some(127) if text.contains("error while loading shared libraries") && by_the_system => {}
            // Before `main`, the runtime of Rust aborts where it gets no stack for its handler of stack overflows.
            None if text.contains("failed to allocate an alternative stack") && by_the_system => {}
            code => panic!("{kib} KiB: {code:?}, {:?}: {text}", output.status),
        }
        if text.contains("the host refuses boot memory") {
            assert!(said.is_some(), "a limit above {kib} KiB has its own message");
            return;
        }
    }
}

fn a_limit_of_descriptors_is_status_3_wherever_it_is_met() {
    let path = kernel::write("descriptors", &kernel::exit_with(0));
    let arguments = format!("run --kernel {} --cpus 2 --hotplug size=128M", path.display());
    until_it_runs(64, |limit| under(&format!("ulimit -n {limit}"), &arguments));
}

/// KVM starts a thread of its own, late: in the first run of a vCPU. Limits do not act on root, so the program
/// runs as another user, with only the capability to open /dev/kvm.
fn a_limit_of_tasks_is_status_3_wherever_it_is_met() {
    const NOBODY: &str =
        "--reuid=65534 --clear-groups --inh-caps=-all,+dac_override --ambient-caps=+dac_override";
    let path = kernel::write("tasks", &kernel::exit_with(0));
    let run = |limit: &str| {
        let mut command = Command::new("timeout");
        command.args(["20", "setpriv"]).args(NOBODY.split(' ')).args(["prlimit", limit]);
        command.arg(env!("CARGO_BIN_EXE_tidevm")).args(["run", "--cpus", "2", "--kernel"]).arg(&path);
        command.stdin(Stdio::null()).output().expect("there is a shell")
    };
    let probe = run("--nproc=512:");
    if probe.status.success() {
        until_it_runs(32, |limit| run(&format!("--nproc={limit}:")));
    } else {
        eprintln!("SKIP a_limit_of_tasks_is_status_3_wherever_it_is_met: {probe:?}");
    }
}

/// A disk without space.
const FULL: &str = "/dev/full";
const NO_SPACE: &str = "No space left on device";

/// Whatever the program writes to standard output: the answer to a check, a session as JSON and as a table, the verdicts
/// of experiments.
fn a_full_disk_is_status_3() {
    let script = scratch("full.script", "stats\n");
    let kernel = kernel::write("full", kernel::HALT);
    let (script_path, kernel) = (script.to_str().expect("UTF-8"), kernel.to_str().expect("UTF-8"));
    for arguments in [
        &["script", "check", script_path][..],
        &["run", "--kernel", kernel, "--json"],
        &["run", "--kernel", kernel],
    ] {
        let full = OpenOptions::new().write(true).open(FULL).expect("every Linux has it");
        let mut limited = Command::new("timeout");
        limited.arg("60").arg(env!("CARGO_BIN_EXE_tidevm")).args(arguments).stdin(Stdio::null()).stdout(full);
        let output = limited.output().expect("the program runs");
        println!("{arguments:?}");
        assert_status(&output, 3, NO_SPACE);
    }
    drop(fs::remove_file(script));
}

/// The disk has one page, and the three files of the verdicts need more.
fn verdicts_on_a_full_disk_are_status_3() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("full-disk");
    fs::create_dir_all(&folder).expect("the scratch folder is writable");
    let mounted = |then: &str| {
        let script = format!("mount -t tmpfs -o size=4k full-disk \"$1\" && {then}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_tidevm")]).arg(&folder);
        command.stdin(Stdio::null()).output().expect("there is a shell")
    };
    let probe = mounted("true");
    if !probe.status.success() {
        eprintln!("SKIP verdicts_on_a_full_disk_are_status_3: {}", text(&probe.stderr));
        return;
    }
    let output = mounted("exec \"$0\" experiment early-oom --json --output \"$1\"");
    let verdicts = assert_status(&output, 3, NO_SPACE);
    assert!(verdicts.starts_with("{\"passed\":true,"), "they are told all the same: {verdicts}");
}

/// The guest goes on without the file, and its own end is the status. A warning tells the loss.
fn a_console_on_a_full_disk_is_lost_and_told() {
    let code = [kernel::LINE, &kernel::exit_with(0)].concat();
    let mut run = program();
    run.args(["run", "--console", &format!("file:{FULL}"), "--kernel"])
        .arg(kernel::write("full-console", &code));
    let output = run.stdin(Stdio::null()).output().expect("the program runs");
    assert_status(&output, 0, &format!("console output is lost from here on: {NO_SPACE}"));
}
