//! Pseudo-terminals.
#![expect(unsafe_code, reason = "pseudo-terminals are bare system calls")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;

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
