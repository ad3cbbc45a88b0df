//! Each thread of a real VM has the filter that the table "Threads" of `docs/confinement.md` says: a signal has the
//! thread make a call that no filter allows, and the report of the call names thread and filter.
//!
//! The call ends its process, so each runs in a process of its own, which an environment variable tells what to do.
#![expect(unsafe_code, reason = "a forbidden system call, and the signal that has a thread make it")]

use std::collections::BTreeMap;
use std::process::{Command, exit, id};
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, park, sleep};
use std::{env, fs, mem, ptr};

use tempfile::NamedTempFile;
use vmm_sys_util::signal::SIGRTMIN;

use super::super::{Beside, Companion, Purpose, VmHandle};
use super::{Config, Confinement, Duration, Instant, Kernel, LIMIT, Vm, kvm};
use crate::config::DiskConfig;
use crate::confine::FORBIDDEN;
use crate::confine::rules::{Kind, Rule};
use crate::snapshot::folder::Destination;

const NAME: &str = "each_thread_of_a_vm_has_the_filter_that_the_paper_says";
const INNER: &str = "TIDEVM_TEST_THREAD";

/// The rows of the table, each with a thread and the way in which it is started. A row may have several.
const CASES: [(&str, &str, &str); 16] = [
    ("`vcpu0`, `vcpu1`, ...", "vcpu0", "no resets"),
    ("`vcpu0`, `vcpu1`, ...", "vcpu1", "reboot"),
    ("`vcpu0`, `vcpu1`, ... with `--save`", "vcpu1", "saves"),
    ("`events` under `--no-reboot`, if the script has no `reset`", "events", "no resets"),
    ("`events` otherwise", "events", "reboot"),
    ("`events` otherwise", "events", "resets"),
    ("`disk0`, `disk1`, ... with `--disk`", "disk1", "reboot"),
    ("`signals`", "signals", "reboot"),
    ("`grace`", "grace", "reboot"),
    ("main; in experiments `session`", "session", "reboot"),
    ("main; in experiments `session`", "session", "no resets"),
    ("main with `--save`", "session", "saves"),
    ("`api`, with `--api-sock`", "api", "reboot"),
    ("`sizer`, with `--auto` or `--api-sock`", "sizer", "reboot"),
    ("`input`, with `--script -` or a prompt", "input", "reboot"),
    ("main, in experiments", "starter", "no VM"),
];

/// Makes a call that no filter allows.
extern "C" fn on_wish(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the call has no requirements.
    unsafe { libc::getppid() };
}

/// Serves nothing, as the thread of the API and the sizer.
fn serve(_: VmHandle, beside: Beside) {
    let over = beside.lock_in();
    loop {
        assert!(over.is_some());
        park();
    }
}

/// Starts a VM of the `start` of a case in a thread called `session`, or locks in a starter. The threads stay.
fn start_threads(start: &str) {
    let (tell, told) = sync_channel(1);
    // hlt; jmp to it
    let kernel = Kernel::new(&[0xf4, 0xeb, 0xfd]);
    let (reboot, resets) = (start == "reboot", start == "resets");
    let confinement = Confinement::STRICT;
    let folder = env::temp_dir().join(format!("tidevm-threads-{}", id()));
    // The child removes it at the end.
    let save = (start == "saves").then(|| Destination::make(&folder).unwrap());
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(512).unwrap();
    let disks = vec![DiskConfig { path: image.path().to_owned(), read_only: true }; 2];
    let config = Config { cpus: 2, disks, reboot, resets, confinement, save, ..kernel.config() };
    let starter = start == "no VM";
    let body = move || {
        let companion = |name, purpose| Companion { name, purpose, body: Box::new(serve) };
        let companions = vec![
            companion("api", Purpose::Serve),
            companion("sizer", Purpose::Watch),
            companion("input", Purpose::Read),
        ];
        let vm = if starter {
            confinement.of_starter(&[]).unwrap();
            None
        } else {
            Some(Vm::start_with(config, companions).unwrap())
        };
        tell.send(()).unwrap();
        loop {
            assert_eq!(vm.is_none(), starter);
            park();
        }
    };
    let name = if starter { "starter" } else { "session" };
    Builder::new().name(name.to_owned()).spawn(body).unwrap();
    told.recv_timeout(LIMIT).unwrap();
}

/// The id of the thread of this process called `name`.
fn thread_id(name: &str) -> libc::pid_t {
    let start = Instant::now();
    loop {
        for task in fs::read_dir("/proc/self/task").unwrap() {
            let task = task.unwrap();
            if fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim() == name {
                return task.file_name().to_str().unwrap().parse().unwrap();
            }
        }
        assert!(start.elapsed() < LIMIT, "no thread {name} within {LIMIT:?}");
        sleep(Duration::from_millis(1));
    }
}

/// Ends this process by a forbidden call of the thread called `name`. A call that is made is status 0.
fn forbidden_call_in(name: &str, start: &str) -> ! {
    let wish = SIGRTMIN() + 1;
    // SAFETY: all members are numbers, or a function pointer that is set. The handler blocks no other signal, because a
    // SIGSYS that is blocked ends the process without a report.
    let handled = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_wish as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(wish, &action, ptr::null_mut())
    };
    assert_eq!(handled, 0);
    start_threads(start);
    // SAFETY: the call takes no pointers, and the signal has a handler.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, id(), thread_id(name), wish) };
    assert_eq!(sent, 0);
    sleep(LIMIT);
    exit(0)
}

/// The kind of the filter that ended a process, by its report about the thread called `name`.
#[track_caller]
fn reported(name: &str, start: &str) -> Kind {
    let mut command = Command::new("timeout");
    command.arg("60").arg(env::current_exe().unwrap());
    command.args(["--exact", &format!("vm::tests::threads::{NAME}"), "--nocapture", "--test-threads=1"]);
    let output = command.env(INNER, format!("{name}/{start}")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FORBIDDEN.into()), "{name}, {start}: {text}");
    let kind = text.split_once(&format!("seccomp: thread {name} (filter ")).and_then(|(_, rest)| {
        let name = rest.split_once(") made the forbidden system call getppid ")?.0;
        Kind::ALL.into_iter().find(|kind| kind.to_string() == name)
    });
    kind.unwrap_or_else(|| panic!("{name}, {start}: {text}"))
}

/// What the filter of `kind` allows, as the table says it: the groups of its rules.
fn groups(kind: Kind) -> String {
    let calls = |rules: &[Rule]| rules.iter().map(|rule| format!("{rule:?}")).collect::<String>();
    let name = |group: &&[Rule]| {
        let ends_with = |kind: &Kind| kind.own().last().is_some_and(|last| calls(last) == calls(group));
        Kind::ALL.into_iter().find(ends_with).expect("a kind of each group").to_string()
    };
    let own = kind.own().iter().map(name);
    std::iter::once("every thread".to_owned()).chain(own).collect::<Vec<_>>().join(", ")
}

#[test]
fn each_thread_of_a_vm_has_the_filter_that_the_paper_says() {
    const PAPER: &str = include_str!("../../../../../docs/confinement.md");
    if let Ok(words) = env::var(INNER) {
        let (name, start) = words.split_once('/').unwrap();
        forbidden_call_in(name, start);
    }
    if !kvm() {
        return;
    }
    let section = PAPER.split_once("\n## Threads\n").expect("the section").1.split("\n## ").next().unwrap();
    let rows =
        section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
    let paper: BTreeMap<&str, &str> = rows.skip(1).filter(|(thread, _)| !thread.starts_with('-')).collect();
    let code: Vec<_> =
        CASES.into_iter().map(|(row, name, start)| (row, groups(reported(name, start)))).collect();
    let wrong: Vec<_> =
        code.iter().filter(|(row, groups)| paper.get(row) != Some(&groups.as_str())).collect();
    assert!(wrong.is_empty(), "docs/confinement.md should have:\n{wrong:#?}");
    let unknown: Vec<_> =
        paper.keys().filter(|thread| !CASES.iter().any(|(row, ..)| row == *thread)).collect();
    assert!(unknown.is_empty(), "rows of docs/confinement.md that no thread shows: {unknown:?}");
}
