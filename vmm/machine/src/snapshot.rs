//! A machine in a folder: everything that it takes to go on from there, in this process or in another one.
//!
//! Mirrors Firecracker's full snapshots (`docs/snapshotting/` there) and QEMU's `savevm`. Differs on purpose: both files have
//! checksums, the machine's description is part of the snapshot, and a folder is a snapshot when it is complete or not at all.
//! `docs/snapshots.md` is about all of it for people.
//!
//! | file | is | does not know |
//! | --- | --- | --- |
//! | `description` | what machine it is, and in what another one differs | KVM |
//! | `cpuid` | whether a host can give the CPU that the guest has seen | vCPUs |
//! | `vcpu` | the state of one vCPU | the machine |
//! | `format` | the bytes around the state | what the state is |
//! | `folder` | the files, and the moment at which they are a snapshot | what is in them |
//!
//! The order of a save and of a restore is that of `vm`.
//!
//! Invariant: nothing that a file says is believed before its checksum and its place were looked at. A snapshot is not a secret kept
//! from its owner: who can write a snapshot can write the machine that comes from it, as with a kernel's file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{kvm_clock_data, kvm_cpuid_entry2, kvm_irqchip};
use serde::{Deserialize, Serialize};
use tidevm_abi::{Resize, Size};

use crate::config::Config;
use crate::memory::Memory;
use crate::memory::content::{PAGE, PIECE, Pagemap, is_zero};
use crate::serial::SerialState;
use crate::virtio::balloon::BalloonState;
use crate::virtio::control::ControlState;
use crate::virtio::mem::MemState;

mod cpuid;
mod description;
mod folder;
mod format;
mod vcpu;

pub use cpuid::missing;
pub use description::Description;
pub use folder::FolderError;
use folder::{Folder, MEMORY, STATE};
pub use format::FormatError;
pub use vcpu::{VcpuError, VcpuState};

/// Most bytes of the file `state` that are read. It has 12 bytes at most for each piece of memory, so this is enough for 40 TiB.
const MAX_STATE: u64 = 256 << 20;

/// Everything but the content of memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// The machine.
    pub description: Description,
    /// The kernel, and the RAM disk if there is one.
    pub files: [Sum; 2],
    /// What all vCPUs have in common.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// The frequency of the time stamp counter.
    pub tsc_khz: u32,
    /// The vCPUs, by their index.
    pub vcpus: Vec<VcpuState>,
    /// Both PICs and the IO-APIC.
    pub chips: Vec<kvm_irqchip>,
    /// The clock of KVM's paravirtual clocks.
    pub clock: kvm_clock_data,
    /// The devices.
    pub devices: DevicesState,
    /// What is known about the guest.
    pub guest: GuestState,
    /// What the embedder has to remember of it.
    pub embedder: Vec<u8>,
    /// What is in the file `memory`.
    pub content: Content,
}

/// The devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState {
    /// The control channel.
    pub control: ControlState,
    /// By hotplug region.
    pub mem: Vec<MemState>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonState>,
    /// The serial port.
    pub serial: SerialState,
}

/// What the VMM knows about a guest from its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestState {
    /// The message that it is up: CPUs, virtio-mem devices, and the time that it took.
    pub ready: Option<(u32, u32, Duration)>,
    /// The last report of the driver of each hotplug region.
    pub reports: Vec<Option<Resize>>,
    /// The id of the next call.
    pub next_call: u32,
    /// The calls that the guest has not answered.
    pub open_calls: Vec<u32>,
}

/// Length and checksum of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    length: u64,
    crc: u32,
}

impl Sum {
    /// Of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, crc: crc32fast::hash(bytes) }
    }
}

/// What is in the file `memory`: a place for each byte of guest memory, and holes where there is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes of the file.
    places: u64,
    /// The pieces that are not zero, ascending, with their checksums.
    pieces: Vec<(u64, u32)>,
}

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

    /// Writes what was touched of `memory`, and returns what that is and how much. `go_on` is asked before each piece.
    pub(crate) fn write_memory(
        &self,
        memory: &Memory,
        pagemap: &Pagemap,
        mut go_on: impl FnMut() -> Result<(), SaveError>,
    ) -> Result<(Content, Size), SaveError> {
        let file = &self.0.memory;
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
        let file = &self.0.state;
        let written = file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0));
        written.map_err(|error| self.failed(error))
    }

    /// Both are written: this is a snapshot from now on.
    pub(crate) fn complete(&self) -> Result<(), SaveError> {
        self.0.complete().map_err(|error| self.failed(error))
    }

    /// The save failed: its files take no room any more.
    pub(crate) fn empty(&self) {
        self.0.empty();
    }

    fn failed(&self, error: io::Error) -> SaveError {
        SaveError::Write { path: self.path().to_owned(), error }
    }
}

impl PartialEq for Destination {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Destination {}

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

/// A snapshot that was opened. It is equal to its clones alone.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    state: MachineState,
    memory: File,
}

impl Snapshot {
    /// Opens the snapshot in the folder `path`, and checks everything but the content of memory.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn open(path: &Path) -> Result<Self, RestoreError> {
        let unreadable = |file| move |error| RestoreError::Unreadable { path: path.to_owned(), file, error };
        let format = |file| move |error| RestoreError::Format { path: path.to_owned(), file, error };
        let file = File::open(path.join(STATE)).map_err(unreadable(STATE))?;
        let mut bytes = Vec::new();
        file.take(MAX_STATE).read_to_end(&mut bytes).map_err(unreadable(STATE))?;
        let state: MachineState = format::from_bytes(&bytes).map_err(format(STATE))?;
        let memory = File::open(path.join(MEMORY)).map_err(unreadable(MEMORY))?;
        let found = memory.metadata().map_err(unreadable(MEMORY))?.len();
        let expected = state.content.places;
        if found != expected {
            return Err(format(MEMORY)(FormatError::Length { expected, found }));
        }
        let snapshot = Self(Arc::new(Opened { path: path.to_owned(), state, memory }));
        snapshot.check()?;
        Ok(snapshot)
    }

    /// Checks that the parts are those of one machine, which can be.
    fn check(&self) -> Result<(), RestoreError> {
        let MachineState { description, vcpus, devices, guest, chips, .. } = self.state();
        let config = description.config(Config::default());
        config.validate().map_err(|error| self.contradiction(error.to_string()))?;
        let counts = [
            ("vCPUs", vcpus.len(), usize::from(config.cpus)),
            ("virtio-mem devices", devices.mem.len(), config.hotplug.len()),
            ("reports of drivers", guest.reports.len(), config.hotplug.len()),
            ("balloons", usize::from(devices.balloon.is_some()), usize::from(config.balloon.is_some())),
            ("interrupt chips", chips.len(), 3),
        ];
        match counts.into_iter().find(|(_, saved, described)| saved != described) {
            Some((what, saved, described)) => {
                Err(self.contradiction(format!("it has {saved} {what}, and describes {described}")))
            }
            None => Ok(()),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The machine that was saved, in a process as `base` has it.
    #[must_use]
    pub fn config(&self, base: Config) -> Config {
        self.state().description.config(base)
    }

    /// What the embedder gave to [`crate::VmHandle::save`].
    #[must_use]
    pub fn embedder(&self) -> &[u8] {
        &self.state().embedder
    }

    pub(crate) fn state(&self) -> &MachineState {
        &self.0.state
    }

    /// Checks that the machine of `config`, with these files, is the one that was saved.
    pub(crate) fn check_machine(&self, config: &Config, files: [Sum; 2]) -> Result<(), RestoreError> {
        let MachineState { description, files: saved, .. } = self.state();
        let differs = |difference| RestoreError::Differs { path: self.path().to_owned(), difference };
        if let Some(difference) = description.difference(config) {
            return Err(differs(difference));
        }
        if saved[0] != files[0] {
            return Err(differs(match description.kernel() {
                Some(path) => format!("the kernel {} has changed since", path.display()),
                None => "the built-in guest is that of another tidevm: use the one that saved it".to_owned(),
            }));
        }
        if saved[1] != files[1] {
            return Err(differs("the initial RAM disk has changed since".to_owned()));
        }
        Ok(())
    }

    /// Checks that this host can give the CPU, whose time stamp counter has `tsc_khz`.
    pub(crate) fn check_host(&self, host: &[kvm_cpuid_entry2]) -> Result<(), RestoreError> {
        missing(&self.state().cpuid, host).map_or(Ok(()), |why| Err(self.host(why)))
    }

    /// Fills `memory`, in which everything that was plugged is plugged.
    pub(crate) fn load_memory(&self, memory: &Memory) -> Result<(), RestoreError> {
        let Content { places, pieces } = &self.state().content;
        if *places != memory.places() {
            return Err(self.contradiction(format!("its memory has {places} bytes, and describes others")));
        }
        // A piece is read once, in the order of the table.
        let mut sums = pieces.iter().map(|piece| piece.1);
        let refused = memory.load(pieces.iter().map(|piece| piece.0), |piece, content| {
            let at = piece * PIECE as u64;
            self.0.memory.read_exact_at(content, at).map_err(|error| RestoreError::Unreadable {
                path: self.path().to_owned(),
                file: MEMORY,
                error,
            })?;
            if sums.next() == Some(crc32fast::hash(content)) {
                Ok(())
            } else {
                Err(RestoreError::Piece { path: self.path().to_owned(), at })
            }
        })?;
        refused.map_or(Ok(()), |piece| {
            Err(self.contradiction(format!("the piece {piece} of its memory is not plugged")))
        })
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

#[cfg(test)]
mod tests;
