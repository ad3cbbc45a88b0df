//! What a VM borrows from its process: termination signals and the terminal.
//!
//! Both are given back when the VM is dropped, whatever ended it.
//!
//! Recording a signal is not enough to end a process whose threads sit in a blocked write (a pipe that is not
//! read, a stopped terminal). So the first termination signal asks for an orderly end. After that [`exit`]
//! ends the process at once: at the next signal, or when [`GRACE`] is over. No other code of this library
//! exits. The same signal twice within [`ONE_WISH`] counts once: see [`Wish`]. That holds after the VM was dropped,
//! too.
#![expect(unsafe_code, reason = "signals, termios and _exit are system calls without a safe wrapper here")]

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::signal::{Error, block_signal, create_sigset, unblock_signal};

mod code;
mod terminal;

use crate::clock::{self, Nap};
use crate::confine::Confinement;
use crate::confine::rules::Kind;
use crate::confine::thread::spawn;
use crate::error::{StartError, host};
use crate::sync::lock;
use crate::termination::TERMINATION;

pub use code::give_code_back;
pub use terminal::{Terminal, standard_input};

/// How long an orderly end may take after a termination signal. It is longer than the waits for the guest to
/// power off and for its vCPUs to stop.
pub const GRACE: Duration = Duration::from_secs(20);

/// The time in which the same signal again is the same wish.
pub const ONE_WISH: Duration = Duration::from_secs(1);

/// Ends the process at once with the status of `signal`. It restores the terminal and waits for nothing. It
/// logs nothing either, because logging would wait for the lock of stderr.
pub fn exit(signal: i32, terminal: &Weak<Terminal>) -> ! {
    // Kept alive to the end: dropping it could log.
    let terminal = terminal.upgrade();
    if let Some(terminal) = &terminal {
        drop(terminal.restore());
    }
    // SAFETY: the call ends the process. It runs no exit handlers, so no handler can meet a lock that a
    // blocked thread holds.
    unsafe { libc::_exit(128 + signal) }
}

/// The way to the thread that waits for the end of the grace, once it was made, and how that thread is locked in.
static GRACE_THREAD: Mutex<Option<(Confinement, SyncSender<GraceRequest>)>> = Mutex::new(None);

/// A signal by which the process is to end, and the terminal to restore.
type GraceRequest = (i32, Weak<Terminal>);

/// Makes the thread that [`exit_after_grace`] needs, once per process, and once more for a VM with another
/// `confinement`. It is made before there is a signal, because the host may refuse a thread later.
///
/// # Errors
/// The host provides no thread, or the thread cannot be locked in.
pub fn prepare_grace(confinement: Confinement) -> Result<(), StartError> {
    const WHAT: &str = "start the thread for the grace";
    let mut thread = lock(&GRACE_THREAD);
    if thread.as_ref().is_none_or(|(current, _)| *current != confinement) {
        let (sender, due) = sync_channel::<GraceRequest>(1);
        room_for_threads(1).map_err(host(WHAT))?;
        spawn(WHAT, "grace".to_owned(), confinement, Kind::Grace, move |gate| {
            // When another thread takes over, the sender is dropped.
            if gate.pass()
                && let Ok((signal, terminal)) = due.recv()
            {
                wait_out_grace(signal);
                exit(signal, &terminal)
            }
        })?;
        *thread = Some((confinement, sender));
    }
    Ok(())
}

/// Ends the process by [`exit`] when [`GRACE`] is over, unless it has ended by then. The waiting thread
/// outlives the VM, because what the process does after the VM's end (the summary of a session) can block as
/// well.
///
/// # Errors
/// [`prepare_grace`] was not called.
pub fn exit_after_grace(signal: i32, terminal: Weak<Terminal>) -> io::Result<()> {
    let thread = lock(&GRACE_THREAD);
    let (_, sender) = thread.as_ref().ok_or(io::ErrorKind::NotFound)?;
    // A full channel holds an earlier signal, whose grace ends earlier.
    drop(sender.try_send((signal, terminal)));
    Ok(())
}

/// Waits until [`GRACE`] is over, or until `signal` comes again as another wish. While the VM lives, its loop for
/// signals may take the signal instead.
fn wait_out_grace(signal: i32) {
    let start = clock::now();
    while let Some(left) = GRACE.checked_sub(clock::now() - start).filter(|left| !left.is_zero()) {
        let nap = Nap::of(left);
        let came = take_pending(signal, nap.time());
        nap.end();
        if came && clock::now() - start >= ONE_WISH {
            return;
        }
    }
}

/// Waits at most `time` for `signal`, which is blocked in all threads, and takes it. Returns whether it came.
fn take_pending(signal: i32, time: Duration) -> bool {
    let Ok(set) = create_sigset(&[signal]) else {
        thread::sleep(time);
        return false;
    };
    let time = libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: time.subsec_nanos().into() };
    // SAFETY: the set and the time are initialised and outlive the call; no details are asked for.
    unsafe { libc::sigtimedwait(&set, ptr::null_mut(), &time) == signal }
}

/// Checks that the host maps what `count` new threads need. When a thread that has started finds no memory for
/// its signal stack, Rust's standard library ends the process.
///
/// # Errors
/// `ENOMEM`: a limit of addresses or of mappings is near.
pub fn room_for_threads(count: usize) -> io::Result<()> {
    /// Areas of a stack, a signal stack and an arena of the allocator, each with a guard, and some to spare.
    const AREAS: usize = 10;
    /// A stack of the standard library's default size, and the rest of the areas.
    const SIZE: usize = 3 << 20;
    const PAGE: usize = 4096;
    let size = count * SIZE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel chooses an unused range.
    let start = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // Each page of another protection is an area, and so is the gap behind it.
    let result = (0..count * AREAS / 2).try_for_each(|pair| {
        let page = start.wrapping_byte_add((2 * pair + 1) * PAGE);
        // SAFETY: the page is in the range that was just mapped, because AREAS pages are less than SIZE.
        match unsafe { libc::mprotect(page, PAGE, libc::PROT_READ) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    });
    // SAFETY: the range was mapped above, and nothing points to it.
    unsafe { libc::munmap(start, size) };
    result
}

/// Has a write beyond the limit for files (`ulimit -f`) fail, where it would end the process by SIGXFSZ. A guest decides how
/// much its console writes.
pub fn fail_at_file_limit() {
    // SAFETY: ignoring a signal runs no code of this process.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Checks that the host maps what the process needs before it can tell of an error: see [`room_for_threads`].
///
/// # Errors
/// `ENOMEM`: a limit of addresses (`ulimit -v`) leaves no room.
pub fn room_to_start() -> io::Result<()> {
    room_for_threads(1)
}

/// The termination signals as a descriptor to read. They are blocked in the thread that made this value and
/// in all threads that it starts afterwards.
#[derive(Debug)]
pub struct Signals {
    file: File,
    /// SIGINT is no wish that the process ends.
    interactive: bool,
    wish: Arc<Mutex<Wish>>,
}

std::thread_local! {
    /// See [`BlockedSignals::share`].
    static SHARED_WISH: RefCell<Option<Arc<Mutex<Wish>>>> = const { RefCell::new(None) };
}

/// The first signal that came. Some programs send one wish as two signals: `timeout` signals its process and
/// then the process's group.
#[derive(Debug, Default)]
struct Wish(Option<(i32, Instant)>);

impl Wish {
    /// Whether a `signal` that comes `now` is the first one again. Remembers the first one.
    fn is_repeated(&mut self, signal: i32, now: Instant) -> bool {
        match self.0 {
            Some((first, since)) => first == signal && now.duration_since(since) < ONE_WISH,
            None => {
                self.0 = Some((signal, now));
                false
            }
        }
    }
}

impl Signals {
    /// Takes over the termination signals. They act again in this thread when the second value is dropped in
    /// it, as [`BlockedSignals`] says.
    ///
    /// Under `interactive` each SIGINT is read, however soon it comes after another.
    ///
    /// # Errors
    /// The system's error.
    pub fn take(interactive: bool) -> io::Result<(Self, BlockedSignals)> {
        let blocked = BlockedSignals::block()?;
        let wish = Arc::clone(&blocked.wish);
        let set = create_sigset(&wanted()).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        // SAFETY: the set is initialised and outlives the call; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and no other value owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok((Self { file, interactive, wish }, blocked))
    }

    /// Signals that a test writes to `file`: their numbers, each filled up to the size of a record.
    #[cfg(test)]
    pub(crate) fn from_test(file: File) -> Self {
        Self { file, interactive: false, wish: Arc::default() }
    }

    /// The next signal, if one came. A repetition of the first one is left out.
    pub fn next(&self) -> Option<i32> {
        loop {
            let signal = self.read()?;
            if self.is_interrupt(signal) || !lock(&self.wish).is_repeated(signal, Instant::now()) {
                return Some(signal);
            }
        }
    }

    /// Whether `signal` interrupts what is under way, and ends nothing.
    pub fn is_interrupt(&self, signal: i32) -> bool {
        self.interactive && signal == libc::SIGINT
    }

    fn read(&self) -> Option<i32> {
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

/// The termination signals that are to be read. `nohup` ignores SIGHUP, and a blocked signal would still be read. A
/// shell ignores others for a process in the background, which is to end by them all the same.
fn wanted() -> Vec<libc::c_int> {
    TERMINATION.into_iter().filter(|&signal| signal != libc::SIGHUP || !ignored(signal)).collect()
}

/// Whether the process was started with a signal ignored.
fn ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action nothing changes, and `action` has room for the current one.
    let result = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all bytes are 0 or were written by the call. Both are valid for its plain members.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Termination signals that are blocked in the thread that made this value, and in all threads that it starts.
/// Dropping this unblocks them, except for the first one that came. The thread for the grace reads that one, so that
/// a repetition of the same wish does not end the process.
#[derive(Debug)]
pub struct BlockedSignals {
    signals: Vec<libc::c_int>,
    wish: Arc<Mutex<Wish>>,
}

impl BlockedSignals {
    /// Blocks the termination signals in this thread. A signal that is blocked in each thread of the process waits
    /// until [`Signals`] reads it.
    ///
    /// # Errors
    /// The system's error.
    pub fn block() -> io::Result<Self> {
        let wish = SHARED_WISH.with_borrow(Option::clone).unwrap_or_default();
        let mut blocked = Self { signals: Vec::new(), wish };
        for signal in wanted() {
            match block_signal(signal) {
                Ok(()) => blocked.signals.push(signal),
                // The embedder blocked it, and will unblock it.
                Err(Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        Ok(blocked)
    }

    /// Has signals that this thread takes over from now on count as those of this value: when both are dropped, the
    /// first signal stays blocked.
    pub fn share(&self) {
        SHARED_WISH.set(Some(Arc::clone(&self.wish)));
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        let first = lock(&self.wish).0.map(|(signal, _)| signal);
        for &signal in self.signals.iter().filter(|&&signal| Some(signal) != first) {
            if let Err(error) = unblock_signal(signal) {
                log::debug!("signal {signal} stays blocked: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Weak;
    use std::time::{Duration, Instant};
    use std::{io, ptr};

    use super::{Confinement, ONE_WISH, Signals, Wish, exit_after_grace, prepare_grace, room_for_threads};

    const NAME: &str = "process::tests::near_the_limit_of_mappings_a_signal_is_kept_and_a_thread_is_refused";
    const INNER: &str = "TIDEVM_TEST_INNER";

    /// Runs in a process of its own, which uses all its mappings up. A new thread would abort it.
    #[test]
    fn near_the_limit_of_mappings_a_signal_is_kept_and_a_thread_is_refused() {
        if std::env::var_os(INNER).is_none() {
            let program = std::env::current_exe().unwrap();
            let output = Command::new(program).args(["--exact", NAME]).env(INNER, "").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
            return;
        }
        prepare_grace(Confinement::default()).unwrap();
        room_for_threads(8).unwrap();
        // More than Linux's limits of areas, 65,530 by default and 1,048,576 in some distributions.
        const PAGES: usize = 1 << 21;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses an unused range.
        let start = unsafe { libc::mmap(ptr::null_mut(), PAGES * 4096, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: `page` is in the range.
        let protect = |page: usize| unsafe {
            libc::mprotect(start.wrapping_byte_add(page * 4096), 4096, libc::PROT_READ)
        };
        let limited = (1..PAGES).step_by(2).any(|page| protect(page) != 0);
        // A thread's stack fits, but not its signal stack.
        // SAFETY: the pages are in the range; two areas become free.
        unsafe { libc::mprotect(start, 3 * 4096, libc::PROT_NONE) };
        let refused = room_for_threads(1).map_err(|error| error.raw_os_error());
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let kept = exit_after_grace(libc::SIGTERM, Weak::new()).map_err(|error: io::Error| error.kind());
        let more = threads() - before;
        // SAFETY: nothing points to the range.
        unsafe { libc::munmap(start, PAGES * 4096) };
        assert_eq!((kept, more), (Ok(()), 0), "the thread is there already");
        if limited {
            assert_eq!(refused, Err(Some(libc::ENOMEM)));
        }
    }

    /// Sends a signal to this thread alone, because other tests run beside it.
    fn raise(signal: i32) {
        // SAFETY: the call has no requirements; the signal is blocked in this thread.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
    }

    #[test]
    fn the_same_signal_twice_within_a_second_is_one_wish() {
        let (signals, blocked) = Signals::take(false).unwrap();
        assert_eq!(signals.next(), None);
        raise(libc::SIGTERM);
        assert_eq!(signals.next(), Some(libc::SIGTERM));
        raise(libc::SIGTERM);
        assert_eq!(signals.next(), None);
        raise(libc::SIGINT);
        assert_eq!(signals.next(), Some(libc::SIGINT), "another signal is another wish");
        drop(blocked);
        // One that the thread for the grace did not read would end this process if it were not blocked.
        raise(libc::SIGTERM);
        assert!(super::take_pending(libc::SIGTERM, Duration::ZERO), "it waits to be read");
        assert!(!super::take_pending(libc::SIGTERM, Duration::from_millis(1)));
    }

    #[test]
    fn the_same_signal_after_a_second_is_another_wish() {
        let (mut wish, start) = (Wish::default(), Instant::now());
        assert!(!wish.is_repeated(15, start));
        let almost = start + ONE_WISH - Duration::from_millis(1);
        assert!(wish.is_repeated(15, almost) && !wish.is_repeated(2, almost));
        assert!(!wish.is_repeated(15, start + ONE_WISH));
    }
}
