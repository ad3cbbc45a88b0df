//! Files that are written for people and for other programs.
//!
//! Opening a named pipe for writing waits for a reader. A VMM would wait with its termination signals blocked, so that
//! nothing but SIGKILL ended it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Makes the file at `path`, or empties it. Waits for nobody.
///
/// # Errors
/// It cannot be made or written, or is a named pipe that nobody reads.
pub fn create_file(path: &Path) -> io::Result<File> {
    let looked =
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK).open(path);
    match looked {
        // A pipe has a reader now, so this one does not wait. Writes to it do, until it has room.
        Ok(_open) => File::create(path),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            Err(io::Error::other("it is a named pipe that nobody reads"))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::process::Command;

    use super::create_file;

    #[test]
    fn a_pipe_without_a_reader_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, file) = (folder.path().join("pipe"), folder.path().join("file"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(create_file(&pipe).unwrap_err().to_string(), "it is a named pipe that nobody reads");
        fs::write(&file, "older and longer").unwrap();
        create_file(&file).unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(create_file(folder.path()).is_err());
    }
}
