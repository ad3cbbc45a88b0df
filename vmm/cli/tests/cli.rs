//! Tests of the program as a user runs it: arguments and scripts in, streams and exit statuses out.
//!
//! Tests that boot a VM are ignored, with a reason, where /dev/kvm cannot be used.

#[path = "cli/api.rs"]
mod api;
#[path = "cli/auto.rs"]
mod auto;
#[path = "cli/ci.rs"]
mod ci;
#[path = "cli/confinement.rs"]
mod confinement;
#[path = "cli/ctl.rs"]
mod ctl;
#[path = "cli/deploy.rs"]
mod deploy;
#[path = "cli/endings.rs"]
mod endings;
#[path = "cli/habits.rs"]
mod habits;
#[path = "cli/json.rs"]
mod json;
#[path = "cli/kernel.rs"]
mod kernel;
#[path = "cli/limits.rs"]
mod limits;
#[path = "cli/lines.rs"]
mod lines;
#[path = "cli/linux.rs"]
mod linux;
#[path = "cli/live.rs"]
mod live;
#[path = "cli/metrics.rs"]
mod metrics;
#[path = "cli/prompt.rs"]
mod prompt;
#[path = "cli/pty.rs"]
mod pty;
#[path = "cli/report.rs"]
mod report;
#[path = "cli/serial.rs"]
mod serial;
#[path = "cli/silent.rs"]
mod silent;
#[path = "cli/snapshots.rs"]
mod snapshots;
#[path = "cli/top.rs"]
mod top;
#[path = "cli/typist.rs"]
mod typist;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use endings::LIMIT;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

type Test = (&'static str, fn());

const HOSTED: &[Test] = &[
    ("wrong_usage_is_status_2", wrong_usage_is_status_2),
    ("help_and_version_are_status_0", help_and_version_are_status_0),
    ("a_good_script_is_ok", a_good_script_is_ok),
    ("every_error_of_a_script_is_told", every_error_of_a_script_is_told),
    ("a_wrong_script_runs_nothing", a_wrong_script_runs_nothing),
    ("a_script_has_to_fit_the_machine", a_script_has_to_fit_the_machine),
];

const ON_KVM: &[Test] = &[
    ("unusable_kernels_are_status_2", unusable_kernels_are_status_2),
    ("a_host_without_kvm_is_status_3", a_host_without_kvm_is_status_3),
    ("a_user_who_may_not_use_kvm_is_status_3", a_user_who_may_not_use_kvm_is_status_3),
    ("an_experiment_is_told_and_written", an_experiment_is_told_and_written),
    ("input_that_is_a_file_is_no_input", input_that_is_a_file_is_no_input),
    ("a_guest_that_panics_is_status_4", a_guest_that_panics_is_status_4),
    ("a_guest_that_powers_off_is_status_0", a_guest_that_powers_off_is_status_0),
    ("a_reset_that_was_not_wanted_is_status_4", a_reset_that_was_not_wanted_is_status_4),
    ("a_script_resets_the_machine_also_under_no_reboot", a_script_resets_the_machine_also_under_no_reboot),
    ("resets_without_end_cost_nothing", resets_without_end_cost_nothing),
    ("a_host_that_cannot_reset_is_told", a_host_that_cannot_reset_is_told),
    ("the_demo_does_what_it_shows", the_demo_does_what_it_shows),
    ("a_failed_expectation_is_status_1", a_failed_expectation_is_status_1),
    (
        "a_refused_plug_is_status_1_and_the_session_goes_on",
        a_refused_plug_is_status_1_and_the_session_goes_on,
    ),
    ("a_closed_pipe_ends_a_session", a_closed_pipe_ends_a_session),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One at a time: VMs share the host's CPUs, and have deadlines.
    arguments.test_threads.get_or_insert(1);
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let missing = device.err().map(|error| format!("/dev/kvm cannot be used: {error}"));
    let trial = |&(name, test): &Test, missing: Option<&String>| {
        if let Some(reason) = missing.filter(|_| !arguments.list) {
            eprintln!("SKIP {name}: {reason}");
        }
        let run = move || {
            let _left = EndsWhatIsLeft::of(name);
            test();
            Ok::<(), Failed>(())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    let hosted = HOSTED
        .iter()
        .chain(auto::HOSTED)
        .chain(ci::HOSTED)
        .chain(ctl::HOSTED)
        .chain(json::HOSTED)
        .chain(linux::HOSTED)
        .chain(report::HOSTED)
        .chain(snapshots::HOSTED)
        .chain(top::HOSTED)
        .chain(deploy::HOSTED)
        .chain(habits::HOSTED)
        .map(|test| trial(test, None));
    let on_kvm = ON_KVM
        .iter()
        .chain(api::TESTS)
        .chain(auto::TESTS)
        .chain(ci::TESTS)
        .chain(confinement::TESTS)
        .chain(ctl::TESTS)
        .chain(deploy::TESTS)
        .chain(endings::TESTS)
        .chain(habits::TESTS)
        .chain(json::TESTS)
        .chain(report::TESTS)
        .chain(limits::TESTS)
        .chain(live::TESTS)
        .chain(metrics::TESTS)
        .chain(prompt::TESTS)
        .chain(serial::TESTS)
        .chain(silent::TESTS)
        .chain(snapshots::TESTS)
        .chain(top::TESTS)
        .map(|test| trial(test, missing.as_ref()));
    libtest_mimic::run(&arguments, hosted.chain(on_kvm).collect()).exit_code()
}

/// Ends the programs of a test that has failed, or that waits for longer than [`MOST_TIME`]. They hold the streams of this
/// process, for whose end its caller waits.
struct EndsWhatIsLeft {
    /// Dropped when the test ends.
    _running: Sender<()>,
}

/// Far more than any test takes.
const MOST_TIME: Duration = Duration::from_secs(600);

impl EndsWhatIsLeft {
    fn of(name: &'static str) -> Self {
        let (running, ended) = channel::<()>();
        thread::spawn(move || {
            if ended.recv_timeout(MOST_TIME) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{name} still waits after {MOST_TIME:?}: its programs are ended");
                end_programs();
            }
        });
        Self { _running: running }
    }
}

impl Drop for EndsWhatIsLeft {
    fn drop(&mut self) {
        if thread::panicking() {
            end_programs();
        }
    }
}

/// Ends the children of this process.
fn end_programs() {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return };
    let lists = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("children")));
    let children: Vec<String> =
        lists.flatten().flat_map(|list| list.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    for child in children.iter().filter(|child| !child.is_empty()) {
        drop(Command::new("kill").args(["-KILL", child]).status());
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tidevm"))
}

fn tidevm(arguments: &[&str]) -> Output {
    program().args(arguments).stdin(Stdio::null()).output().expect("the program runs")
}

fn with_input(arguments: &[&str], input: &str) -> Output {
    fed(program().args(arguments), input)
}

/// Runs `command` with `input` on its standard input.
fn fed(command: &mut Command, input: &str) -> Output {
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = streams.spawn().expect("the program runs");
    let written = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    // A program that refuses its arguments may end before it reads.
    if let Err(error) = written {
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "it reads its input: {error}");
    }
    child.wait_with_output().expect("it ends")
}

fn spawn(arguments: &[&str]) -> Child {
    let mut command = program();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The place of a file in the scratch folder. There is none.
fn path(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(fs::remove_file(&path));
    path
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn scratch(name: &str, content: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, content).expect("the scratch folder is writable");
    path
}

/// Asserts the status and that stderr contains `stderr`. Returns stdout.
#[track_caller]
fn assert_status(output: &Output, status: i32, stderr: &str) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "stdout:\n{out}\nstderr:\n{err}");
    assert!(err.contains(stderr), "no `{stderr}` in stderr:\n{err}");
    out
}

const SMALL: &[&str] = &["run", "--memory", "128M", "--hotplug", "size=256M", "--console", "off"];

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [SMALL, more].concat()
}

fn wrong_usage_is_status_2() {
    let wrong: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["runn"], "unrecognized subcommand"),
        (&["demo", "--script", "-"], "unexpected argument"),
        (&["demo", "--cpus", "0"], "there can be 1 to"),
        (&["demo", "--memory", "1M"], "the guest needs at least"),
        (&["run", "--memory", "2X"], "not a size such as 512M"),
        (&["run", "--memory", "1M"], "the guest needs at least"),
        (&["run", "--cpus", "0"], "there can be 1 to"),
        (&["run", "--hotplug", "size=100M"], "must be a multiple of the guest's memory block, 128M"),
        (&["run", "--hotplug", "size=128M,block=3M"], "block=3M: must be a power of two"),
        (&["run", "--hotplug", "size=128M,requested=3M"], "must be a multiple of its block, 2M"),
        (&["run", "--hotplug", "size=128M,requested=256M"], "the region has only 128M"),
        (&["run", "--hotplug", "size=16T"], "beyond the 2T"),
        (&["run", "--numa", "cpus=1"], "memory=SIZE is missing"),
        (&["run", "--numa", "memory=128M,cpus=1"], "the nodes have 128M together, and --memory is 256M"),
        (&["run", "--numa", "memory=256M"], "the nodes have 0 vCPUs together, and --cpus is 1"),
        (
            &["run", "--numa", "memory=100M,cpus=1", "--numa", "memory=156M"],
            "--numa #0 memory=100M: must be a multiple of the guest's memory block, 128M (try 128M)",
        ),
        (
            &["run", "--pmem", "size=130M"],
            "--pmem #0 size=130M: must be a multiple of the guest's memory block",
        ),
        (&["run", "--pmem", "size=0"], "--pmem #0 size=0"),
        (&["run", "--pmem", "size=16T"], "beyond the 2T"),
        (&["run", "--init", "sloth"], "the policies are: eager, deferred, lazy"),
        (&["run", "--console", "stdio", "--json"], "both write standard output"),
        (&["run", "--script", "no/such/file"], "cannot read the script no/such/file"),
        (&["script", "check"], "FILE"),
        (&["experiment"], "NAME|all"),
        (&["experiment", "late-oom"], "possible values: early-oom, memmap-oom, offline-race, double-init,"),
        (&["experiment", "early-oom", "--output", "/dev/null/x"], "--output /dev/null/x: Not a directory"),
    ];
    for (arguments, message) in wrong {
        let out = assert_status(&tidevm(arguments), 2, message);
        // The lines of a session that was refused have a test of their own.
        assert!(out.is_empty() || arguments.contains(&"--json"), "{arguments:?}: {out}");
    }
}

fn help_and_version_are_status_0() {
    assert!(assert_status(&tidevm(&["run", "--help"]), 0, "").contains("--memmap-on-memory"));
    assert!(assert_status(&tidevm(&["--help"]), 0, "").contains("4  the guest died"));
    assert!(assert_status(&tidevm(&["--version"]), 0, "").starts_with("tidevm "));
}

fn a_good_script_is_ok() {
    let path = scratch("good.script", "plug 1G\nrepeat 3 {\n  check # all\n}\n");
    let path = path.to_str().expect("UTF-8");
    assert_eq!(assert_status(&tidevm(&["script", "check", path]), 0, ""), format!("{path}: OK, 4 steps\n"));
    let out = assert_status(&with_input(&["script", "check", "-"], "stats"), 0, "");
    assert_eq!(out, "<stdin>: OK, 1 step\n");
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo.script");
    assert_status(&tidevm(&["script", "check", demo]), 0, "");
}

fn every_error_of_a_script_is_told() {
    let output = with_input(&["script", "check", "-"], "plug 1G\n  grow 2G\nplug 1G\nresize größe\n");
    assert_eq!(assert_status(&output, 2, ""), "");
    let lines = text(&output.stderr);
    let lines: Vec<&str> = lines.lines().collect();
    assert!(lines[0].starts_with("<stdin>:2:3: expected a command (resize, plug, "), "{lines:#?}");
    assert_eq!(lines[1..3], ["2 |   grow 2G", "  |   ^"]);
    assert_eq!(lines[3], "<stdin>:4:8: expected a size such as 2G, found `größe`");
    assert_eq!(lines[4..], ["4 | resize größe", "  |        ^"]);

    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("binary.script");
    fs::write(&path, b"plug \xff").expect("the scratch folder is writable");
    assert_status(&tidevm(&["script", "check", path.to_str().expect("UTF-8")]), 2, "is no text");
}

fn a_wrong_script_runs_nothing() {
    let script = scratch("wrong.script", "plug 2M\nplug\n");
    let output = tidevm(&small(&["--script", script.to_str().expect("UTF-8")]));
    assert_eq!(assert_status(&output, 2, "wrong.script:2:5: expected a size above 0"), "");
}

fn a_script_has_to_fit_the_machine() {
    let unfit = [
        (&small(&[])[..], "check\nplug 3M\n", "unfit.script:2:1: 3M is not a multiple of the block size 2M"),
        (&["run"], "plug 2M\n", "no --hotplug was given"),
        (&["run"], "pmem map 0\n", "no --pmem was given"),
    ];
    for (options, script, message) in unfit {
        let script = scratch("unfit.script", script);
        let output = tidevm(&[options, &["--script", script.to_str().expect("UTF-8")]].concat());
        assert_eq!(assert_status(&output, 2, message), "");
    }
}

fn unusable_kernels_are_status_2() {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let no_elf =
        scratch("no.elf", "I am no kernel, but I am longer than the header of an ELF file would be.");
    for path in ["no/such/kernel", folder, no_elf.to_str().expect("UTF-8")] {
        assert_status(&tidevm(&["run", "--kernel", path]), 2, path);
    }
    let tiny = kernel::write("initrd-host", &kernel::exit_with(0));
    let tiny = tiny.to_str().expect("UTF-8");
    assert_status(&tidevm(&["run", "--kernel", tiny, "--initrd", "no/such/initrd"]), 2, "no/such/initrd");
    let large = scratch("large.initrd", "");
    fs::File::options()
        .write(true)
        .open(&large)
        .and_then(|file| file.set_len(33 << 20))
        .expect("a sparse file");
    let large = large.to_str().expect("UTF-8");
    let output = tidevm(&["run", "--memory", "32M", "--kernel", tiny, "--initrd", large]);
    assert_status(&output, 2, "--initrd behind the kernel needs memory up to 0x");
    assert_status(&output, 2, "beyond the first 32M of boot memory: make --memory larger");
}

/// Runs in its own mount namespace, in which the device can be another one, or absent.
fn a_host_without_kvm_is_status_3() {
    for (hide, message) in [
        ("mount --bind /dev/null /dev/kvm", "/dev/kvm"),
        ("mount -t tmpfs none /dev", "cannot open /dev/kvm: No such file or directory (os error 2). "),
    ] {
        let apart = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--", "sh", "-c", script, env!("CARGO_BIN_EXE_tidevm")]);
            command.stdin(Stdio::null()).output()
        };
        match apart(hide) {
            Ok(probe) if probe.status.success() => {
                let output = apart(&format!("{hide} && exec \"$0\" demo")).expect("unshare ran before");
                assert_eq!(assert_status(&output, 3, message), "");
            }
            _ => eprintln!("SKIP a_host_without_kvm_is_status_3: /dev/kvm cannot be hidden without root"),
        }
    }
}

fn a_user_who_may_not_use_kvm_is_status_3() {
    /// The user `nobody`, on every Linux.
    const NOBODY: u32 = 65534;
    let mode = fs::metadata("/dev/kvm").expect("it was opened").permissions().mode();
    let others = mode & 0o006;
    // A group that may not use the device helps nobody who joins it.
    let group_may = mode & 0o060 == 0o060;
    // In a container, groups are those of the host.
    let hint = match (group_may, Path::new("/.dockerenv").exists()) {
        (true, false) => "USER, then log in again)",
        (false, false) => "chmod 660 /dev/kvm)",
        (_, true) => "docker run --group-add",
    };
    let probe = Command::new(env!("CARGO_BIN_EXE_tidevm")).arg("--version").uid(NOBODY).gid(NOBODY).output();
    match probe {
        Ok(probe) if probe.status.success() && others == 0 => {
            let output = program().arg("demo").uid(NOBODY).gid(NOBODY).output().expect("it ran before");
            assert_eq!(assert_status(&output, 3, hint), "");
        }
        _ => eprintln!(
            "SKIP a_user_who_may_not_use_kvm_is_status_3: only root can become a user who may run this \
             program but not use /dev/kvm"
        ),
    }
}

fn an_experiment_is_told_and_written() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("experiment/new");
    drop(fs::remove_dir_all(&folder));
    let output = tidevm(&["experiment", "early-oom", "--json", "--output", folder.to_str().expect("UTF-8")]);
    let out = assert_status(&output, 0, "early-oom, zones do not grow ... ");
    let data: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (data["passed"].as_bool(), data["experiments"].as_array().map(Vec::len)),
        (Some(true), Some(1))
    );
    let read = |name: &str| fs::read_to_string(folder.join(name)).expect("it is written");
    assert_eq!(read("experiments.json"), out);
    assert!(read("experiments.txt").contains("1 of 1 experiments show what they should"));
    let page = read("experiments.html");
    assert!(page.contains("percpu_buf: out of memory"));
    // Memory over time of both sides, one of which does not come so far.
    assert_eq!(page.matches("over time</summary>").count(), 2, "{page}");
    assert_eq!(page.matches("<svg class=\"time\"").count(), 1, "{page}");
}

/// There is not even a warning: a file cannot be waited for.
fn input_that_is_a_file_is_no_input() {
    let kernel = kernel::write("poweroff-stdio", &kernel::exit_with(0));
    let file = scratch("input", "some text\n");
    for input in ["/dev/null", file.to_str().expect("UTF-8")] {
        let mut command = program();
        command.args(["run", "--console", "stdio", "--kernel"]).arg(&kernel);
        command.stdin(fs::File::open(input).expect("it is there"));
        let output = command.output().expect("the program runs");
        assert_status(&output, 0, "");
        assert_eq!(text(&output.stderr), "", "{input}");
    }
}

fn a_guest_that_panics_is_status_4() {
    for (name, code) in
        [("panic", kernel::exit_with(1)), ("oom", kernel::exit_with(2)), ("fault", kernel::FAULT.to_vec())]
    {
        let path = kernel::write(name, &code);
        let path = path.to_str().expect("UTF-8");
        let output = tidevm(&["run", "--kernel", path]);
        assert_status(&output, 4, "rip");
        let output = with_input(&["run", "--kernel", path, "--json", "--script", "-"], "sleep 60s");
        let out = assert_status(&output, 4, "rip");
        let end = lines::events(&out).pop().expect("an end");
        assert_eq!((end["outcome"].as_str(), end["status"].as_u64()), (Some("died"), Some(4)));
    }
}

fn a_guest_that_powers_off_is_status_0() {
    let path = kernel::write("poweroff", &kernel::exit_with(0));
    let path = path.to_str().expect("UTF-8");
    assert_status(&tidevm(&["run", "--kernel", path]), 0, "");
    // With a script, the same end is a failure: not all steps were run.
    let output = with_input(&["run", "--kernel", path, "--script", "-"], "sleep 60s");
    assert!(assert_status(&output, 1, "").contains("the guest powered off"));
}

fn a_reset_that_was_not_wanted_is_status_4() {
    let path = kernel::write("reset-once", kernel::RESET);
    let path = path.to_str().expect("UTF-8");
    let why = "the guest reset the machine, and rebooting is off";
    assert_status(&tidevm(&["run", "--no-reboot", "--kernel", path]), 4, why);
    let output =
        with_input(&["run", "--no-reboot", "--kernel", path, "--json", "--script", "-"], "sleep 60s");
    let out = assert_status(&output, 4, why);
    let end = lines::events(&out).pop().expect("an end");
    assert_eq!((end["outcome"].as_str(), end["status"].as_u64()), (Some("died"), Some(4)));
}

/// The machine of a script without `reset` cannot be reset: its event loop has given up the calls.
fn a_script_resets_the_machine_also_under_no_reboot() {
    let options = ["run", "--no-reboot", "--memory", "128M", "--hotplug", "size=128M", "--console", "off"];
    let script = "plug 128M\nreset\nexpect resets == 1\nexpect plugged == 128M within 60s";
    let run = |more: &[&str]| with_input(&[&options[..], more, &["--script", "-"]].concat(), script);
    let output = run(&["--json"]);
    let out = assert_status(&output, 0, "");
    let events = lines::told(&out);
    let (step, end) = (&events[3], events.last().expect("an end"));
    assert_eq!((step["command"].as_str(), step["ok"].as_bool()), (Some("reset"), Some(true)), "{step}");
    assert_eq!(
        (step["note"].as_str(), &step["devices"][0]["requested"]),
        (None, &(128 << 20).into()),
        "{step}"
    );
    assert_eq!((end["resets"].as_u64(), end["outcome"].as_str()), (Some(1), Some("done")), "{end}");
    let out = assert_status(&run(&[]), 0, "").to_owned();
    assert!(out.contains("4 steps done") && out.contains(", 1 reset"), "{out}");
}

/// The lines of a process's stderr, so that a test can wait for each.
fn said(child: &mut Child) -> Receiver<String> {
    let (lines, said) = channel();
    let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    // Ends with the process, or when the receiver is dropped.
    thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
    said
}

/// Descriptors, threads, mappings and MiB of memory of a process.
fn resources(process: u32) -> [usize; 4] {
    let folder = PathBuf::from(format!("/proc/{process}"));
    let entries = |name: &str| fs::read_dir(folder.join(name)).expect("a process").count();
    let text = |name: &str| fs::read_to_string(folder.join(name)).expect("a process");
    let status = text("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: usize = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    [entries("fd"), entries("task"), text("maps").lines().count(), kib >> 10]
}

fn resets_without_end_cost_nothing() {
    /// Larger than the use by one reset under way, smaller than a leak of one per reset.
    const UNDER_WAY: usize = 20;
    let path = kernel::write("resets", kernel::RESET);
    let mut command = program();
    command.args(["run", "--cpus", "2", "--hotplug", "size=1G", "--kernel"]).arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let said = said(&mut child);
    let await_resets = |count| (0..count).for_each(|_| drop(said.recv_timeout(LIMIT).expect("it goes on")));
    await_resets(5);
    let before = resources(child.id());
    await_resets(2 * UNDER_WAY);
    let after = resources(child.id());
    endings::kill("-TERM", &child);
    assert_eq!(endings::end(&mut child).code(), Some(0));
    let grown = before.iter().zip(after).any(|(before, after)| after > before + UNDER_WAY);
    assert!(!grown, "{before:?} descriptors, threads, mappings and MiB, and then {after:?}");
}

fn a_host_that_cannot_reset_is_told() {
    let path = kernel::write("resets-until", kernel::RESET);
    let mut child = spawn(&["run", "--kernel", path.to_str().expect("UTF-8")]);
    let said = said(&mut child);
    said.recv_timeout(LIMIT).expect("it goes on");
    let limit = ["--nofile=3", "--pid", &child.id().to_string()];
    assert!(Command::new("prlimit").args(limit).status().expect("prlimit").success());
    assert_eq!(endings::end(&mut child).code(), Some(3));
    let said: Vec<_> = said.iter().filter(|line| !line.is_empty()).collect();
    // Any of several files may be the one beyond the limit.
    let [what, why] = &said[..] else { panic!("{said:?}") };
    assert_eq!(what, "the machine could not be started again after a reset");
    assert!(why.contains("cannot") && why.ends_with("Too many open files (os error 24)"), "{why}");
}

fn the_demo_does_what_it_shows() {
    let out = assert_status(&tidevm(&["demo"]), 0, "");
    for part in ["expect memmap.boot_pages == 0", "32768 pages intact", "32768 pages given back", "s/GiB"] {
        assert!(out.contains(part), "no `{part}`:\n{out}");
    }
    assert!(!out.contains('\x1b'), "no colours without a terminal:\n{out}");
}

fn a_failed_expectation_is_status_1() {
    let output = with_input(&small(&["--script", "-"]), "plug 2M\nexpect plugged == 4M\nresize 0\n");
    let out = assert_status(&output, 1, "");
    assert!(out.contains("plugged is 2M") && !out.contains("resize 0"), "{out}");
}

fn a_refused_plug_is_status_1_and_the_session_goes_on() {
    let output = with_input(&small(&["--script", "-"]), "plug 2M\nplug 256M\nresize 0\n");
    let out = assert_status(&output, 1, "");
    assert!(out.contains("refused: 258M does not fit into the region of 256M"), "{out}");
    assert!(out.contains("resize 0") && out.contains("1 of 3 steps failed"), "{out}");
}

fn a_closed_pipe_ends_a_session() {
    let mut child = spawn(&small(&["--script", "-"]));
    drop(child.stdout.take());
    drop(child.stdin.take().map(|mut input| input.write_all(b"sleep 10m")));
    let output = child.wait_with_output().expect("it ends");
    assert_status(&output, 1, "cannot write to standard output");
}
