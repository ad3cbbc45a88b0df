//! The socket in the file system: taken, and taken away again when the process has ended, however it ended.
//!
//! A process that is locked in removes no file. So a child does it, which is forked before anything else happens. It has one
//! descriptor, the end of a pipe whose other end this process and its children have. When the pipe closes, they have all
//! ended, and the child removes the socket, unless another socket has its name by then.
#![expect(unsafe_code, reason = "umask, fork, and the calls of a child that has nothing else")]

use std::ffi::CStr;
use std::fs;
use std::io::{self, ErrorKind, PipeWriter, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why there is no socket to listen at.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("{option}{path}: another process listens there; end it, or choose another path")]
    Live {
        /// What named the path, as it is written before it.
        option: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The path leads to something else.
    #[error("{option}{path}: the file is no socket; choose another path")]
    NoSocket {
        /// What named the path, as it is written before it.
        option: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The host refuses.
    #[error("{option}{path}: cannot {step}: {error}")]
    Host {
        /// What named the path, as it is written before it.
        option: &'static str,
        /// The path.
        path: PathBuf,
        /// The step.
        step: &'static str,
        /// The system's error.
        #[source]
        error: io::Error,
    },
}

/// A socket that listens, at a path that is removed when the process ends.
#[derive(Debug)]
pub struct Socket {
    /// The socket, which does not block.
    pub listener: UnixListener,
    /// While it is open, the path stays.
    pub keeper: PipeWriter,
}

/// A socket in a configuration. It is equal to its clones alone.
#[derive(Clone, Debug)]
pub struct Listener(Arc<Socket>);

impl Listener {
    /// For clones to share.
    #[must_use]
    pub fn new(socket: Socket) -> Self {
        Self(Arc::new(socket))
    }

    /// Takes the next client.
    ///
    /// # Errors
    /// There is none, or the host refuses.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.0.listener.accept().map(|(stream, _)| stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.listener.as_raw_fd()
    }
}

impl PartialEq for Listener {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Listener {}

/// Listens at `path`, for this user alone (mode 0600), without waiting: a client may be gone when it is taken. A socket at which no process listens any more is replaced. `option`
/// is what named the path, for errors. The process has one thread, or files that its other threads make at this moment
/// have mode 0600 too.
///
/// # Errors
/// [`SocketError`]; nothing is left behind.
pub fn listen(option: &'static str, path: &Path) -> Result<Socket, SocketError> {
    let failed = |step| move |error| SocketError::Host { option, path: path.to_owned(), step, error };
    let listener = match bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            make_way(option, path)?;
            bind(path)
        }
        result => result,
    };
    let listener = listener.map_err(failed("listen"))?;
    let keeper = keep(path).map_err(|error| {
        drop(fs::remove_file(path));
        failed("start the process that removes it")(error)
    })?;
    Ok(Socket { listener, keeper })
}

/// Makes the socket with mode 0600 from its first moment.
fn bind(path: &Path) -> io::Result<UnixListener> {
    // SAFETY: the call takes no pointer. The process has one thread, so no other file gets this mask.
    let before = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(path);
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    let listener = listener?;
    if let Err(error) = listener.set_nonblocking(true) {
        drop(fs::remove_file(path));
        return Err(error);
    }
    Ok(listener)
}

/// Removes a socket at which no process listens.
fn make_way(option: &'static str, path: &Path) -> Result<(), SocketError> {
    let failed = |step| move |error| SocketError::Host { option, path: path.to_owned(), step, error };
    let metadata = fs::symlink_metadata(path).map_err(failed("look at what is there"))?;
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NoSocket { option, path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the socket of a process that has ended"))
        }
        // A backlog that is full: a process is there.
        Ok(_) => Err(SocketError::Live { option, path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(SocketError::Live { option, path: path.to_owned() })
        }
        Err(error) => Err(failed("find out whether a process listens")(error)),
    }
}

/// Starts the child that removes `path`.
fn keep(path: &Path) -> io::Result<PipeWriter> {
    let metadata = fs::symlink_metadata(path)?;
    let path = std::path::absolute(path)?;
    let (mut reader, writer) = io::pipe()?;
    // SAFETY: the process has one thread, so the child has all that the parent had.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(writer);
            leave_everything(reader.as_raw_fd(), c"tidevm-socket");
            // Nothing is ever written: the pipe ends when the last process closes it.
            let mut byte = [0];
            while matches!(reader.read(&mut byte), Err(error) if error.kind() == ErrorKind::Interrupted) {}
            let ours = |now: &fs::Metadata| (now.dev(), now.ino()) == (metadata.dev(), metadata.ino());
            if fs::symlink_metadata(&path).is_ok_and(|now| ours(&now)) {
                drop(fs::remove_file(&path));
            }
            // SAFETY: the call ends the process, and runs nothing of the parent's.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(writer),
    }
}

/// A child called `name` keeps nothing of its parent's: no terminal, no signals, no descriptors but `pipe`. It takes no lock.
pub(crate) fn leave_everything(pipe: libc::c_int, name: &CStr) {
    let (before, after) = (pipe as libc::c_uint, pipe as libc::c_uint);
    // SAFETY: the calls take no pointers but a name that ends with a zero byte. No descriptor is used after it is closed: the
    // child uses `pipe` alone.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        if before > 0 {
            libc::syscall(libc::SYS_close_range, 0, before - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, after + 1, libc::c_uint::MAX, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    use super::*;

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tidevm-{}-{name}.sock", std::process::id()));
        drop(fs::remove_file(&path));
        path
    }

    fn await_removal(path: &Path) {
        let start = Instant::now();
        while path.exists() {
            assert!(start.elapsed() < Duration::from_secs(30), "{} stays", path.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_live_socket_is_refused_and_a_dead_one_replaced() {
        let path = path("live");
        let first = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(make_way("", &path), Err(SocketError::Live { .. })));
        drop(first);
        make_way("", &path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "not a socket").unwrap();
        assert!(matches!(make_way("", &path), Err(SocketError::NoSocket { .. })));
        fs::remove_file(&path).unwrap();
    }

    /// The test's other threads do not matter: the child calls nothing that takes a lock of theirs.
    #[test]
    fn the_path_goes_when_the_last_keeper_goes_unless_it_is_another_socket() {
        let path = path("kept");
        let listener = bind(&path).unwrap();
        let keeper = keep(&path).unwrap();
        let second = keeper.try_clone().unwrap();
        drop(keeper);
        std::thread::sleep(Duration::from_millis(50));
        assert!(path.exists(), "another process may still have it");
        drop((second, listener));
        await_removal(&path);
        let keeper = keep_replaced(&path);
        drop(keeper);
        std::thread::sleep(Duration::from_millis(50));
        assert!(path.exists(), "the socket of another process stays");
        fs::remove_file(&path).unwrap();
    }

    /// The keeper of a socket whose path another socket has by now.
    fn keep_replaced(path: &Path) -> PipeWriter {
        let other = path.with_extension("other");
        let first = bind(path).unwrap();
        let keeper = keep(path).unwrap();
        let second = bind(&other).unwrap();
        fs::rename(&other, path).unwrap();
        drop((first, second));
        keeper
    }
}
