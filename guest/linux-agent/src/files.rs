//! The kernel's file systems, for the agent alone.
//!
//! proc, sysfs and devtmpfs are mounted detached (Linux `fsmount`): they are in no folder, so nobody sees them, and nobody
//! can take them away, whatever the user's init does with its root file system. The agent reaches them by descriptors: its
//! current folder is the root of proc, and the others are below `self/fd`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The file systems of the process that speaks with the VMM.
pub struct Files {
    sys: OwnedFd,
    dev: OwnedFd,
}

/// Where messages for people go.
static KMSG: OnceLock<PathBuf> = OnceLock::new();

/// A file system of type `kind`, mounted in no folder.
///
/// # Errors
/// The kernel has no such file system, or is older than 5.2.
pub fn mount(kind: &str) -> io::Result<OwnedFd> {
    let mount = || {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    mount().map_err(|error| io::Error::new(error.kind(), format!("cannot mount {kind}: {error}")))
}

impl Files {
    /// Mounts all of them, and makes the root of proc the current folder.
    ///
    /// # Errors
    /// The kernel has no such file system, or is older than 5.2.
    pub fn open() -> io::Result<Self> {
        rustix::process::fchdir(mount("proc")?)?;
        let files = Self { sys: mount("sysfs")?, dev: mount("devtmpfs")? };
        KMSG.get_or_init(|| files.dev("kmsg"));
        Ok(files)
    }

    /// The path of a file of sysfs.
    pub fn sys(&self, path: &str) -> PathBuf {
        format!("self/fd/{}/{path}", self.sys.as_raw_fd()).into()
    }

    /// The path of a device.
    pub fn dev(&self, path: &str) -> PathBuf {
        format!("self/fd/{}/{path}", self.dev.as_raw_fd()).into()
    }
}

/// The content of a file of proc.
///
/// # Errors
/// It cannot be read.
pub fn proc(path: &str) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| io::Error::new(error.kind(), format!("/proc/{path}: {error}")))
}

/// Writes a message for people into the kernel's log, whose end the VMM shows when the guest dies. A process that has no
/// devices writes it to its standard error, which is the console.
pub fn log(text: &str) {
    let write = |path: &PathBuf| {
        let mut file = OpenOptions::new().write(true).open(path)?;
        // One write is one message. <4> is a warning.
        file.write_all(format!("<4>tidevm-agent: {text}\n").as_bytes())
    };
    if KMSG.get().is_none_or(|path| write(path).is_err()) {
        eprintln!("tidevm-agent: {text}");
    }
}
