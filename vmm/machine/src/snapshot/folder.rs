//! The folder of a snapshot: made under another name, and there under its own when it is complete.
//!
//! A process that is locked in makes, renames and removes no file. So the files are made and opened before, and a child does
//! the rest, as one does it for sockets ([`crate::socket`]). The child has the folder's two names and one end of a socket. When
//! the process says that the files are complete, the child renames the folder, which either happens or does not, and
//! answers. When the process ends without having said so, however it ends, the child removes the folder.
#![expect(unsafe_code, reason = "fork, and the calls of a child that has nothing else")]

use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// The file with everything but the content of memory.
pub const STATE: &str = "state";
/// The file with the content of memory.
pub const MEMORY: &str = "memory";

/// Longest time that the child may take to rename the folder.
const ANSWER: Duration = Duration::from_secs(60);

/// The word for a child whose files are complete.
const COMPLETE: u8 = b'c';

/// Why there is no folder for a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Something is there.
    #[error("--save {}: the folder is there and not empty: remove it, or save to another one", .0.display())]
    NotEmpty(PathBuf),
    /// The path has no last part, such as `/`.
    #[error("--save {}: this names no folder that can be made", .0.display())]
    NoName(PathBuf),
    /// The host refuses.
    #[error("--save {}: cannot {step}: {error}", path.display())]
    Host {
        /// The folder.
        path: PathBuf,
        /// The step.
        step: &'static str,
        /// The system's error.
        error: io::Error,
    },
}

/// A place for a snapshot in a configuration. It is equal to its clones alone.
#[derive(Clone, Debug)]
pub struct Destination(Arc<Folder>);

impl Destination {
    /// Makes a folder beside `path`, which gets that name when a machine is saved. `path` is not there yet, or is an empty
    /// folder. The process has one thread.
    ///
    /// # Errors
    /// [`FolderError`]; nothing is left behind.
    pub fn make(path: &Path) -> Result<Self, FolderError> {
        Folder::make(path).map(|folder| Self(Arc::new(folder)))
    }

    /// Where the snapshot will be.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Whether it is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.is_complete()
    }

    /// The file for the content of memory.
    pub(crate) fn memory(&self) -> &File {
        &self.0.memory
    }

    /// The file for everything else.
    pub(crate) fn state(&self) -> &File {
        &self.0.state
    }

    /// Both are written: this is a snapshot from now on.
    ///
    /// # Errors
    /// The system's error; it is none.
    pub(crate) fn complete(&self) -> io::Result<()> {
        self.0.complete()
    }

    /// The save failed: its files take no room any more.
    pub(crate) fn empty(&self) {
        self.0.empty();
    }
}

impl PartialEq for Destination {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Destination {}

/// A folder that becomes a snapshot.
#[derive(Debug)]
struct Folder {
    /// Its name when it is complete, absolute.
    path: PathBuf,
    /// The content of memory.
    memory: File,
    /// Everything else.
    state: File,
    /// The way to the child. It is used once.
    child: File,
    complete: AtomicBool,
}

impl Folder {
    /// Makes the files of the folder `path` under another name. `path` is not there, or is an empty folder. The process
    /// has one thread.
    ///
    /// # Errors
    /// [`FolderError`]; nothing is left behind.
    pub fn make(path: &Path) -> Result<Self, FolderError> {
        let failed = |step| move |error| FolderError::Host { path: path.to_owned(), step, error };
        let absolute = std::path::absolute(path).map_err(failed("find it"))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(FolderError::NoName(path.to_owned()));
        };
        match fs::read_dir(&absolute).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => return Err(FolderError::NotEmpty(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at what is there")(error)),
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut unfinished = OsString::from(".");
        unfinished.push(name);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        unfinished.push(format!(".unfinished-{}-{number}", std::process::id()));
        let unfinished = parent.join(unfinished);
        DirBuilder::new().mode(0o700).create(&unfinished).map_err(failed("make a folder beside it"))?;
        Self::fill(&absolute, &unfinished).map_err(|error| {
            remove(&unfinished);
            failed("make its files")(error)
        })
    }

    fn fill(path: &Path, unfinished: &Path) -> io::Result<Self> {
        let make =
            |name| File::options().write(true).create_new(true).mode(0o600).open(unfinished.join(name));
        let (memory, state) = (make(MEMORY)?, make(STATE)?);
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ANSWER))?;
        start_child(Paths::new(unfinished, path)?, theirs)?;
        let child = File::from(OwnedFd::from(ours));
        Ok(Self { path: path.to_owned(), memory, state, child, complete: AtomicBool::new(false) })
    }

    /// Its name when it is complete.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Empties the files, so that a disk that is full has room again.
    pub fn empty(&self) {
        for file in [&self.memory, &self.state] {
            if let Err(error) = file.set_len(0) {
                log::debug!("files of a snapshot that failed: {error}");
            }
        }
    }

    /// The files are written: waits until they are on the disk, and gives the folder its name.
    ///
    /// # Errors
    /// The system's error; the folder does not have its name.
    pub fn complete(&self) -> io::Result<()> {
        self.memory.sync_all()?;
        self.state.sync_all()?;
        let mut child = &self.child;
        child.write_all(&[COMPLETE])?;
        let mut answer = [0; 4];
        child.read_exact(&mut answer)?;
        match i32::from_ne_bytes(answer) {
            0 => {
                self.complete.store(true, Ordering::Release);
                Ok(())
            }
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Removes the folder before there is a child that does it.
fn remove(unfinished: &Path) {
    for name in [MEMORY, STATE] {
        drop(fs::remove_file(unfinished.join(name)));
    }
    drop(fs::remove_dir(unfinished));
}

/// The paths that the child needs, ready for system calls.
struct Paths {
    memory: CString,
    state: CString,
    unfinished: CString,
    path: CString,
    parent: CString,
}

impl Paths {
    fn new(unfinished: &Path, path: &Path) -> io::Result<Self> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
        Ok(Self {
            memory: text(&unfinished.join(MEMORY))?,
            state: text(&unfinished.join(STATE))?,
            unfinished: text(unfinished)?,
            path: text(path)?,
            parent: text(path.parent().unwrap_or(path))?,
        })
    }
}

/// Starts the child. It calls nothing that takes a lock, which another thread of the parent might have held.
fn start_child(paths: Paths, socket: UnixStream) -> io::Result<()> {
    // SAFETY: the child makes system calls alone, on what it has of the parent's memory, until it ends.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            crate::socket::leave_everything(socket.as_raw_fd(), c"tidevm-snapshot");
            serve(&paths, socket.as_raw_fd());
            // SAFETY: the call ends the process, and runs nothing of the parent's.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(()),
    }
}

/// The child: waits for the word of the parent, or its end.
fn serve(paths: &Paths, socket: libc::c_int) {
    loop {
        let mut word = 0_u8;
        // SAFETY: `word` has room for one byte.
        let count = unsafe { libc::read(socket, (&raw mut word).cast(), 1) };
        if count == 1 && word == COMPLETE {
            let errno = rename(paths);
            let answer = errno.to_ne_bytes();
            // SAFETY: `answer` is read, and has as many bytes as the call says. The parent may be gone.
            let _ = unsafe { libc::write(socket, answer.as_ptr().cast(), answer.len()) };
            if errno == 0 {
                return;
            }
        } else if count == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            // SAFETY: the paths end with a zero byte.
            unsafe {
                libc::unlink(paths.memory.as_ptr());
                libc::unlink(paths.state.as_ptr());
                libc::rmdir(paths.unfinished.as_ptr());
            }
            return;
        }
    }
}

/// Gives the folder its name, for good. An empty folder of that name is replaced. Returns the number of the error, or 0.
fn rename(paths: &Paths) -> i32 {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    let sync = |path: &CString| {
        // SAFETY: the path ends with a zero byte, and the descriptor is used by this function alone.
        unsafe {
            let folder = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
            if folder < 0 || libc::fsync(folder) != 0 {
                return errno();
            }
            libc::close(folder);
        }
        0
    };
    match sync(&paths.unfinished) {
        0 => {}
        errno => return errno,
    }
    // SAFETY: both paths end with a zero byte.
    if unsafe { libc::rename(paths.unfinished.as_ptr(), paths.path.as_ptr()) } != 0 {
        return errno();
    }
    // The folder has its name. If the disk does not keep that, there is no snapshot after a loss of power.
    sync(&paths.parent);
    0
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tempfile::{TempDir, tempdir};

    use super::*;

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn await_names(folder: &TempDir, expected: &[&str]) {
        let start = Instant::now();
        while names(folder) != expected {
            assert!(start.elapsed() < Duration::from_secs(30), "{:?}", names(folder));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_folder_has_its_name_when_it_is_complete_and_leaves_nothing_if_it_never_is() {
        let scratch = tempdir().unwrap();
        let path = scratch.path().join("saved");
        let unfinished = Folder::make(&path).unwrap();
        assert!(!path.exists() && names(&scratch).len() == 1);
        drop(unfinished);
        await_names(&scratch, &[]);
        fs::create_dir(&path).unwrap();
        let folder = Folder::make(&path).unwrap();
        (&folder.memory).write_all(b"content").unwrap();
        folder.complete().unwrap();
        assert!(folder.is_complete());
        drop(folder);
        await_names(&scratch, &["saved"]);
        assert_eq!(fs::read(path.join(MEMORY)).unwrap(), b"content");
    }

    #[test]
    fn a_folder_that_is_not_empty_is_refused_before_and_after() {
        let scratch = tempdir().unwrap();
        let path = scratch.path().join("saved");
        fs::create_dir(&path).unwrap();
        let folder = Folder::make(&path).unwrap();
        fs::write(path.join("mine"), "").unwrap();
        let error = folder.complete().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
        assert!(!folder.is_complete());
        assert!(matches!(Folder::make(&path), Err(FolderError::NotEmpty(_))));
        fs::remove_file(path.join("mine")).unwrap();
        folder.complete().expect("the parent may ask again");
        assert!(matches!(
            Folder::make(Path::new("/")),
            Err(FolderError::NotEmpty(_) | FolderError::NoName(_))
        ));
        let nowhere = scratch.path().join("no/such/place");
        assert!(matches!(Folder::make(&nowhere), Err(FolderError::Host { .. })));
        let file = path.join(STATE);
        assert!(matches!(Folder::make(&file), Err(FolderError::Host { .. })), "a file is there");
    }
}
