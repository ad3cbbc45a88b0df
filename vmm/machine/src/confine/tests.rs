//! A forbidden call of each kind of thread ends its process with a report; what the rules say is what the filters do
//! and what `docs/confinement.md` says. Sessions in booted guests show that the rules are enough.
//!
//! A filter cannot be taken off, so each test runs in a process of its own, which an environment variable tells what
//! to do.
#![expect(unsafe_code, reason = "system calls that a filter forbids or allows")]

use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, ptr, thread};

use tidevm_abi::Size;

use super::rules::{Check, EVERY, Kind, Rule};
use super::{Confinement, FORBIDDEN, Seccomp};
use crate::budget::Budget;

const INNER: &str = "TIDEVM_TEST_CONFINED";

/// Runs the test of this name in a process of its own, which finds `words` in [`INNER`].
fn apart(test: &str, words: &str) -> Output {
    let name = format!("confine::tests::{test}");
    command_apart(&name, words).output().unwrap()
}

/// The command of [`apart`]. A process that hangs is ended after a minute, with status 124.
fn command_apart(name: &str, words: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg("60").arg(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INNER, words);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn kind(name: &str) -> Kind {
    Kind::ALL.into_iter().find(|kind| kind.to_string() == name).unwrap()
}

/// Makes `call` in a thread with the filter of `kind` and ends the process with status 0 if it returns. What comes
/// before and after is allowed in every thread.
fn call_in(kind: Kind, mode: Seccomp, call: impl FnOnce() + Send + 'static) -> ! {
    let confined = thread::Builder::new().name("suspect".to_owned()).spawn(move || {
        Confinement { seccomp: mode, ..Confinement::default() }.filter(kind).unwrap();
        call();
        // SAFETY: the call ends the process.
        unsafe { libc::_exit(0) }
    });
    confined.unwrap().join().unwrap();
    unreachable!("the thread ends the process");
}

/// A system call without arguments that matter.
fn make(call: libc::c_long, arguments: [libc::c_ulong; 4]) {
    let [first, second, third, fourth] = arguments;
    // SAFETY: each call of these tests fails or changes nothing that the process uses: it ends right after.
    unsafe { libc::syscall(call, first, second, third, fourth, -1, 0) };
}

const fn flags(flags: libc::c_int) -> libc::c_ulong {
    flags as libc::c_ulong
}

/// Calls that a guest's captor would want, and their arguments. Under a filter none is made.
const WANTED: [(&str, libc::c_long, [libc::c_ulong; 4]); 20] = [
    ("execve", libc::SYS_execve, [0; 4]),
    ("open", libc::SYS_open, [0; 4]),
    ("socket", libc::SYS_socket, [flags(libc::AF_INET), flags(libc::SOCK_STREAM), 0, 0]),
    ("ptrace", libc::SYS_ptrace, [flags(libc::PTRACE_ATTACH as libc::c_int), 0, 0, 0]),
    ("kill", libc::SYS_kill, [0, 0, 0, 0]),
    ("tgkill", libc::SYS_tgkill, [1, 1, 0, 0]),
    ("fork", libc::SYS_fork, [0; 4]),
    ("setuid", libc::SYS_setuid, [0; 4]),
    ("mount", libc::SYS_mount, [0; 4]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
    ("process_vm_writev", libc::SYS_process_vm_writev, [0; 4]),
    ("bpf", libc::SYS_bpf, [0; 4]),
    // By their arguments.
    ("rt_sigaction", libc::SYS_rt_sigaction, [flags(libc::SIGSYS), 0, 0, 8]),
    ("prctl", libc::SYS_prctl, [flags(libc::PR_SET_NAME), 0, 0, 0]),
    ("fcntl", libc::SYS_fcntl, [0, flags(libc::F_DUPFD), 0, 0]),
    ("ioctl", libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0]),
    ("mprotect", libc::SYS_mprotect, [0, 4096, flags(libc::PROT_READ | libc::PROT_EXEC), 0]),
    (
        "mmap",
        libc::SYS_mmap,
        [0, 4096, flags(libc::PROT_EXEC), flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)],
    ),
    ("mmap", libc::SYS_mmap, [0, 4096, flags(libc::PROT_READ), flags(libc::MAP_PRIVATE)]),
    ("madvise", libc::SYS_madvise, [0, 4096, flags(libc::MADV_DOFORK), 0]),
];

/// Whether `kind` may make the call whatever its arguments are: a starter calls some that other kinds do not.
fn may(kind: Kind, name: &str) -> bool {
    kind.rules().any(|rule| rule.call.name() == name && matches!(rule.check, Check::Any))
}

/// What a thread keeps and frees is up to the guest. glibc opens a file when a thread's own heap shrinks.
#[test]
fn a_thread_that_frees_much_makes_no_forbidden_call() {
    const NAME: &str = "a_thread_that_frees_much_makes_no_forbidden_call";
    if let Ok(kind_name) = env::var(INNER) {
        Confinement { seccomp: Seccomp::On, ..Confinement::default() }.prepare_heap();
        call_in(kind(&kind_name), Seccomp::On, || {
            let pieces: Vec<_> = (0..64 << 10).map(|_| Box::new([0_u8; 1024])).collect();
            drop(std::hint::black_box(pieces));
        });
    }
    for kind in Kind::ALL {
        let output = apart(NAME, &kind.to_string());
        assert!(output.status.success(), "{kind}: {}", text(&output));
    }
}

#[test]
fn a_forbidden_call_of_each_kind_of_thread_ends_the_process_with_its_name() {
    const NAME: &str = "a_forbidden_call_of_each_kind_of_thread_ends_the_process_with_its_name";
    if let Ok(words) = env::var(INNER) {
        let (kind_name, index) = words.rsplit_once('/').unwrap();
        let (_, call, arguments) = WANTED[index.parse::<usize>().unwrap()];
        call_in(kind(kind_name), Seccomp::On, move || make(call, arguments));
    }
    for kind in Kind::ALL {
        for (index, (name, call, _)) in WANTED.iter().enumerate() {
            if may(kind, name) {
                continue;
            }
            let output = apart(NAME, &format!("{kind}/{index}"));
            let text = text(&output);
            assert_eq!(output.status.code(), Some(FORBIDDEN.into()), "{kind}, {name}: {text}");
            let report = format!(
                "seccomp: thread suspect (filter {kind}) made the forbidden system call {name} ({call}), arguments"
            );
            assert!(text.contains(&report), "{kind}, {name}: {text}");
        }
    }
}

#[test]
fn a_call_that_is_only_logged_is_made() {
    if env::var_os(INNER).is_some() {
        // SAFETY: the call has no requirements.
        call_in(Kind::Vcpu { saves: false }, Seccomp::Log, || unsafe { assert!(libc::getppid() > 0) });
    }
    let output = apart("a_call_that_is_only_logged_is_made", "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

/// A thread whose stderr is not read ends its process all the same.
#[test]
fn a_report_that_nothing_reads_holds_no_process_up() {
    if env::var_os(INNER).is_some() {
        let (reader, writer) = std::io::pipe().unwrap();
        // SAFETY: both descriptors are open. The pipe is filled without waiting; then writes to stderr wait.
        unsafe {
            let full = writer.as_raw_fd();
            libc::fcntl(full, libc::F_SETFL, libc::O_NONBLOCK);
            while libc::write(full, [0_u8; 4096].as_ptr().cast(), 4096) > 0 {}
            libc::fcntl(full, libc::F_SETFL, 0);
            libc::dup2(full, libc::STDERR_FILENO);
        }
        call_in(Kind::Vcpu { saves: false }, Seccomp::On, move || {
            make(libc::SYS_getppid, [0; 4]);
            drop(reader);
        });
    }
    let output = apart("a_report_that_nothing_reads_holds_no_process_up", "");
    assert_eq!(output.status.code(), Some(FORBIDDEN.into()), "{}", text(&output));
}

/// SIGSYS that a program sends means no forbidden call.
#[test]
fn a_sigsys_from_elsewhere_reports_no_call() {
    if env::var_os(INNER).is_some() {
        // SAFETY: the signal ends the process.
        call_in(Kind::Vcpu { saves: false }, Seccomp::On, || unsafe {
            let _ = libc::raise(libc::SIGSYS);
        });
    }
    let output = apart("a_sigsys_from_elsewhere_reports_no_call", "");
    assert_eq!(output.status.code(), Some(FORBIDDEN.into()), "{}", text(&output));
    assert!(!text(&output).contains("forbidden"), "{}", text(&output));
}

#[test]
fn a_forbidden_call_leaves_the_terminal_as_it_was() {
    const NAME: &str = "a_forbidden_call_leaves_the_terminal_as_it_was";
    if env::var_os(INNER).is_some() {
        let _terminal = crate::process::Terminal::take().unwrap().unwrap();
        call_in(Kind::Vcpu { saves: false }, Seccomp::On, || make(libc::SYS_getppid, [0; 4]));
    }
    let (mut person, mut program) = (0, 0);
    // SAFETY: the call writes to the two descriptors; the other pointers may be null.
    let made = unsafe { libc::openpty(&mut person, &mut program, ptr::null_mut(), ptr::null(), ptr::null()) };
    assert_eq!(made, 0);
    // SAFETY: openpty has just made the descriptors, and no other value owns them.
    let (_person, program) = unsafe { (OwnedFd::from_raw_fd(person), OwnedFd::from_raw_fd(program)) };
    let local_modes = || {
        let mut state = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: `program` is open, and `state` has room for the answer, which is read when there is one.
        unsafe {
            assert_eq!(libc::tcgetattr(program.as_raw_fd(), state.as_mut_ptr()), 0);
            state.assume_init().c_lflag
        }
    };
    let before = local_modes();
    assert_ne!(before & libc::ECHO, 0);
    let mut command = command_apart(&format!("confine::tests::{NAME}"), "");
    command.stdin(program.try_clone().unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(FORBIDDEN.into()), "{}", text(&output));
    assert!(text(&output).contains("system call getppid"), "{}", text(&output));
    assert_eq!(local_modes(), before);
}

#[test]
fn privileges_are_gone() {
    const NAME: &str = "privileges_are_gone";
    if env::var_os(INNER).is_some() {
        let confinement = Confinement { drop_privileges: true, ..Confinement::default() };
        confinement.before_threads().unwrap();
        // In a thread, which inherits.
        let status = thread::spawn(|| std::fs::read_to_string("/proc/thread-self/status").unwrap());
        println!("{}", status.join().unwrap());
        let mut limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
        // SAFETY: `limit` has room for the answer; the other call takes no pointers.
        let dumpable = unsafe {
            libc::getrlimit(libc::RLIMIT_CORE, &mut limit);
            libc::prctl(libc::PR_GET_DUMPABLE)
        };
        println!("core {} {}, dumpable {dumpable}", limit.rlim_cur, limit.rlim_max);
        return;
    }
    let output = apart(NAME, "");
    let text = text(&output);
    let mut wanted = vec!["NoNewPrivs:\t1", "core 0 0, dumpable 0"];
    let none = ["CapInh", "CapPrm", "CapEff", "CapAmb"].map(|set| format!("{set}:\t{:016x}", 0));
    wanted.extend(none.iter().map(String::as_str));
    // The bounding set can be emptied with CAP_SETPCAP only.
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let effective = own.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    const SETPCAP: u64 = 1 << 8;
    if u64::from_str_radix(effective, 16).unwrap() & SETPCAP != 0 {
        wanted.push("CapBnd:\t0000000000000000");
    }
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

#[test]
fn landlock_leaves_what_is_named_and_what_is_open() {
    const NAME: &str = "landlock_leaves_what_is_named_and_what_is_open";
    // SAFETY: with this flag the call only tells the version.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0, 1) };
    if version < 1 {
        // Not with a macro: the test harness captures the output of macros.
        std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("SKIP {NAME}: this kernel has no Landlock\n").as_bytes(),
        )
        .unwrap();
        return;
    }
    if let Some(folder) = env::var_os(INNER).map(std::path::PathBuf::from) {
        let smaps = std::fs::File::open("/proc/self/smaps").unwrap();
        let opens = |path: &str| std::fs::File::open(path).map_err(|error| error.kind()).map(drop);
        let denied = Err(std::io::ErrorKind::PermissionDenied);
        let confinement = Confinement { landlock: true, ..Confinement::default() };
        confinement.of_starter(&[&folder]).unwrap();
        assert_eq!((opens("/proc/meminfo"), opens("/etc/passwd")), (Ok(()), denied));
        let file = folder.join("result");
        std::fs::write(&file, "text").unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(std::fs::write(env::temp_dir().join("tidevm-landlock-beside"), "").is_err());
        let session = thread::spawn(move || {
            confinement.before_threads().unwrap();
            assert_eq!(opens("/proc/meminfo"), denied);
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err() || version < 4);
            std::io::read_to_string(smaps).unwrap()
        });
        assert!(session.join().unwrap().contains("Rss:"));
        println!("all held");
        return;
    }
    let folder = env::temp_dir().join(format!("tidevm-landlock-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let output = apart(NAME, folder.to_str().unwrap());
    std::fs::remove_dir(&folder).unwrap();
    assert!(output.status.success() && text(&output).contains("all held"), "{}", text(&output));
}

/// A control group below the one of this process, with a limit of 512 MiB. Dropping it removes it.
struct Group(PathBuf);

impl Group {
    /// The group in which this process is now, and a new one. `None` where the host lets this process make none.
    fn new() -> Option<(PathBuf, Self)> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let of_memory = groups.lines().find_map(|line| line.split_once(":memory:"));
        let (mount, file, group) = match of_memory {
            Some((_, group)) => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", group),
            None => {
                ("/sys/fs/cgroup", "memory.max", groups.lines().find_map(|line| line.strip_prefix("0::"))?)
            }
        };
        let outer = Path::new(mount).join(group.trim_start_matches('/'));
        let inner = Self(outer.join(format!("tidevm-test-{}", std::process::id())));
        std::fs::create_dir(&inner.0).ok()?;
        std::fs::write(inner.0.join(file), (512 << 20).to_string()).ok()?;
        Some((outer, inner))
    }

    /// The file by which a process enters `group`.
    fn entry(group: &Path) -> std::fs::File {
        std::fs::File::options().write(true).open(group.join("cgroup.procs")).unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.0));
    }
}

/// An experiment starts a VM when Landlock has taken the files of the control group away. Here the process leaves the
/// group instead, because not every kernel has Landlock.
#[test]
fn a_starter_knows_the_limit_of_its_control_group() {
    const NAME: &str = "a_starter_knows_the_limit_of_its_control_group";
    if let Some(groups) = env::var_os(INNER) {
        let groups: Vec<_> = env::split_paths(&groups).collect();
        let (mut out, mut inside) = (Group::entry(&groups[0]), Group::entry(&groups[1]));
        inside.write_all(b"0").unwrap();
        Confinement { landlock: true, ..Confinement::default() }.of_starter(&[]).unwrap();
        out.write_all(b"0").unwrap();
        let warning = Budget::of_process().warning(Size::gib(1 << 20)).expect("a warning");
        assert!(warning.contains("has 512M") && warning.contains("tidevm-test"), "{warning}");
        println!("all held");
        return;
    }
    let Some((outer, inner)) = Group::new() else {
        // Not with a macro: the test harness captures the output of macros.
        let text = format!("SKIP {NAME}: this process may make no control group with a limit of memory\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        return;
    };
    let groups = env::join_paths([&outer, &inner.0]).unwrap();
    let output = apart(NAME, groups.to_str().unwrap());
    assert!(output.status.success() && text(&output).contains("all held"), "{}", text(&output));
}

/// The rows of the table of `rules` in the paper.
fn rows(rules: &[Rule]) -> String {
    let row = |rule: &Rule| format!("| {} | {} | {} |\n", rule.call.name(), rule.check, rule.why);
    rules.iter().map(row).collect::<String>().replace("|  |", "| |")
}

#[test]
fn the_paper_lists_what_the_filters_allow() {
    const PAPER: &str = include_str!("../../../../docs/confinement.md");
    let mut sections = vec![("every thread".to_owned(), EVERY)];
    for kind in Kind::ALL {
        // A kind that is made of others adds its last group to theirs.
        sections.push((kind.to_string(), kind.own().last().copied().unwrap_or_default()));
    }
    let mut wrong = String::new();
    for (title, rules) in sections {
        let section = PAPER.split_once(&format!("### {title}\n")).map_or("", |(_, section)| section);
        let section = section.split("\n#").next().unwrap_or_default();
        let table = section.lines().filter(|line| line.starts_with('|')).map(|line| format!("{line}\n"));
        let wanted = format!("| system call | arguments | for |\n| --- | --- | --- |\n{}", rows(rules));
        if table.collect::<String>() != wanted {
            wrong += &format!("### {title}\n\n{wanted}\n");
        }
    }
    assert!(wrong.is_empty(), "docs/confinement.md should have:\n{wrong}");
    assert!(PAPER.contains(&format!("status {FORBIDDEN}")));
}

/// What would lead out of the process stands in no filter but the starter's.
#[test]
fn only_a_starter_opens_files_and_starts_threads() {
    const NEVER: &[&str] = &[
        "open",
        "openat",
        "openat2",
        "creat",
        "socket",
        "connect",
        "accept4",
        "execve",
        "execveat",
        "clone",
        "clone3",
        "fork",
        "vfork",
        "ptrace",
        "kill",
        "tkill",
        "setuid",
        "setgid",
        "mount",
        "prctl",
        "seccomp",
        "bpf",
        "keyctl",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "unshare",
        "setns",
        "pidfd_open",
    ];
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Starter) {
        // A control plane takes clients from a socket that is open and no other, and so does the console.
        let takes_clients = matches!(kind, Kind::Api | Kind::Events { .. });
        let taken = |name: &str| takes_clients && name == "accept4";
        let bad: Vec<_> = NEVER.iter().filter(|name| may(kind, name) && !taken(name)).collect();
        assert!(bad.is_empty(), "{kind}: {bad:?}");
    }
}
