//! A jail for a process that root starts: namespaces of its own for mounts and processes, a folder as its root, and
//! another user and group.
//!
//! It takes two steps. [`Jail::fork`] comes first, because a namespace for processes holds only the children of the
//! process that makes it: the child goes on as the only process of its namespace, and the parent passes termination
//! signals on and ends with the child's status. [`Jail::lock`] comes when every file is open: the folder becomes the
//! root of a namespace of mounts that has nothing else, read-only, and the process becomes the other user.
//!
//! Where the root of the host is its initial RAM disk, `pivot_root` is impossible. The folder is then moved over the
//! root, as `switch_root` does it.
#![expect(unsafe_code, reason = "namespaces, mounts and identities are bare system calls")]

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::mem::zeroed;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;

use crate::termination::TERMINATION;

/// A folder and an identity for a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jail {
    /// The only folder that the process has left. It need not contain anything.
    pub folder: PathBuf,
    /// The user that the process becomes, not 0.
    pub uid: u32,
    /// The group that the process becomes, not 0. It has no other group.
    pub gid: u32,
}

/// Why a process is not in a jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Only root can make one.
    #[error("--jail needs root, and the user id is {uid}: run as root, or without --jail")]
    NotRoot {
        /// The effective user id.
        uid: u32,
    },
    /// User or group 0: root could leave the jail.
    #[error("--jail needs a user and a group other than root: --uid and --gid from 1 on")]
    RootInside,
    /// The folder cannot be used.
    #[error("--jail {}: {error}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A fork would lose the other threads.
    #[error("a process with {count} threads cannot move into a jail")]
    Threads {
        /// Threads of the process.
        count: usize,
    },
    /// The host refuses a step.
    #[error("--jail cannot {step}: {error}{}", hint(error))]
    Step {
        /// The step.
        step: &'static str,
        /// The system's error.
        error: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; root needs the capabilities CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_SETUID and CAP_SETGID, which a container \
             may lack"
        }
        _ => "",
    }
}

impl JailError {
    /// Whether another host, or another user, could do the same.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::NotRoot { .. } | Self::Threads { .. } | Self::Step { .. })
    }
}

impl Jail {
    /// Goes on in a child that is the first process of a namespace of its own. The parent never returns: it ends with
    /// the status of the child, or with 128 + the signal that ended the child. Call it before [`crate::Vm::start`], in
    /// a process with one thread.
    ///
    /// # Errors
    /// [`JailError`]; the process is as it was.
    pub fn fork(&self) -> Result<(), JailError> {
        self.check()?;
        let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads != 1 {
            return Err(JailError::Threads { count: threads });
        }
        // SAFETY: the call takes no pointer. It concerns children only.
        check(unsafe { libc::unshare(libc::CLONE_NEWPID) })
            .map_err(step("make a namespace for processes"))?;
        let awaited = [libc::SIGCHLD].into_iter().chain(TERMINATION);
        // SAFETY: a signal set may have any bytes. The calls write to sets that outlive them.
        let (set, before) = unsafe {
            let (mut set, mut before): (libc::sigset_t, libc::sigset_t) = (zeroed(), zeroed());
            libc::sigemptyset(&mut set);
            awaited.for_each(|signal| drop_result(libc::sigaddset(&mut set, signal)));
            libc::sigprocmask(libc::SIG_BLOCK, &set, &mut before);
            (set, before)
        };
        // SAFETY: the process has one thread, so the child has all that the parent had.
        match unsafe { libc::fork() } {
            -1 => {
                let error = io::Error::last_os_error();
                restore(&before);
                Err(step("start its process")(error))
            }
            0 => {
                restore(&before);
                die_with_parent();
                Ok(())
            }
            child => pass_on(child, &set),
        }
    }

    /// Makes the folder the only one that this thread reaches, and the process another user. Every file is open, and
    /// the process has one thread.
    ///
    /// # Errors
    /// [`JailError`]; a part may be done, so that the process has to end.
    pub(crate) fn lock(&self) -> Result<(), JailError> {
        self.check()?;
        self.enter_folder()?;
        let (uid, gid) = (self.uid, self.gid);
        // SAFETY: no groups are passed; the calls take no other pointer.
        unsafe {
            check(libc::setgroups(0, ptr::null())).map_err(step("leave its groups"))?;
            check(libc::setresgid(gid, gid, gid)).map_err(step("become another group"))?;
            check(libc::setresuid(uid, uid, uid)).map_err(step("become another user"))?;
        }
        // The change of user cleared this setting.
        die_with_parent();
        Ok(())
    }

    fn check(&self) -> Result<(), JailError> {
        // SAFETY: the call has no requirements.
        let uid = unsafe { libc::geteuid() };
        if uid != 0 {
            return Err(JailError::NotRoot { uid });
        }
        if self.uid == 0 || self.gid == 0 {
            return Err(JailError::RootInside);
        }
        let failed = |error| JailError::Folder { folder: self.folder.clone(), error };
        if fs::metadata(&self.folder).map_err(failed)?.is_dir() {
            Ok(())
        } else {
            Err(failed(io::ErrorKind::NotADirectory.into()))
        }
    }

    fn enter_folder(&self) -> Result<(), JailError> {
        const ROOT: &CStr = c"/";
        const HERE: &CStr = c".";
        let failed = |error| JailError::Folder { folder: self.folder.clone(), error };
        let folder =
            CString::new(self.folder.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
        // SAFETY: the call takes no pointer.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map_err(step("make a namespace for mounts"))?;
        // Nothing of what follows shows outside.
        mount(None, ROOT, libc::MS_REC | libc::MS_PRIVATE).map_err(step("make its mounts private"))?;
        mount(Some(&folder), &folder, libc::MS_BIND).map_err(step("mount its folder"))?;
        let closed = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        mount(None, &folder, libc::MS_REMOUNT | libc::MS_BIND | closed).map_err(step("close its folder"))?;
        // SAFETY: the path ends with a zero byte.
        check(unsafe { libc::chdir(folder.as_ptr()) }).map_err(failed)?;
        // SAFETY: both paths end with a zero byte.
        let pivoted = unsafe { libc::syscall(libc::SYS_pivot_root, HERE.as_ptr(), HERE.as_ptr()) };
        match check(pivoted as libc::c_int) {
            // The old root lies over the new one, and is the current folder.
            // SAFETY: the path ends with a zero byte.
            Ok(()) => check(unsafe { libc::umount2(HERE.as_ptr(), libc::MNT_DETACH) })
                .map_err(step("leave the old root"))?,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                mount(Some(HERE), ROOT, libc::MS_MOVE).map_err(step("move its folder over the root"))?;
                // SAFETY: the path ends with a zero byte.
                check(unsafe { libc::chroot(HERE.as_ptr()) }).map_err(step("change its root"))?;
            }
            Err(error) => return Err(step("change its root")(error)),
        }
        // SAFETY: the path ends with a zero byte.
        check(unsafe { libc::chdir(ROOT.as_ptr()) }).map_err(step("enter its root"))
    }
}

fn mount(source: Option<&CStr>, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let source = source.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: the paths end with a zero byte, or there is no source; these flags need neither a type nor data.
    check(unsafe { libc::mount(source, target.as_ptr(), ptr::null(), flags, ptr::null()) })
}

/// The kernel ends this process when the thread that made it ends.
fn die_with_parent() {
    // SAFETY: this option takes no pointer.
    drop_result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) });
}

/// Restores the blocked signals.
fn restore(before: &libc::sigset_t) {
    // SAFETY: the set was written by sigprocmask and outlives the call.
    drop_result(unsafe { libc::sigprocmask(libc::SIG_SETMASK, before, ptr::null_mut()) });
}

/// The parent: passes the blocked signals of `set` on to `child`, until it can end as the child did.
fn pass_on(child: libc::pid_t, set: &libc::sigset_t) -> ! {
    loop {
        let mut signal = 0;
        // SAFETY: the set is initialised, and `signal` has room for the answer.
        drop_result(unsafe { libc::sigwait(set, &mut signal) });
        if signal != libc::SIGCHLD {
            // Fails without CAP_KILL, which nothing here can help.
            // SAFETY: the call takes no pointer. The child was not waited for, so the number is still its.
            let _ = unsafe { libc::kill(child, signal) };
            continue;
        }
        let mut status = 0;
        // SAFETY: `status` has room for the answer.
        if unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == child {
            std::process::exit(if libc::WIFSIGNALED(status) {
                128 + libc::WTERMSIG(status)
            } else {
                libc::WEXITSTATUS(status)
            });
        }
    }
}

/// For calls that fail only on wrong arguments.
fn drop_result(result: libc::c_int) {
    debug_assert!(result >= 0, "{}", io::Error::last_os_error());
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// For `map_err`: the host refuses the step `step`.
fn step(step: &'static str) -> impl FnOnce(io::Error) -> JailError {
    move |error| JailError::Step { step, error }
}
