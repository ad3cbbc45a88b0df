//! The files of a snapshot that was opened, and why a snapshot cannot be restored.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::FormatError;

/// Why a snapshot cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A file cannot be read.
    #[error("--restore {}: cannot read {file}: {error}", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// The file.
        file: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// A file is not what it should be.
    #[error("--restore {}: {file}: {error}", path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// The file.
        file: &'static str,
        /// What is wrong.
        error: FormatError,
    },
    /// A piece of memory is not what was saved.
    #[error("--restore {}: memory: the piece at {at:#x} is damaged: its checksum is wrong", path.display())]
    Piece {
        /// The folder.
        path: PathBuf,
        /// Its place in the file.
        at: u64,
    },
    /// The snapshot contradicts itself.
    #[error("--restore {}: the snapshot contradicts itself: {what}", path.display())]
    Contradiction {
        /// The folder.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The machine is another one.
    #[error("--restore {}: this is the snapshot of another machine: {difference}", path.display())]
    Differs {
        /// The folder.
        path: PathBuf,
        /// In what it differs.
        difference: String,
    },
    /// The host cannot run it.
    #[error("--restore {}: this host cannot run the saved machine: {why}", path.display())]
    Host {
        /// The folder.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A snapshot that was opened. It is equal to its clones alone.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    /// The bytes of its file `state`.
    state: Vec<u8>,
    memory: File,
    embedder: Vec<u8>,
}

impl Snapshot {
    /// The snapshot in the folder `path`, whose files were checked.
    pub(super) fn new(path: PathBuf, state: Vec<u8>, memory: File, embedder: Vec<u8>) -> Self {
        Self(Arc::new(Opened { path, state, memory, embedder }))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What the embedder gave to [`crate::VmHandle::save`].
    #[must_use]
    pub fn embedder(&self) -> &[u8] {
        &self.0.embedder
    }

    /// The bytes of its file `state`.
    pub(super) fn state(&self) -> &[u8] {
        &self.0.state
    }

    /// Its file `memory`.
    pub(super) fn memory(&self) -> &File {
        &self.0.memory
    }

    /// The snapshot contradicts itself.
    pub(crate) fn contradiction(&self, what: String) -> RestoreError {
        RestoreError::Contradiction { path: self.path().to_owned(), what }
    }

    /// The host cannot run it.
    pub(crate) fn host(&self, why: String) -> RestoreError {
        RestoreError::Host { path: self.path().to_owned(), why }
    }
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Snapshot {}
