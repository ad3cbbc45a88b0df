//! Tests of what a running program gave away: by its threads as the system shows them, and in a jail.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use super::endings::{end, kill, until};
use super::{Test, assert_status, kernel, program, scratch, text};

pub const TESTS: &[Test] = &[
    ("every_thread_is_locked_in", every_thread_is_locked_in),
    ("filters_can_be_left_out", filters_can_be_left_out),
    (
        "a_console_at_a_socket_is_written_to_in_every_filter",
        a_console_at_a_socket_is_written_to_in_every_filter,
    ),
    ("a_console_in_a_file_is_written_to_in_every_filter", a_console_in_a_file_is_written_to_in_every_filter),
    ("a_jail_has_nothing_else", a_jail_has_nothing_else),
    ("a_jail_ends_with_its_parent", a_jail_ends_with_its_parent),
    ("a_session_runs_in_a_jail", a_session_runs_in_a_jail),
    ("a_jail_needs_root_and_a_folder", a_jail_needs_root_and_a_folder),
    ("the_thread_of_the_api_is_locked_in", the_thread_of_the_api_is_locked_in),
    ("a_machine_in_a_jail_has_an_api", a_machine_in_a_jail_has_an_api),
    ("a_machine_in_a_jail_has_clients_of_its_console", a_machine_in_a_jail_has_clients_of_its_console),
];

/// The user `nobody`, on every Linux.
const NOBODY: u32 = 65534;

const THREADS: [&str; 6] = ["events", "grace", "signals", "tidevm", "vcpu0", "vcpu1"];

/// A process that a test which fails does not leave behind.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended.
        drop(self.0.kill());
    }
}

/// Starts a guest that halts, with two vCPUs. `command` is the program, or starts it.
fn spawn_halted(mut command: Command, name: &str, more: &[&str]) -> Running {
    command.args(["run", "--cpus", "2", "--kernel"]).arg(kernel::write(name, kernel::HALT)).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Running(command.spawn().expect("the program runs"))
}

/// A value in `/proc/.../status`.
fn value<'s>(status: &'s str, key: &str) -> &'s str {
    let found = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
    found.unwrap_or_else(|| panic!("no {key}:\n{status}"))
}

/// The status of each thread of a process, by name. KVM's own thread, which shows in the process, is left out.
fn threads(process: u32) -> BTreeMap<String, String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return BTreeMap::new() };
    let read = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let statuses = tasks.filter_map(|task| read(task.ok()?));
    let named = statuses.map(|status| (value(&status, "Name").to_owned(), status));
    named.filter(|(name, _)| !name.starts_with("kvm-")).collect()
}

/// The threads of a process when all of them exist and have as many filters as `mode` says.
#[track_caller]
fn await_threads(process: u32, mode: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    until("all threads, locked in", || {
        found = threads(process);
        found.keys().eq(THREADS.iter())
            && found
                .values()
                .all(|status| value(status, "Seccomp") == mode && value(status, "NoNewPrivs") == "1")
    });
    found
}

#[track_caller]
fn assert_without_privileges(threads: &BTreeMap<String, String>) {
    for (name, status) in threads {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(value(status, set), "0000000000000000", "{name}: {set}");
        }
    }
}

fn every_thread_is_locked_in() {
    let Running(child) = &mut spawn_halted(program(), "halt-locked-in", &[]);
    let threads = await_threads(child.id(), "2");
    assert_without_privileges(&threads);
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).expect("a process");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..], ["0", "0", "bytes"], "{core}");
    kill("-TERM", child);
    assert_eq!(end(child).code(), Some(0));
}

fn filters_can_be_left_out() {
    let Running(child) = &mut spawn_halted(program(), "halt-unfiltered", &["--seccomp", "off"]);
    assert_without_privileges(&await_threads(child.id(), "0"));
    kill("-TERM", child);
    assert_eq!(end(child).code(), Some(0));
}

/// The answer to `GET /` at the socket `path`, when the machine runs.
fn ask_api(path: &Path) -> String {
    let mut text = String::new();
    until("an answer of the API", || {
        let Ok(mut stream) = UnixStream::connect(path) else { return false };
        stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").expect("it reads");
        text.clear();
        stream.read_to_string(&mut text).is_ok() && text.contains("\"Running\"")
    });
    text
}

fn the_thread_of_the_api_is_locked_in() {
    let path = std::env::temp_dir().join(format!("tidevm-locked-{}.sock", std::process::id()));
    let socket = path.to_str().expect("UTF-8");
    let Running(child) = &mut spawn_halted(program(), "halt-api-locked-in", &["--api-sock", socket]);
    ask_api(&path);
    let threads = threads(child.id());
    assert_eq!(value(&threads["api"], "Seccomp"), "2");
    assert_without_privileges(&threads);
    kill("-TERM", child);
    assert_eq!(end(child).code(), Some(0));
    until("the socket is gone", || !path.exists());
}

fn a_machine_in_a_jail_has_an_api() {
    let Some((_, jail)) = jail("a_machine_in_a_jail_has_an_api") else { return };
    let path = std::env::temp_dir().join(format!("tidevm-jail-{}.sock", std::process::id()));
    let mut more: Vec<&str> = jail.iter().map(String::as_str).collect();
    more.extend(["--api-sock", path.to_str().expect("UTF-8")]);
    let Running(child) = &mut spawn_halted(program(), "halt-api-jail", &more);
    ask_api(&path);
    kill("-TERM", child);
    assert_eq!(end(child).code(), Some(0));
    until("the socket is gone, which lies outside the jail", || !path.exists());
}

/// The sockets' path lies outside the jail, and its clients are taken by a thread that is locked in.
fn a_machine_in_a_jail_has_clients_of_its_console() {
    let Some((_, jail)) = jail("a_machine_in_a_jail_has_clients_of_its_console") else { return };
    let path = std::env::temp_dir().join(format!("tidevm-jail-{}.console", std::process::id()));
    let console = format!("--console=socket:{}", path.display());
    let file = kernel::write("flood-console-jail", kernel::FLOOD);
    let mut command = program();
    command.args(["run", &console, "--kernel"]).arg(file).args(jail).stdout(Stdio::null());
    let mut child = Running(command.spawn().expect("it runs"));
    until("the console", || path.exists());
    let mut first = None;
    until("a client", || {
        first = UnixStream::connect(&path).ok();
        first.is_some()
    });
    let mut said = [0; 3];
    first.as_mut().expect("a client").read_exact(&mut said).expect("output");
    assert_eq!(&said, b"xxx");
    let mut refused = String::new();
    let second = UnixStream::connect(&path).and_then(|mut second| second.read_to_string(&mut refused));
    assert!(second.is_ok() && refused.contains("another client"), "{second:?}: {refused}");
    kill("-TERM", &child.0);
    assert_eq!(end(&mut child.0).code(), Some(0));
    until("the socket is gone, which lies outside the jail", || !path.exists());
}

/// A folder with one file in it, and the options of a jail there. Nothing, and a reason, without root.
fn jail(test: &str) -> Option<(PathBuf, Vec<String>)> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).expect("the scratch folder is writable");
    fs::write(folder.join("only"), "").expect("the scratch folder is writable");
    let status = fs::read_to_string("/proc/self/status").expect("a process");
    // Of the effective capabilities: CAP_SYS_ADMIN makes namespaces.
    let capabilities = u64::from_str_radix(value(&status, "CapEff"), 16).expect("a number");
    if capabilities & 1 << 21 == 0 {
        eprintln!("SKIP {test}: only root with CAP_SYS_ADMIN makes a jail");
        return None;
    }
    let id = NOBODY.to_string();
    let options = ["--jail", folder.to_str().expect("UTF-8"), "--uid", &id, "--gid", &id];
    Some((folder.clone(), options.map(str::to_owned).to_vec()))
}

/// The only child of a process.
#[track_caller]
fn child_of(parent: &Child) -> u32 {
    let file = format!("/proc/{0}/task/{0}/children", parent.id());
    let mut found = None;
    until("the process in the jail", || {
        found = fs::read_to_string(&file).expect("a process").trim().parse().ok();
        found.is_some()
    });
    found.expect("it was found")
}

fn options(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

fn a_jail_has_nothing_else() {
    let Some((_, jail)) = jail("a_jail_has_nothing_else") else { return };
    // With groups that it has to leave.
    let mut grouped = Command::new("setpriv");
    grouped.args(["--groups", "4,5", env!("CARGO_BIN_EXE_tidevm")]);
    let Running(parent) = &mut spawn_halted(grouped, "halt-jail", &options(&jail));
    let inside = child_of(parent);
    let threads = await_threads(inside, "2");
    assert_without_privileges(&threads);
    let ids = format!("{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}");
    for (name, status) in &threads {
        assert_eq!((value(status, "Uid"), value(status, "Gid")), (&*ids, &*ids), "{name}");
        assert_eq!(value(status, "Groups").trim(), "", "{name}");
    }
    assert!(value(&threads["tidevm"], "NSpid").ends_with("\t1"), "the only process of its namespace");
    let of = |file: &str| Path::new("/proc").join(inside.to_string()).join(file);
    let root: Vec<_> =
        fs::read_dir(of("root")).expect("a root").map(|file| file.expect("a file").file_name()).collect();
    assert_eq!(root, ["only"]);
    let mounts = fs::read_to_string(of("mountinfo")).expect("its mounts");
    let fields: Vec<_> = mounts.split_whitespace().collect();
    assert!(mounts.lines().count() == 1 && fields[4] == "/", "{mounts}");
    assert_eq!(
        fields[5].split(',').take(4).collect::<Vec<_>>(),
        ["ro", "nosuid", "nodev", "noexec"],
        "{mounts}"
    );
    kill("-TERM", parent);
    assert_eq!(end(parent).code(), Some(0));
}

fn a_jail_ends_with_its_parent() {
    let Some((_, jail)) = jail("a_jail_ends_with_its_parent") else { return };
    let Running(parent) = &mut spawn_halted(program(), "halt-orphan", &options(&jail));
    let inside = child_of(parent);
    await_threads(inside, "2");
    parent.kill().expect("it runs");
    end(parent);
    until("the end of the process in the jail", || threads(inside).is_empty());
}

/// Resizes ask for the memory that the host holds, and a reset makes a machine of KVM: both without a file.
fn a_session_runs_in_a_jail() {
    let Some((_, jail)) = jail("a_session_runs_in_a_jail") else { return };
    let text = "plug 128M\nexpect host.held <= 128M\nreset\nexpect plugged == 128M within 60s\nresize 0\n";
    let script = scratch("jail.script", text);
    let mut command = program();
    command.args(["run", "--memory", "128M", "--hotplug", "size=256M", "--console", "off", "--script"]);
    let output = command.arg(script).args(&jail).stdin(Stdio::null()).output().expect("the program runs");
    let out = assert_status(&output, 0, "");
    assert!(out.contains("5 steps done") && out.contains("1 reset"), "{out}");

    let mut command = program();
    command.args(["run", "--kernel"]).arg(kernel::write("resets-jail", kernel::RESET)).args(&jail);
    let mut parent =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
    let said = super::said(&mut parent);
    for _ in 0..3 {
        said.recv_timeout(super::LIMIT).expect("it goes on");
    }
    kill("-TERM", &parent);
    assert_eq!(end(&mut parent).code(), Some(0));

    let panic = kernel::write("panic-jail", &kernel::exit_with(1));
    let output = program().args(["run", "--kernel"]).arg(panic).args(&jail).stdin(Stdio::null()).output();
    assert_status(&output.expect("the program runs"), 4, "the guest panicked");
}

fn a_jail_needs_root_and_a_folder() {
    let Some((_, mut jail)) = jail("a_jail_needs_root_and_a_folder") else { return };
    let output = program().arg("run").args(&jail).uid(NOBODY).gid(NOBODY).output();
    match output {
        Ok(output) if !output.status.success() && text(&output.stderr).contains("--jail") => {
            assert_status(
                &output,
                3,
                "--jail needs root, and the user id is 65534: run as root, or without --jail",
            );
        }
        other => eprintln!(
            "SKIP a part of a_jail_needs_root_and_a_folder: nobody cannot run this program: {other:?}"
        ),
    }
    for (folder, message) in [("/no/such", "No such file"), ("/dev/null", "not a directory")] {
        jail[1] = folder.to_owned();
        let output =
            program().arg("run").args(&jail).stdin(Stdio::null()).output().expect("the program runs");
        assert_status(&output, 2, &format!("--jail {folder}: {message}"));
    }
}

fn a_console_at_a_socket_is_written_to_in_every_filter() {
    let path = std::env::temp_dir().join(format!("tidevm-test-{}-console", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a socket");
    let reader = thread::spawn(move || {
        let mut said = String::new();
        listener.accept().and_then(|(mut end, _)| end.read_to_string(&mut said)).map(|_| said)
    });
    let console = format!("--console=connect:{}", path.display());
    let file = kernel::write("reset-at-a-socket", kernel::RESET);
    let output =
        program().args(["run", "--no-reboot", &console, "--kernel"]).arg(file).output().expect("it runs");
    drop(fs::remove_file(&path));
    assert_status(&output, 4, "rebooting is off");
    let said = reader.join().expect("no panic").expect("a console");
    assert_eq!(said, "\n");
}

/// The vCPU writes the lines, and the thread that ends the VM writes the rest.
fn a_console_in_a_file_is_written_to_in_every_filter() {
    let path = scratch("console.txt", "");
    let console = format!("--console=file:{}", path.display());
    // mov dx, 0x3f8; mov al, 'a'; out dx, al; mov al, '\n'; out dx, al; mov al, 'b'; out dx, al
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'a', 0xee, 0xb0, b'\n', 0xee, 0xb0, b'b', 0xee];
    code.extend(kernel::exit_with(1));
    let file = kernel::write("panic-in-a-file", &code);
    let output = program().args(["run", &console, "--kernel"]).arg(file).output().expect("it runs");
    assert_status(&output, 4, "the guest panicked");
    assert_eq!(fs::read_to_string(&path).expect("a file"), "a\nb");
}
