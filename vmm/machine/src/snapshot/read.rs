//! From the files of a snapshot to the machine.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvm_bindings::kvm_cpuid_entry2;
use tidevm_abi::Size;

use super::cpuid::missing;
use super::folder::{MEMORY, STATE};
use super::format::{self, FormatError};
use super::machine::{Content, MachineState, Sum};
use super::opened::{RestoreError, Snapshot};
use crate::config::Config;
use crate::disk::Disk;
use crate::memory::Memory;
use crate::memory::content::PIECE;
use crate::virtio::block::medium::SECTOR;

/// Most bytes of the file `state` that are read. It has 12 bytes at most for each piece of memory, so this is enough for 40 TiB.
const MAX_STATE: u64 = 256 << 20;

/// A snapshot and the state that it holds.
#[derive(Debug)]
pub struct Restored {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Its state.
    pub state: MachineState,
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
        let snapshot = Self::new(path.to_owned(), bytes, memory, state.embedder.clone());
        let restored = Restored { snapshot, state };
        restored.check()?;
        Ok(restored.snapshot)
    }

    /// The machine that was saved, in a process as `base` has it.
    ///
    /// # Errors
    /// [`RestoreError`], which [`Snapshot::open`] has excluded.
    pub fn config(&self, base: Config) -> Result<Config, RestoreError> {
        Ok(self.restored()?.state.description.config(base))
    }

    /// The snapshot with its state.
    pub(crate) fn restored(&self) -> Result<Restored, RestoreError> {
        let malformed = |error| RestoreError::Format { path: self.path().to_owned(), file: STATE, error };
        let state = format::from_bytes(self.state()).map_err(malformed)?;
        Ok(Restored { snapshot: self.clone(), state })
    }
}

impl Restored {
    /// Checks that the parts are those of one machine, which can be.
    fn check(&self) -> Result<(), RestoreError> {
        let MachineState { description, vcpus, devices, guest, chips, .. } = &self.state;
        let config = description.config(Config::default());
        config.validate().map_err(|error| self.snapshot.contradiction(error.to_string()))?;
        let counts = [
            ("vCPUs", vcpus.len(), usize::from(config.cpus)),
            ("virtio-mem devices", devices.mem.len(), config.hotplug.len()),
            ("reports of drivers", guest.reports.len(), config.hotplug.len()),
            ("balloons", usize::from(devices.balloon.is_some()), usize::from(config.balloon.is_some())),
            ("disks", devices.disks.len(), config.disks.len()),
            ("interrupt chips", chips.len(), 3),
        ];
        match counts.into_iter().find(|(_, saved, described)| saved != described) {
            Some((what, saved, described)) => {
                Err(self.snapshot.contradiction(format!("it has {saved} {what}, and describes {described}")))
            }
            None => Ok(()),
        }
    }

    /// Checks that the machine of `config`, with these files, is the one that was saved.
    pub(crate) fn check_machine(&self, config: &Config, files: [Sum; 2]) -> Result<(), RestoreError> {
        let MachineState { description, files: saved, .. } = &self.state;
        let differs =
            |difference| RestoreError::Differs { path: self.snapshot.path().to_owned(), difference };
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

    /// Checks that `disks` are those of the machine, as far as their size tells.
    pub(crate) fn check_disks(&self, disks: &[Disk]) -> Result<(), RestoreError> {
        for (index, (disk, saved)) in disks.iter().zip(&self.state.devices.disks).enumerate() {
            let [has, had] =
                [disk.sectors(), saved.sectors()].map(|sectors| Size(sectors.saturating_mul(SECTOR)));
            if has != had {
                let path = disk.path().display();
                let difference =
                    format!("--disk #{index}: the saved machine has a disk of {had}, and {path} has {has}");
                return Err(RestoreError::Differs { path: self.snapshot.path().to_owned(), difference });
            }
        }
        Ok(())
    }

    /// Checks that this host can give the CPU, whose time stamp counter has `tsc_khz`.
    pub(crate) fn check_host(&self, host: &[kvm_cpuid_entry2]) -> Result<(), RestoreError> {
        missing(&self.state.cpuid, host).map_or(Ok(()), |why| Err(self.snapshot.host(why)))
    }

    /// Fills `memory`, in which everything that was plugged is plugged.
    pub(crate) fn load_memory(&self, memory: &Memory) -> Result<(), RestoreError> {
        let Content { places, pieces } = &self.state.content;
        if *places != memory.places() {
            return Err(self
                .snapshot
                .contradiction(format!("its memory has {places} bytes, and describes others")));
        }
        // A piece is read once, in the order of the table.
        let mut sums = pieces.iter().map(|piece| piece.1);
        let refused =
            memory.load(pieces.iter().map(|piece| piece.0), |piece, content| {
                let at = piece * PIECE as u64;
                self.snapshot.memory().read_exact_at(content, at).map_err(|error| {
                    RestoreError::Unreadable { path: self.snapshot.path().to_owned(), file: MEMORY, error }
                })?;
                if sums.next() == Some(crc32fast::hash(content)) {
                    Ok(())
                } else {
                    Err(RestoreError::Piece { path: self.snapshot.path().to_owned(), at })
                }
            })?;
        refused.map_or(Ok(()), |piece| {
            Err(self.snapshot.contradiction(format!("the piece {piece} of its memory is not plugged")))
        })
    }
}
