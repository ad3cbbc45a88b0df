//! The report of a forbidden system call: which call, by which thread.
//!
//! The kernel can end a process at a forbidden call by itself, but then nothing says which call it was. With
//! `SECCOMP_RET_TRAP` the kernel skips the call too, but raises SIGSYS in the calling thread. The handler here
//! reports on stderr, restores the terminal and ends the process. The kernel ends the process itself if SIGSYS is
//! blocked or has no handler.
//!
//! The handler makes only calls that [`super::rules::EVERY`] allows; it takes no lock and allocates nothing, because
//! the thread may be anywhere. A stderr that is not read holds it up for [`PATIENCE`] at most.
#![expect(unsafe_code, reason = "a signal handler, and the async-signal-safe system calls that it makes")]

use std::cell::Cell;
use std::fmt::{self, Write};
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use syscalls::Sysno;

use super::rules::Kind;

/// The process's exit status after a forbidden call: that of a process which SIGSYS ended, as shells show it.
pub const FORBIDDEN: u8 = 128 + libc::SIGSYS as u8;

/// How long the report waits for room on stderr.
const PATIENCE: Duration = Duration::from_secs(1);

/// `si_code` of a SIGSYS that a filter raised.
const SYS_SECCOMP: libc::c_int = 1;

thread_local! {
    /// The filter of this thread. Without a destructor, so that the handler may read it.
    static KIND: Cell<Option<Kind>> = const { Cell::new(None) };
}

/// The terminal to restore. Never freed, because a handler may read it at any time; see [`restore_at_trap`].
static TERMINAL: AtomicPtr<SavedTerminal> = AtomicPtr::new(ptr::null_mut());

struct SavedTerminal {
    fd: RawFd,
    state: libc::termios,
}

/// Has a forbidden call give the terminal `fd` its `state` back, before the process ends.
pub fn restore_at_trap(fd: RawFd, state: libc::termios) {
    let saved = Box::leak(Box::new(SavedTerminal { fd, state }));
    TERMINAL.store(saved, Ordering::Release);
}

/// The terminal needs no restoring any more.
pub fn forget_terminal() {
    TERMINAL.store(ptr::null_mut(), Ordering::Release);
}

/// Makes forbidden calls of this thread, whose filter will be that of `kind`, report themselves.
pub fn prepare(kind: Kind) {
    KIND.set(Some(kind));
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: all members are numbers or a function pointer that may be null.
        let mut action: libc::sigaction = unsafe { zeroed() };
        action.sa_sigaction = on_forbidden as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the action is initialised. Its handler makes async-signal-safe calls only. SIGTTOU is blocked in
        // it, because otherwise the system would stop a process in the background that restores its terminal.
        unsafe {
            libc::sigaddset(&mut action.sa_mask, libc::SIGTTOU);
            libc::sigaction(libc::SIGSYS, &action, ptr::null_mut());
        }
    });
}

/// The part of `siginfo_t` that a SIGSYS has.
#[repr(C)]
struct SysInfo {
    number: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    call_address: *const libc::c_void,
    call: libc::c_int,
}

extern "C" fn on_forbidden(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t, whose beginning is a SysInfo for this signal.
    let info = unsafe { &*info.cast::<SysInfo>() };
    if info.code == SYS_SECCOMP {
        // SAFETY: the kernel passes the context that the signal interrupted.
        let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        let argument = |register: libc::c_int| registers[register as usize] as u64;
        let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(argument);
        let mut line = Line::default();
        // A line that does not fit loses its end.
        let _ = report(&mut line, &thread_name(), KIND.get(), info.call, arguments);
        line.write_out();
    }
    // SAFETY: the value, if there is one, was leaked and is never changed.
    if let Some(terminal) = unsafe { TERMINAL.load(Ordering::Acquire).as_ref() } {
        // SAFETY: the state came from tcgetattr. A descriptor that was closed meanwhile is an error, which does not
        // matter any more.
        unsafe { libc::tcsetattr(terminal.fd, libc::TCSANOW, &terminal.state) };
    }
    // SAFETY: the call ends the process, and runs no exit handlers.
    unsafe { libc::_exit(FORBIDDEN.into()) }
}

/// One line: `seccomp: thread vcpu0 (filter vcpu) made the forbidden system call openat (257), ...`.
fn report(
    line: &mut impl Write,
    thread: &[u8],
    kind: Option<Kind>,
    call: libc::c_int,
    [first, second, third]: [u64; 3],
) -> fmt::Result {
    line.write_str("seccomp: thread ")?;
    for &byte in thread.iter().take_while(|&&byte| byte != 0) {
        line.write_char(if byte.is_ascii_graphic() { byte as char } else { '?' })?;
    }
    match kind {
        Some(kind) => write!(line, " (filter {kind})")?,
        None => line.write_str(" (filter of the thread that started it)")?,
    }
    let name = usize::try_from(call).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
    write!(
        line,
        " made the forbidden system call {name} ({call}), arguments {first:#x} {second:#x} {third:#x}"
    )?;
    line.write_str("; docs/confinement.md has the allowed ones\n")
}

/// The name of this thread, which the kernel keeps at 15 bytes.
fn thread_name() -> [u8; 16] {
    let mut name = [0; 16];
    // SAFETY: the call writes at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name
}

/// A line of text on the stack.
struct Line {
    bytes: [u8; 512],
    used: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 512], used: 0 }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.used..];
        let fits = room.len().min(text.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.used += fits;
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl Line {
    /// Writes the line to stderr, unless there is no room for it in time.
    fn write_out(&self) {
        let mut room = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
        // SAFETY: there is one pollfd, and it outlives the call.
        let ready = unsafe { libc::poll(&mut room, 1, PATIENCE.as_millis() as libc::c_int) };
        if ready == 1 {
            // SAFETY: `used` bytes are initialised, and are at most the size of the array.
            unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.used) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Line, report};

    fn text(thread: &[u8], kind: Option<Kind>, call: i32) -> String {
        let mut line = Line::default();
        report(&mut line, thread, kind, call, [1, 0xae80, u64::MAX]).unwrap();
        String::from_utf8(line.bytes[..line.used].to_vec()).unwrap()
    }

    #[test]
    fn a_report_names_thread_filter_and_call() {
        assert_eq!(
            text(b"vcpu12\0\0\0", Some(Kind::Vcpu { saves: false }), 16),
            "seccomp: thread vcpu12 (filter vcpu) made the forbidden system call ioctl (16), arguments 0x1 0xae80 \
             0xffffffffffffffff; docs/confinement.md has the allowed ones\n"
        );
        assert!(text(b"fifteen-bytes-x\0", None, 9999).contains("fifteen-bytes-x (filter of the thread"));
        assert!(text(b"a\x1b b", None, 9999).starts_with("seccomp: thread a??b (filter"));
        for unknown in [9999, -1] {
            assert!(text(b"a", None, unknown).contains(&format!("call unknown ({unknown})")));
        }
    }

    /// The longest name of each part fits.
    #[test]
    fn a_report_fits_on_its_line() {
        text(b"fifteen-bytes-x\0", Some(Kind::Events { resets: true }), i32::MIN);
        let longest = syscalls::Sysno::iter().map(|call| call.name()).max_by_key(|name| name.len()).unwrap();
        assert!(longest.len() < 64, "{longest}");
    }
}
