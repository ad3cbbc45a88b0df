//! From the machine to the files of a snapshot, and why a machine is not saved.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use tidevm_abi::Size;

use super::folder::Destination;
use super::format;
use super::machine::{Content, MachineState};
use super::vcpu::VcpuError;
use crate::memory::Memory;
use crate::memory::content::{PAGE, PIECE, Pagemap, is_zero};

/// What a save has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The folder.
    pub path: PathBuf,
    /// The content of memory that was written: pages that are not zero.
    pub content: Size,
}

/// Why a machine was not saved. It is there as before.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The machine was started without a place for it.
    #[error("the machine was not made to be saved: Config::save is not given")]
    NotAsked,
    /// It was saved before.
    #[error("the machine is saved in {} already, and there is no place for another snapshot", .0.display())]
    AlreadySaved(PathBuf),
    /// The guest has ended, or the VM is being ended or reset.
    #[error("there is nothing to save: the guest has ended, or is being ended or reset")]
    Ended,
    /// A termination signal came.
    #[error("a signal came while the machine was saved")]
    Signal,
    /// A vCPU did not come out of the guest.
    #[error("waited {0:?} for the vCPUs to leave the guest")]
    StillRunning(Duration),
    /// KVM does not give a state.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// KVM does not give a state.
    #[error("KVM cannot tell the {what}: {error}")]
    Kvm {
        /// The state.
        what: &'static str,
        /// KVM's error.
        error: io::Error,
    },
    /// A virtio-mem device is carrying out a request.
    #[error("hotplug device {device}: {error}")]
    Device {
        /// Its index.
        device: usize,
        /// Why it has no state now.
        error: virtio_mem::device::StateError,
    },
    /// A disk is carrying out a request.
    #[error("waited {limit:?} for a request that disk #{disk} is carrying out")]
    DiskBusy {
        /// Its index.
        disk: usize,
        /// How long it was waited for.
        limit: Duration,
    },
    /// What the guest has written cannot be brought to a disk.
    #[error("disk #{disk}: cannot bring to it what the guest has written: {error}")]
    Disk {
        /// Its index.
        disk: usize,
        /// The system's error.
        error: io::Error,
    },
    /// The files cannot be written.
    #[error("cannot write the snapshot {}: {error}{}", path.display(), room(.error))]
    Write {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

fn room(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => "; make room there, or save to another disk",
        Some(libc::EFBIG) => "; the file system has no files so large, even with holes",
        _ => "",
    }
}

impl Destination {
    /// Writes what was touched of `memory`, and returns what that is and how much. `go_on` is asked before each piece.
    pub(crate) fn write_memory(
        &self,
        memory: &Memory,
        pagemap: &Pagemap,
        mut go_on: impl FnMut() -> Result<(), SaveError>,
    ) -> Result<(Content, Size), SaveError> {
        let file = self.memory();
        let places = memory.places();
        let mut pieces = Vec::new();
        let mut bytes = 0;
        // What an earlier save has left goes.
        file.set_len(0).and_then(|()| file.set_len(places)).map_err(|error| self.failed(error))?;
        let written = memory.save(pagemap, |piece, content| {
            go_on().map_err(Interrupted::Save)?;
            let before = bytes;
            for (at, pages) in pages_with_content(content) {
                file.write_all_at(pages, piece * PIECE as u64 + at as u64)?;
                bytes += pages.len() as u64;
            }
            if bytes > before {
                pieces.push((piece, crc32fast::hash(content)));
            }
            Ok::<_, Interrupted>(())
        });
        match written {
            Ok(()) => Ok((Content { places, pieces }, Size(bytes))),
            Err(Interrupted::Save(error)) => Err(error),
            Err(Interrupted::Write(error)) => Err(self.failed(error)),
        }
    }

    /// Writes everything else.
    pub(crate) fn write_state(&self, state: &MachineState) -> Result<(), SaveError> {
        let bytes = format::to_bytes(state);
        let file = self.state();
        let written = file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0));
        written.map_err(|error| self.failed(error))
    }

    /// Both are written: this is a snapshot from now on.
    pub(crate) fn finish(&self) -> Result<(), SaveError> {
        self.complete().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> SaveError {
        SaveError::Write { path: self.path().to_owned(), error }
    }
}

/// The runs of pages of `content` that are not zero, with their places in it.
fn pages_with_content(content: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let zero = |start: &usize| is_zero(&content[*start..(*start + PAGE).min(content.len())]);
        let start = (next..content.len()).step_by(PAGE).find(|start| !zero(start))?;
        let end = (start..content.len()).step_by(PAGE).find(zero).unwrap_or(content.len());
        next = end;
        Some((start, &content[start..end]))
    })
}

/// Why memory was not written.
enum Interrupted {
    Save(SaveError),
    Write(io::Error),
}

impl From<io::Error> for Interrupted {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

#[cfg(test)]
mod tests {
    use super::{PAGE, PIECE, pages_with_content};

    #[test]
    fn runs_of_pages_with_content_are_written_and_zero_pages_are_holes() {
        let mut content = vec![0; PIECE];
        assert_eq!(pages_with_content(&content).count(), 0);
        for at in [0, 3 * PAGE + 7, 5 * PAGE - 1, PIECE - 1] {
            content[at] = 1;
        }
        let runs: Vec<_> =
            pages_with_content(&content).map(|(at, run)| (at / PAGE, run.len() / PAGE)).collect();
        assert_eq!(runs, [(0, 1), (3, 2), (PIECE / PAGE - 1, 1)]);
    }
}
