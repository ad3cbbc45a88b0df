//! What a machine borrows from its process: termination signals and the terminal.
//!
//! Both are given back when the machine is dropped, whatever ended it.
//!
//! A signal that was only noted would not end a process whose threads sit in a write that nobody
//! takes (a pipe without a reader, a terminal that was stopped). So the first termination signal
//! asks for an orderly end, and after that [`exit`] ends the process where it stands: at the next
//! signal, or by itself when [`GRACE`] is over. No other code of this library exits.
#![expect(unsafe_code, reason = "signals, termios and _exit are system calls without a safe wrapper here")]

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, RawFd};
use std::ptr;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use vmm_sys_util::signal::{Error, block_signal, create_sigset, unblock_signal};

const TERMINATION: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// How long an orderly end may take after a termination signal: more than to wait for the guest to
/// power off and for its vCPUs to stop.
pub const GRACE: Duration = Duration::from_secs(20);

/// Ends the process with the status of `signal`, at once: the terminal is restored, and nothing else
/// is waited for. Nothing is logged either, which would wait for the lock of stderr.
pub fn exit(signal: i32, terminal: &Weak<Terminal>) -> ! {
    // Kept to the end: dropping it could log.
    let terminal = terminal.upgrade();
    if let Some(terminal) = &terminal {
        drop(terminal.restore());
    }
    // SAFETY: the call ends the process. It runs no exit handlers, and so none that could meet a
    // lock which a blocked thread holds.
    unsafe { libc::_exit(128 + signal) }
}

/// Ends the process by [`exit`] when [`GRACE`] is over, if it has not ended then. The thread that
/// waits outlives the machine: what comes after it (the summary of a session) can block as well.
///
/// # Errors
/// The host gives no thread.
pub fn exit_after_grace(signal: i32, terminal: Weak<Terminal>) -> io::Result<()> {
    let end = move || {
        thread::sleep(GRACE);
        exit(signal, &terminal)
    };
    thread::Builder::new().name("grace".to_owned()).spawn(end).map(drop)
}

/// The termination signals as something to read instead of something that interrupts. They are
/// blocked in the thread that made this and in all threads that it starts afterwards.
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Takes the termination signals. They act again in this thread when the second value is
    /// dropped in it.
    ///
    /// # Errors
    /// What the system says.
    pub fn take() -> io::Result<(Self, BlockedSignals)> {
        let mut blocked = BlockedSignals(Vec::new());
        // `nohup` has it ignored; a blocked signal would come all the same. The others are for a machine
        // in the background, too.
        let signals: Vec<_> =
            TERMINATION.into_iter().filter(|&signal| signal != libc::SIGHUP || !ignored(signal)).collect();
        for &signal in &signals {
            match block_signal(signal) {
                Ok(()) => blocked.0.push(signal),
                // Somebody else did, and will unblock it.
                Err(Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        let set = create_sigset(&signals).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        // SAFETY: the set is initialised and outlives the call; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok((Self { file }, blocked))
    }

    /// The next signal that came, if one did.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.file).read_exact(&mut info).ok()?;
        // The signal's number is the first member.
        let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        i32::try_from(number).ok()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Whether whoever started this process had it ignore a signal.
fn ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action nothing changes, and `action` has room for the one there is.
    let result = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all bytes are 0 or were written by the call; both are valid for its plain members.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Signals that [`Signals::take`] blocked; they are unblocked on drop.
#[derive(Debug)]
pub struct BlockedSignals(Vec<libc::c_int>);

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        for &signal in &self.0 {
            if let Err(error) = unblock_signal(signal) {
                log::debug!("signal {signal} stays blocked: {error}");
            }
        }
    }
}

/// The terminal in a state for a guest's console: input comes byte by byte and is not echoed, but
/// Ctrl-C and the like still make signals. Dropping it restores what was before.
#[derive(Debug)]
pub struct Terminal {
    input: File,
    before: libc::termios,
}

impl Terminal {
    /// Takes the terminal on standard input. [`None`] when standard input is no terminal.
    ///
    /// # Errors
    /// What the system says.
    pub fn take() -> io::Result<Option<Self>> {
        let input = standard_input()?;
        let mut before = MaybeUninit::uninit();
        // SAFETY: the descriptor is open, and `before` has room for what is written there.
        if unsafe { libc::tcgetattr(input.as_raw_fd(), before.as_mut_ptr()) } != 0 {
            return Ok(None);
        }
        // SAFETY: tcgetattr succeeded, so it filled `before`.
        let before = unsafe { before.assume_init() };
        let mut console = before;
        console.c_lflag &= !(libc::ICANON | libc::ECHO);
        let terminal = Self { input, before };
        terminal.set(&console)?;
        Ok(Some(terminal))
    }

    /// Puts the terminal back to what it was.
    ///
    /// # Errors
    /// What the system says.
    pub fn restore(&self) -> io::Result<()> {
        self.set(&self.before)
    }

    fn set(&self, state: &libc::termios) -> io::Result<()> {
        // A process in the background would be stopped for this, and never end.
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
    }
}

/// Standard input without a buffer, for an event loop.
///
/// # Errors
/// What the system says.
pub fn standard_input() -> io::Result<File> {
    Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?))
}
