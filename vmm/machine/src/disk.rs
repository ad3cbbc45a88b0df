//! The file behind a disk of the guest: opened, looked at and locked once, before the process is locked in.
//!
//! Mirrors QEMU's format `raw` on `block/file-posix.c`, of which it also has the kind of lock (`F_OFD_SETLK`). Differs on
//! purpose: QEMU locks single bytes, each of which stands for a right. Here the whole file is locked, for writing or
//! for reading, so that a disk which one VM writes is no other VM's. QEMU's locks and these exclude each other, except
//! that QEMU may already write a file which is then opened here for reading only. A file that is not made of sectors is refused,
//! where QEMU rounds its size: the last bytes would be in no sector.
//!
//! Invariant: the lock lives as long as the descriptor. Nothing but a request of the guest writes to the file.

use std::fs::{self, File, FileType};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::DiskConfig;
use crate::virtio::block::medium::{Medium, SECTOR};

mod host;

/// A disk's file.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    read_only: bool,
    sectors: u64,
}

/// Why a file is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is not there, or this user may not use it.
    #[error(
        "--disk {}: cannot open it for {}: {error}{}",
        path.display(),
        if *writable { "reading and writing" } else { "reading" },
        if *readable { "; it can be read: --disk PATH,ro does not write to it" } else { "" }
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// It was to be written.
        writable: bool,
        /// It could be opened for reading only.
        readable: bool,
        /// The system's error.
        error: io::Error,
    },
    /// It is something else.
    #[error("--disk {}: this is {kind}, and not a raw image or a block device", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it leads to.
        kind: &'static str,
    },
    /// It has no sector.
    #[error("--disk {}: it is empty; make it as large as the disk shall be, as by `truncate -s 1G`", .0.display())]
    Empty(PathBuf),
    /// It ends within a sector.
    #[error(
        "--disk {}: its {bytes} bytes are no multiple of {SECTOR}, so the last {} would be in no sector of the disk; is it \
         complete? `truncate -s {}` fills the last sector with zeros",
        path.display(),
        bytes % SECTOR,
        bytes.next_multiple_of(SECTOR)
    )]
    Unaligned {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Another VM has it.
    #[error(
        "--disk {}: it is in use by another VM, or by another --disk of this one; {}",
        path.display(),
        if *writable { "only one of them may write to it, and then no other reads it" } else { "that one writes to it" }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// It was to be written.
        writable: bool,
    },
    /// The host refuses to lock it or to tell its size.
    #[error("--disk {}: cannot {step}: {error}", path.display())]
    Host {
        /// The file.
        path: PathBuf,
        /// The step.
        step: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// A write to its end would end the process.
    #[error(
        "--disk {}: it has {bytes} bytes, and this process may write to the first {limit} bytes of a file (ulimit -f)",
        path.display()
    )]
    Limit {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

impl Disk {
    /// Opens the file of `config`, and locks it.
    ///
    /// # Errors
    /// [`DiskError`]; nothing is left behind.
    pub fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        let (path, writable) = (config.path.clone(), !config.read_only);
        // A pipe, or a special device, is not opened: that can wait or do something.
        let metadata = fs::metadata(&path);
        let kind = match metadata.map(|metadata| foreign(metadata.file_type())) {
            Ok(kind) => kind,
            Err(error) => return Err(DiskError::Open { path, writable, readable: false, error }),
        };
        if let Some(kind) = kind {
            return Err(DiskError::Kind { path, kind });
        }
        let mut file = match open(&path, writable) {
            Ok(file) => file,
            Err(error) => {
                let readable = writable && open(&path, false).is_ok();
                return Err(DiskError::Open { path, writable, readable, error });
            }
        };
        let bytes = match file.seek(SeekFrom::End(0)) {
            Ok(0) => return Err(DiskError::Empty(path)),
            Ok(bytes) if !bytes.is_multiple_of(SECTOR) => return Err(DiskError::Unaligned { path, bytes }),
            Ok(bytes) => bytes,
            Err(error) => return Err(DiskError::Host { path, step: "tell its size", error }),
        };
        match host::file_size_limit() {
            limit if writable && limit < bytes => return Err(DiskError::Limit { path, bytes, limit }),
            _ => {}
        }
        match host::lock(&file, writable) {
            Ok(true) => Ok(Self { file, path, read_only: !writable, sectors: bytes / SECTOR }),
            Ok(false) => Err(DiskError::InUse { path, writable }),
            Err(error) => Err(DiskError::Host { path, step: "lock it", error }),
        }
    }

    /// The file's name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing is written to it.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Its size, in sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }
}

impl Medium for Disk {
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn open(path: &Path, writable: bool) -> io::Result<File> {
    // The path may lead to a pipe by now.
    File::options().read(true).write(writable).custom_flags(libc::O_NONBLOCK).open(path)
}

/// The name of a kind of file that is no disk.
fn foreign(kind: FileType) -> Option<&'static str> {
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a character device")
    }
}

#[cfg(test)]
mod tests;
