//! Tests of VMs that are ended by signals, also while their output is stuck.
#![expect(unsafe_code, reason = "pipes and signal actions are bare system calls")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::pty::Pty;
use super::{Test, kernel, lines, program, small, spawn};

pub const TESTS: &[Test] = &[
    ("signals_end_a_session", signals_end_a_session),
    ("a_signal_ends_an_experiment_in_good_order", a_signal_ends_an_experiment_in_good_order),
    ("a_signal_that_comes_twice_is_one_wish", a_signal_that_comes_twice_is_one_wish),
    ("a_second_signal_ends_a_session_that_is_stuck", a_second_signal_ends_a_session_that_is_stuck),
    ("a_second_signal_ends_a_guest_that_is_stuck", a_second_signal_ends_a_guest_that_is_stuck),
    ("one_signal_ends_a_guest_that_is_stuck_in_time", one_signal_ends_a_guest_that_is_stuck_in_time),
    (
        "a_signal_that_comes_again_at_the_end_is_the_same_wish",
        a_signal_that_comes_again_at_the_end_is_the_same_wish,
    ),
    (
        "time_in_which_the_process_is_stopped_does_not_count",
        time_in_which_the_process_is_stopped_does_not_count,
    ),
    ("a_signal_restores_the_terminal", a_signal_restores_the_terminal),
    ("a_hang_up_that_is_ignored_stays_so", a_hang_up_that_is_ignored_stays_so),
];

/// Longer than the program runs after a signal.
pub const LIMIT: Duration = Duration::from_secs(40);

/// Size of the smallest pipe. Each byte that fills it takes an exit of the guest, which is slow on some hosts.
const PIPE: libc::c_int = 4096;

pub fn kill(signal: &str, child: &Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
}

/// Waits for the end of `child`, at most for [`LIMIT`].
#[track_caller]
pub fn end(child: &mut Child) -> ExitStatus {
    until("the end", || {
        let ended = child.try_wait().expect("a child");
        ended.is_some()
    });
    child.wait().expect("it ended")
}

#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The bytes in a pipe that were not read yet.
fn unread(pipe: &impl AsRawFd) -> libc::c_int {
    let mut waiting: libc::c_int = 0;
    // SAFETY: `pipe` keeps the descriptor open, and the call writes one number to `waiting`.
    assert_eq!(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut waiting) }, 0);
    waiting
}

/// Waits until a pipe is full of lines.
fn until_full(pipe: &impl AsRawFd) {
    let mut last = 0;
    let mut since = Instant::now();
    until("a full pipe", || {
        let waiting = unread(pipe);
        if waiting != last {
            (last, since) = (waiting, Instant::now());
        }
        // A pipe has 16 pages. Each may have unused room for less than a line.
        waiting > 32 << 10 && since.elapsed() > Duration::from_millis(500)
    });
}

impl Pty {
    /// Runs a kernel whose console reads this terminal and writes a pipe of the size [`PIPE`], and waits until it has the terminal.
    fn run(&self, kernel: &str, code: &[u8]) -> Child {
        let before = self.state();
        let mut command = program();
        command.args(["run", "--console", "stdio", "--kernel"]).arg(kernel::write(kernel, code));
        command.stdin(self.program.try_clone().expect("a descriptor"));
        let (reader, writer) = std::io::pipe().expect("a pipe");
        // SAFETY: `writer` keeps the descriptor open, and the call takes no pointers.
        assert_eq!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE) }, PIPE);
        command.stdout(writer).stderr(Stdio::piped());
        // SAFETY: between fork and exec the closure only calls signal, which is async-signal-safe. The call
        // is needed because the caller of the tests may ignore SIGHUP, as `nohup` does.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            })
        };
        let mut child = command.spawn().expect("the program runs");
        child.stdout = Some(OwnedFd::from(reader).into());
        until("the guest's terminal", || self.state() != before);
        child
    }
}

/// A guest whose output has filled a pipe, while input waits for it.
fn stuck(pty: &mut Pty, kernel: &str) -> Child {
    let child = pty.run(kernel, kernel::FLOOD);
    let pipe = child.stdout.as_ref().expect("a pipe");
    // The guest writes byte by byte, so no room is left unused.
    until("a full pipe", || unread(pipe) == PIPE);
    pty.person.write_all(b"is anybody there?\n").expect("a terminal");
    child
}

fn signals_end_a_session() {
    let endings: &[(&str, &[&str], i32)] = &[
        ("-INT", &["--script", "-"], 130),
        ("-TERM", &["--script", "-"], 143),
        ("-QUIT", &["--script", "-"], 131),
        ("-INT", &[], 0),
        ("-TERM", &[], 0),
    ];
    for (signal, script, status) in endings {
        let mut child = spawn(&small(script));
        drop(child.stdin.take().map(|mut input| input.write_all(b"sleep 10m")));
        // The row of the boot is printed when the guest is up.
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        while !line.contains("boot ") {
            line.clear();
            assert!(out.read_line(&mut line).expect("text") > 0, "the guest never came up");
        }
        kill(signal, &child);
        assert_eq!(end(&mut child).code(), Some(*status), "{signal} {script:?}");
    }
}

/// The thread of a session reads the signal, and the thread that waits for it is not ended by it.
fn a_signal_ends_an_experiment_in_good_order() {
    let mut child = spawn(&["experiment", "offline-race", "--json"]);
    let mut progress = child.stderr.take().expect("a pipe");
    let mut said = Vec::new();
    while !said.ends_with(b"... ") {
        let mut byte = [0];
        assert_eq!(progress.read(&mut byte).expect("text"), 1, "{}", String::from_utf8_lossy(&said));
        said.extend(byte);
    }
    // The session begins: its event loop exists when its vCPU runs.
    let threads = format!("/proc/{}/task", child.id());
    until("the threads of a VM", || std::fs::read_dir(&threads).is_ok_and(|threads| threads.count() >= 5));
    kill("-TERM", &child);
    assert_eq!(end(&mut child).code(), Some(143));
    let mut out = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut out).expect("text");
    assert!(out.contains("\"experiments\""), "the verdicts from before are written: {out}");
}

/// As `timeout` does it: the process is signalled, and then its group.
fn a_signal_that_comes_twice_is_one_wish() {
    for _ in 0..3 {
        let mut child = spawn(&small(&["--json", "--script", "-"]));
        drop(child.stdin.take().map(|mut input| input.write_all(b"sleep 10m")));
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        lines::next(&mut out, "ready");
        let mut text = String::new();
        let pid = libc::pid_t::try_from(child.id()).expect("a process");
        for pause in [1, 0] {
            // SAFETY: the call has no requirements. The child was not waited for, so the number is still its.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
            thread::sleep(Duration::from_millis(pause));
        }
        out.read_to_string(&mut text).expect("text");
        assert_eq!(end(&mut child).code(), Some(143));
        assert!(text.lines().last().is_some_and(|end| end.contains("\"status\":143")), "{text}");
    }
}

/// Runs a VM that the first SIGTERM ends, but whose summary waits for room in a pipe. Then SIGTERM comes again.
/// Returns the time from the first signal to the second, the status, and what came out of the pipe.
fn signalled_before_its_summary(kernel: &str) -> (Duration, ExitStatus, String) {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = program();
    command.args(["run", "--json", "--kernel", kernel]).stdin(Stdio::null());
    let mut child = command.stdout(writer.try_clone().expect("a pipe")).spawn().expect("the program runs");
    drop(command);
    // The pipe is empty then, because there is nothing to sample.
    lines::next(&mut BufReader::with_capacity(1, &mut reader), "ready");
    // SAFETY: `writer` keeps the descriptor open. The flag is of the end of the pipe, which the child shares.
    let set = |flags: libc::c_int| unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, flags) };
    assert_eq!(set(libc::O_NONBLOCK), 0);
    while (&writer).write(b"\n").is_ok() {}
    assert_eq!(set(0), 0);
    kill("-TERM", &child);
    let start = Instant::now();
    let threads = format!("/proc/{}/task", child.id());
    // Its main thread and the one for the grace: the VM was dropped.
    until("the end of the VM", || std::fs::read_dir(&threads).is_ok_and(|threads| threads.count() == 2));
    kill("-TERM", &child);
    let between = start.elapsed();
    thread::sleep(Duration::from_millis(100));
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("text");
    (between, end(&mut child), text)
}

/// `timeout` and people send a signal twice. The second one may come when the VM is gone and its summary is not
/// written yet.
fn a_signal_that_comes_again_at_the_end_is_the_same_wish() {
    let kernel = kernel::write("halt-twice", kernel::HALT);
    let kernel = kernel.to_str().expect("UTF-8");
    for _ in 0..5 {
        let (between, status, text) = signalled_before_its_summary(kernel);
        // On a busy host the second signal can come so late that it is another wish.
        if between < Duration::from_millis(900) {
            assert_eq!(status.code(), Some(0), "{status:?}");
            assert!(text.lines().last().is_some_and(|end| end.contains("\"status\":0")), "{text}");
            return;
        }
    }
    panic!("the VM did not end within a second, 5 times");
}

/// The guest answers a `stats`, and then the process is stopped in the middle of a sleep.
fn time_in_which_the_process_is_stopped_does_not_count() {
    const STOPPED: Duration = Duration::from_secs(6);
    let mut child = spawn(&small(&["--json", "--script", "-"]));
    drop(child.stdin.take().map(|mut input| input.write_all(b"stats\nsleep 2s\nresize 128M within 60s")));
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("\"stats\"") {
        line.clear();
        assert!(out.read_line(&mut line).expect("text") > 0, "the guest never came up");
    }
    thread::sleep(Duration::from_millis(200));
    kill("-STOP", &child);
    thread::sleep(STOPPED);
    kill("-CONT", &child);
    let step = lines::next(&mut out, "step");
    let seconds = step["seconds"].as_f64().expect("a time");
    assert!((2.0..STOPPED.as_secs_f64()).contains(&seconds), "{step}");
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("text");
    assert_eq!(end(&mut child).code(), Some(0), "{rest}");
}

fn a_second_signal_ends_a_session_that_is_stuck() {
    let mut child = spawn(&small(&["--script", "-"]));
    drop(child.stdin.take().map(|mut input| input.write_all(b"repeat 1000 {\nstats\n}")));
    until_full(child.stdout.as_ref().expect("a pipe"));
    kill("-INT", &child);
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().expect("a child").is_none(), "a session has time to end");
    kill("-TERM", &child);
    let start = Instant::now();
    assert_eq!(end(&mut child).code(), Some(143));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

fn a_second_signal_ends_a_guest_that_is_stuck() {
    let mut pty = Pty::open();
    let before = pty.state();
    let mut child = stuck(&mut pty, "flood-twice");
    kill("-INT", &child);
    thread::sleep(Duration::from_millis(300));
    kill("-TERM", &child);
    // The program ends by itself, or the system ends it if only its summary is left to print.
    let status = end(&mut child);
    assert!(status.code() == Some(143) || status.signal() == Some(libc::SIGTERM), "{status}");
    assert_eq!(pty.state(), before);
}

fn one_signal_ends_a_guest_that_is_stuck_in_time() {
    let mut pty = Pty::open();
    let before = pty.state();
    let mut child = stuck(&mut pty, "flood-once");
    kill("-QUIT", &child);
    assert_eq!(end(&mut child).code(), Some(131));
    assert_eq!(pty.state(), before);
}

fn a_signal_restores_the_terminal() {
    let pty = Pty::open();
    let before = pty.state();
    for signal in ["-HUP", "-INT", "-QUIT", "-TERM"] {
        let mut child = pty.run("halt", kernel::HALT);
        kill(signal, &child);
        assert_eq!(end(&mut child).code(), Some(0), "{signal}");
        assert_eq!(pty.state(), before, "{signal}");
        let mut said = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
        assert_eq!(said, "", "{signal}");
    }
}

fn a_hang_up_that_is_ignored_stays_so() {
    let kernel = kernel::write("halt-nohup", kernel::HALT);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" run --kernel \"$1\"", env!("CARGO_BIN_EXE_tidevm")]);
    let mut child = command.arg(kernel).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("a shell");
    let threads = format!("/proc/{}/task", child.id());
    until("its threads", || std::fs::read_dir(&threads).is_ok_and(|threads| threads.count() >= 3));
    kill("-HUP", &child);
    thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().expect("a child").is_none());
    kill("-TERM", &child);
    assert_eq!(end(&mut child).code(), Some(0));
}
