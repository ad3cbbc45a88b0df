//! The lock of a disk's file, and the limit of file sizes.
//!
//! Mirrors QEMU's `qemu_lock_fd` (`util/osdep.c`): a lock of the open file description, which no other descriptor of the
//! process can lose, as a lock of POSIX can be lost.
#![expect(unsafe_code, reason = "fcntl with F_OFD_SETLK and getrlimit have no safe wrapper here")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// Locks all of `file`, for writing or for reading, as long as the file is open. Returns whether nobody else has a lock that
/// excludes this one.
///
/// # Errors
/// The file system has no such locks, or no more of them.
pub(super) fn lock(file: &File, writable: bool) -> io::Result<bool> {
    let kind = if writable { libc::F_WRLCK } else { libc::F_RDLCK };
    // A length of 0 is up to the end, wherever that will be; the id of a process is 0 for these locks.
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the call reads `lock`, which outlives it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        error => Err(error),
    }
}

/// How many bytes of a file this process may write. A write beyond ends the process (SIGXFSZ).
pub(super) fn file_size_limit() -> u64 {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: `limit` has room for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, limit.as_mut_ptr()) } != 0 {
        return u64::MAX;
    }
    // SAFETY: the call succeeded, so it has written all of the answer.
    unsafe { limit.assume_init() }.rlim_cur
}
