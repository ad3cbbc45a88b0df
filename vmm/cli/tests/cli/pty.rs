//! Pseudo-terminals, and a person who types at one.
#![expect(unsafe_code, reason = "pseudo-terminals are bare system calls")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::endings::{LIMIT, until};

/// A pseudo-terminal: the end of the person, and the end of the program.
pub struct Pty {
    pub person: File,
    pub program: File,
}

impl Pty {
    pub fn open() -> Self {
        let (mut person, mut program) = (0, 0);
        let (name, state, size) = (ptr::null_mut(), ptr::null(), ptr::null());
        // SAFETY: the call writes to the two descriptors; the other pointers may be null.
        assert_eq!(unsafe { libc::openpty(&mut person, &mut program, name, state, size) }, 0);
        // SAFETY: openpty has just made the descriptors, and no other value owns them.
        unsafe { Self { person: File::from_raw_fd(person), program: File::from_raw_fd(program) } }
    }

    /// The settings that a program can change.
    pub fn state(&self) -> (u32, u32, u32, u32, [u8; 32]) {
        let mut state = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: `self.program` keeps the descriptor open, and `state` has room for one termios.
        assert_eq!(unsafe { libc::tcgetattr(self.program.as_raw_fd(), state.as_mut_ptr()) }, 0);
        // SAFETY: tcgetattr succeeded, so it filled `state`.
        let state = unsafe { state.assume_init() };
        (state.c_iflag, state.c_oflag, state.c_cflag, state.c_lflag, state.c_cc)
    }

    /// Whether keys make lines and signals, as in a shell.
    pub fn is_cooked(&self) -> bool {
        let (_, _, _, local, _) = self.state();
        local & (libc::ICANON | libc::ISIG) == libc::ICANON | libc::ISIG
    }

    /// Starts `command` in a session of its own, with this terminal.
    pub fn start(&self, command: &mut Command) -> Child {
        let stream = || self.program.try_clone().expect("a descriptor");
        command.stdin(stream()).stdout(stream()).stderr(stream());
        // SAFETY: between fork and exec the closure makes two system calls, which are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            })
        };
        command.spawn().expect("the program runs")
    }
}

/// A person who types at a terminal and reads what a program shows.
pub struct Typist {
    pub pty: Pty,
    pub child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    /// How much of it was read.
    read: usize,
}

impl Typist {
    /// Starts `command` at a terminal.
    pub fn start(command: &mut Command) -> Self {
        let pty = Pty::open();
        let child = pty.start(command);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, paper) = (pty.person.try_clone().expect("a descriptor"), Arc::clone(&shown));
        // Ends with the terminal, or with the process of the tests.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(size @ 1..) = screen.read(&mut bytes) {
                paper.lock().expect("no panic").extend_from_slice(&bytes[..size]);
            }
        });
        Self { pty, child, shown, read: 0 }
    }

    pub fn types(&mut self, keys: &str) {
        self.pty.person.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Waits until Ctrl-C is a signal.
    #[track_caller]
    pub fn waits_for_signals(&self) {
        until("a terminal whose keys are signals", || self.pty.is_cooked());
    }

    /// Waits until `text` is shown, behind what was waited for before, and returns what is shown up to its end.
    #[track_caller]
    pub fn sees(&mut self, text: &str) -> String {
        let mut found = None;
        let start = Instant::now();
        while found.is_none() {
            thread::sleep(Duration::from_millis(10));
            let shown = self.shown.lock().expect("no panic");
            let rest = String::from_utf8_lossy(&shown[self.read..]).into_owned();
            found = rest.find(text).map(|place| place + text.len());
            assert!(start.elapsed() < LIMIT, "no `{text}` within {LIMIT:?}, only: {rest:?}");
        }
        let end = self.read + found.expect("it was found");
        let seen =
            String::from_utf8_lossy(&self.shown.lock().expect("no panic")[self.read..end]).into_owned();
        self.read = end;
        seen
    }
}
