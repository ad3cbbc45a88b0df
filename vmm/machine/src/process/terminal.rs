//! The terminal on standard input: set for a guest's console, and given back as it was, whatever ends the process.
#![expect(unsafe_code, reason = "termios is a system call without a safe wrapper here")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use vmm_sys_util::signal::{block_signal, unblock_signal};

use crate::confine::trap;

/// The terminal in a state for a guest's console: each key is input, also Ctrl-C, and none is echoed. The VM ends by
/// Ctrl-a x. Dropping it restores the state from before.
#[derive(Debug)]
pub struct Terminal {
    input: File,
    before: libc::termios,
}

impl Terminal {
    /// Takes over the terminal on standard input. [`None`] when standard input is no terminal.
    ///
    /// # Errors
    /// The system's error.
    pub fn take() -> io::Result<Option<Self>> {
        let Some(terminal) = Self::remember()? else { return Ok(None) };
        let mut console = terminal.before;
        // As QEMU's `mon:stdio`. A line of the guest's output may end with \n alone.
        console.c_iflag &= !(libc::IGNBRK
            | libc::BRKINT
            | libc::PARMRK
            | libc::ISTRIP
            | libc::INLCR
            | libc::IGNCR
            | libc::ICRNL
            | libc::IXON);
        console.c_oflag |= libc::OPOST;
        console.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ECHONL | libc::IEXTEN | libc::ISIG);
        terminal.set(&console)?;
        Ok(Some(terminal))
    }

    /// As [`Terminal::take`], for an embedder that sets the terminal itself: nothing is changed now.
    ///
    /// # Errors
    /// The system's error.
    pub fn remember() -> io::Result<Option<Self>> {
        let input = standard_input()?;
        let mut before = MaybeUninit::uninit();
        // SAFETY: the descriptor is open, and `before` has room for a `termios`.
        if unsafe { libc::tcgetattr(input.as_raw_fd(), before.as_mut_ptr()) } != 0 {
            return Ok(None);
        }
        // SAFETY: tcgetattr succeeded, so it filled `before`.
        let before = unsafe { before.assume_init() };
        let terminal = Self { input, before };
        trap::restore_at_trap(terminal.input.as_raw_fd(), before);
        Ok(Some(terminal))
    }

    /// Restores the state from before.
    ///
    /// # Errors
    /// The system's error.
    pub fn restore(&self) -> io::Result<()> {
        self.set(&self.before)
    }

    fn set(&self, state: &libc::termios) -> io::Result<()> {
        // Otherwise the system would stop a process in the background, and it would never end.
        let blocked = block_signal(libc::SIGTTOU).is_ok();
        // SAFETY: the descriptor is open and `state` came from tcgetattr.
        let result = match unsafe { libc::tcsetattr(self.input.as_raw_fd(), libc::TCSANOW, state) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        if blocked {
            drop(unblock_signal(libc::SIGTTOU));
        }
        result
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            log::warn!("the terminal stays as the guest's console left it: {error}");
        }
        trap::forget_terminal();
    }
}

/// Standard input without a buffer, for an event loop.
///
/// # Errors
/// The system's error.
pub fn standard_input() -> io::Result<File> {
    Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?))
}
