//! A VMM as a child process: its serial line, its end, and what it complained of.
//!
//! Invariants: the process ends with its [`Child`], and with the thread that started it. A line that is too long is cut, what
//! could command a terminal is taken out, and lines that are not read stop the process, not this one. Nothing here waits for
//! the process beyond a deadline, whether it reads or writes.
#![expect(unsafe_code, reason = "has the kernel kill the child when its parent dies")]

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tidevm_abi::judge::MAX_LINE;
use tidevm_machine::printable;

use super::Heard;

/// Pause between two looks at what the system does not report.
pub const PAUSE: Duration = Duration::from_millis(5);

/// Lines that wait for their reader.
const WAITING: usize = 256;
/// Bytes of complaints that are told.
const COMPLAINT: usize = 400;
/// Longest time until the end of a process whose serial line has ended is known.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What the process has as its standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A pipe.
    Pipe,
    /// A terminal, for a VMM that reads its serial line from nothing else.
    Terminal,
}

impl Input {
    /// Both ends: the one to write to, and the process's.
    fn open(self) -> io::Result<(File, OwnedFd)> {
        match self {
            Self::Pipe => {
                let (reader, writer) = io::pipe()?;
                Ok((OwnedFd::from(writer).into(), reader.into()))
            }
            Self::Terminal => {
                let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
                let ours = openpt(flags)?;
                grantpt(&ours)?;
                unlockpt(&ours)?;
                let theirs = ioctl_tiocgptpeer(&ours, flags)?;
                // Nothing is echoed, and no byte means more than itself.
                let mut modes = tcgetattr(&theirs)?;
                modes.make_raw();
                tcsetattr(&theirs, OptionalActions::Now, &modes)?;
                Ok((ours.into(), theirs))
            }
        }
    }
}

/// A running VMM.
pub struct Child {
    process: process::Child,
    input: File,
    lines: Receiver<String>,
    /// The file with its standard error.
    complaints: PathBuf,
}

impl Child {
    /// Starts `command` with such an `input`. Its standard error goes to the file `complaints`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(command: &mut Command, input: Input, complaints: &Path) -> io::Result<Self> {
        let (input, theirs) = input.open()?;
        command.stdin(theirs).stdout(Stdio::piped()).stderr(File::create(complaints)?);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut process = command.spawn()?;
        // Of the process's end, only the process keeps a copy.
        command.stdin(Stdio::null());
        let Some(output) = process.stdout.take() else {
            return Err(io::Error::other("the child has no pipe"));
        };
        // Lines are shorter than what a pipe takes as a whole, so one is written or it is not.
        ioctl_fionbio(&input, true)?;
        Ok(Self { process, input, lines: lines_of(output), complaints: complaints.to_owned() })
    }

    /// Sends a line.
    ///
    /// # Errors
    /// The process has ended, or does not read its lines. A terminal may take the line of a process that has ended;
    /// [`Child::hear`] tells the end.
    pub fn send(&mut self, line: &str) -> Result<(), String> {
        let sent = self.input.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.input.flush());
        sent.map_err(|error| format!("the machine takes no line: {error}{}", self.complaint()))
    }

    /// The next line, until `until`.
    pub fn hear(&mut self, until: Instant) -> Heard {
        // A process that always has a line ready has its deadline too.
        if Instant::now() >= until {
            return Heard::Silence;
        }
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => Heard::Line(line),
            Err(RecvTimeoutError::Timeout) => Heard::Silence,
            Err(RecvTimeoutError::Disconnected) => Heard::Ended(self.end()),
        }
    }

    /// How the process has ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        match self.process.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("it ended: {status}{}", self.complaint())),
            Err(error) => Some(format!("it is lost: {error}")),
        }
    }

    /// How the process has ended, whose serial line has.
    fn end(&mut self) -> String {
        let until = Instant::now() + END_LIMIT;
        loop {
            if let Some(how) = self.ended() {
                return how;
            }
            if Instant::now() >= until {
                return format!("its serial line ended, and it did not{}", self.complaint());
            }
            thread::sleep(PAUSE);
        }
    }

    /// The first of what it has complained of: what follows explains it, or is its consequence.
    fn complaint(&self) -> String {
        let text = fs::read(&self.complaints).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[..text.len().min(COMPLAINT)]);
        let text = printable(text.split_whitespace().collect::<Vec<_>>().join(" ").as_bytes());
        if text.is_empty() { text } else { format!("; it says: {text}") }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only for a process that is gone.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The lines of `output`, each at most [`MAX_LINE`] bytes. A thread reads them, which ends with the output, or with the
/// receiver.
fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(WAITING);
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            match (&mut output).take(MAX_LINE as u64 + 2).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let line = printable(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The first line that `command` prints, or nothing within `limit`; the process is killed then. A program that ends without
/// a line has printed an empty one.
///
/// # Errors
/// It cannot be run.
pub fn first_line(command: &mut Command, limit: Duration) -> io::Result<Option<String>> {
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let lines = process.stdout.take().map(lines_of);
    let line = lines.map(|lines| lines.recv_timeout(limit));
    drop(process.kill());
    process.wait()?;
    Ok(match line {
        Some(Ok(line)) => Some(line),
        Some(Err(RecvTimeoutError::Timeout)) => None,
        Some(Err(RecvTimeoutError::Disconnected)) | None => Some(String::new()),
    })
}

/// A folder that is removed when this is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// A new folder among the temporary files, for this user alone.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidevm-judge-{}-{number}", process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::{Child, Folder, Input, MAX_LINE, first_line};
    use crate::subject::Heard;

    fn shell(script: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script]);
        shell
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_program_that_says_nothing_is_not_waited_for() {
        let long = Duration::from_secs(20);
        let line = |script: &str, limit| first_line(&mut shell(script), limit).unwrap();
        assert_eq!(line("exec sleep 1000", Duration::from_millis(50)), None);
        assert_eq!(line("exit 1", long), Some(String::new()));
        assert_eq!(line("echo a b; exec sleep 1000", long), Some("a b".to_owned()));
        assert!(first_line(&mut Command::new("/nowhere"), long).is_err());
    }

    #[test]
    fn lines_come_and_go_and_the_end_is_told() {
        let folder = Folder::new().unwrap();
        let script = "read line; echo \"heard $line\"; echo why >&2; exit 7";
        let mut child =
            Child::spawn(&mut shell(script), Input::Pipe, &folder.path().join("complaints")).unwrap();
        assert_eq!(child.ended(), None);
        child.send("row D1").unwrap();
        assert_eq!(child.hear(soon()), Heard::Line("heard row D1".to_owned()));
        let Heard::Ended(how) = child.hear(soon()) else { panic!("it has ended") };
        assert!(how.contains("exit status: 7") && how.ends_with("it says: why"), "{how}");
    }

    #[test]
    fn a_terminal_hands_lines_on_as_they_are() {
        let folder = Folder::new().unwrap();
        let script = "[ -t 0 ] || exit 1; echo ready; read line; echo \"heard $line\"";
        let mut child =
            Child::spawn(&mut shell(script), Input::Terminal, &folder.path().join("complaints")).unwrap();
        assert_eq!(child.hear(soon()), Heard::Line("ready".to_owned()));
        child.send("row D1 \u{3}\u{4}").unwrap();
        assert_eq!(child.hear(soon()), Heard::Line("heard row D1 \\u{3}\\u{4}".to_owned()));
        let Heard::Ended(how) = child.hear(soon()) else { panic!("it has ended") };
        assert!(how.contains("exit status: 0"), "{how}");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let folder = Folder::new().unwrap();
        let script = "while :; do printf 0123456789; done";
        let mut child =
            Child::spawn(&mut shell(script), Input::Pipe, &folder.path().join("complaints")).unwrap();
        let Heard::Line(line) = child.hear(soon()) else { panic!("a line") };
        assert!(line.len() <= MAX_LINE + 2, "{}", line.len());
    }

    #[test]
    fn a_process_that_floods_its_line_or_does_not_read_it_is_not_waited_for() {
        let folder = Folder::new().unwrap();
        let script = "while :; do printf 'a\\033[2Jb\\n'; done";
        let mut child =
            Child::spawn(&mut shell(script), Input::Pipe, &folder.path().join("complaints")).unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        let mut heard = 0;
        while let Heard::Line(line) = child.hear(until) {
            assert_eq!(line, "a\\u{1b}[2Jb");
            heard += 1;
        }
        assert!(heard > 0 && child.hear(until) == Heard::Silence);
        let mut sent = 0_u32;
        let refused = loop {
            match child.send(&"x".repeat(1000)) {
                Ok(()) => sent += 1,
                Err(refused) => break refused,
            }
            assert!(sent < 10_000, "it does not read");
        };
        assert!(refused.starts_with("the machine takes no line"), "{refused}");
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let folder = Folder::new().unwrap();
        let mut child =
            Child::spawn(&mut shell("exec sleep 1000"), Input::Pipe, &folder.path().join("complaints"))
                .unwrap();
        assert_eq!(child.hear(Instant::now() + Duration::from_millis(20)), Heard::Silence);
    }
}
