//! What is judged: a VMM that starts a machine with the judge's guest, has its serial line, and sets targets.
//!
//! A VMM is a program with its serial line on standard input and output, and an API ([`Vmm`]). [`Program`] is such a VMM as a
//! [`Subject`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tidevm_abi::Size;
use tidevm_abi::cmdline::JUDGE;

use child::{Child, Folder, Input};

mod child;
mod cloud_hypervisor;
mod firecracker;
mod qemu;
mod rest;
mod tidevm;

pub use cloud_hypervisor::CloudHypervisor;
pub use firecracker::Firecracker;
pub use qemu::Qemu;
pub use tidevm::Tidevm;

/// Boot memory of the machines.
pub const MEMORY: Size = Size::mib(256);
/// Size of the region. Targets on both sides of 4 GiB are possible.
pub const REGION: Size = Size::gib(8);
/// Size of a device block.
pub const BLOCK: Size = Size::mib(2);

/// Longest time until a program tells its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// Longest time for one call of an API.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// What was heard on the serial line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A whole line.
    Line(String),
    /// Nothing, until the deadline.
    Silence,
    /// The machine has ended, in this way.
    Ended(String),
}

/// Why a program cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// It cannot be run.
    #[error("{}: cannot be run: {error}; install it, or name the program by --binary", binary.display())]
    NotThere {
        /// The program.
        binary: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// It is another program, or none of that VMM's.
    #[error("{}: is not {vmm}: `--version` prints {said:?}; give that VMM's program by --binary", binary.display())]
    Stranger {
        /// The program.
        binary: PathBuf,
        /// The VMM that it should be.
        vmm: &'static str,
        /// The first line that it printed.
        said: String,
    },
    /// It does not tell its version.
    #[error("{}: does not tell its version within {VERSION_LIMIT:?}; it was killed", binary.display())]
    Silent {
        /// The program.
        binary: PathBuf,
    },
}

/// A VMM before its judge.
pub trait Subject {
    /// The VMM's name, for people.
    fn name(&self) -> &'static str;

    /// The line in which the VMM tells its version.
    ///
    /// # Errors
    /// It is not that VMM.
    fn version(&mut self) -> Result<String, SubjectError>;

    /// Starts a machine with the judge's guest; one that runs is killed.
    ///
    /// # Errors
    /// It does not start before `until`.
    fn start(&mut self, until: Instant) -> Result<(), String>;

    /// Sends a line to the guest.
    ///
    /// # Errors
    /// The machine does not take it.
    fn send(&mut self, line: &str) -> Result<(), String>;

    /// What the guest says next, until `until`.
    fn hear(&mut self, until: Instant) -> Heard;

    /// Sets the target of the device, in bytes, before `until`.
    ///
    /// # Errors
    /// The VMM refuses it, or does not answer.
    fn resize(&mut self, bytes: u64, until: Instant) -> Result<(), String>;

    /// Ends the machine at once.
    fn kill(&mut self);
}

/// The ways of one VMM.
pub trait Vmm {
    /// The connection to its API.
    type Api;

    /// Its name.
    const NAME: &'static str;
    /// Where its program is found when none is named.
    const BINARY: &'static str;
    /// Begins the first line that it prints at `--version`.
    const VERSION: &'static str;

    /// What its serial line is read from.
    const INPUT: Input = Input::Pipe;

    /// Adds the arguments that start a machine with the `kernel`, whose files may be in `folder`.
    fn arguments(&self, command: &mut Command, folder: &Path, kernel: &Path);

    /// Connects to the API of the program that was just started, and starts the machine if that takes a call. Called again
    /// while it returns `None`.
    ///
    /// # Errors
    /// The machine cannot be started.
    fn connect(&self, folder: &Path, kernel: &Path) -> Result<Option<Self::Api>, String>;

    /// Sets the target in bytes. The answer has to come within `limit`.
    ///
    /// # Errors
    /// The VMM refuses it, or does not answer.
    fn resize(api: &mut Self::Api, bytes: u64, limit: Duration) -> Result<(), String>;
}

/// A VMM's program.
pub struct Program<V: Vmm> {
    vmm: V,
    binary: PathBuf,
    /// The guest's image.
    image: &'static [u8],
    running: Option<Running<V>>,
}

// The machine ends before its folder is removed.
struct Running<V: Vmm> {
    child: Child,
    api: Option<V::Api>,
    folder: Folder,
}

impl<V: Vmm> Program<V> {
    /// The program `binary`, or the one of the usual name, which is to boot `image`.
    pub fn new(vmm: V, binary: Option<PathBuf>, image: &'static [u8]) -> Self {
        Self { vmm, binary: binary.unwrap_or_else(|| V::BINARY.into()), image, running: None }
    }

    fn begin(&mut self) -> std::io::Result<()> {
        let folder = Folder::new()?;
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, self.image)?;
        let mut command = Command::new(&self.binary);
        self.vmm.arguments(&mut command, folder.path(), &kernel);
        let child = Child::spawn(&mut command, V::INPUT, &folder.path().join("complaints"))?;
        self.running = Some(Running { child, api: None, folder });
        Ok(())
    }
}

impl<V: Vmm> Subject for Program<V> {
    fn name(&self) -> &'static str {
        V::NAME
    }

    fn version(&mut self) -> Result<String, SubjectError> {
        let binary = self.binary.clone();
        match child::first_line(Command::new(&binary).arg("--version"), VERSION_LIMIT) {
            Ok(Some(said)) if said.starts_with(V::VERSION) => Ok(said),
            Ok(Some(said)) => Err(SubjectError::Stranger { binary, vmm: V::NAME, said }),
            Ok(None) => Err(SubjectError::Silent { binary }),
            Err(error) => Err(SubjectError::NotThere { binary, error }),
        }
    }

    fn start(&mut self, until: Instant) -> Result<(), String> {
        self.kill();
        self.begin().map_err(|error| format!("{}: {error}", self.binary.display()))?;
        let Some(Running { child, api, folder }) = &mut self.running else { return Ok(()) };
        let kernel = folder.path().join("kernel");
        while api.is_none() {
            if let Some(how) = child.ended() {
                return Err(how);
            }
            if Instant::now() >= until {
                return Err("its API does not answer".to_owned());
            }
            *api = self.vmm.connect(folder.path(), &kernel)?;
            if api.is_none() {
                std::thread::sleep(child::PAUSE);
            }
        }
        Ok(())
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        self.running.as_mut().ok_or("no machine runs")?.child.send(line)
    }

    fn hear(&mut self, until: Instant) -> Heard {
        match &mut self.running {
            Some(running) => running.child.hear(until),
            None => Heard::Ended("no machine runs".to_owned()),
        }
    }

    fn resize(&mut self, bytes: u64, until: Instant) -> Result<(), String> {
        let limit = until.saturating_duration_since(Instant::now()).min(CALL_LIMIT);
        let api = self.running.as_mut().and_then(|running| running.api.as_mut()).ok_or("no machine runs")?;
        V::resize(api, bytes, limit.max(child::PAUSE))
    }

    fn kill(&mut self) {
        self.running = None;
    }
}

/// The guest's command line.
fn cmdline() -> String {
    format!("{JUDGE}=on")
}

/// The size in whole MiB, as the APIs of Firecracker and its kin want it.
///
/// # Errors
/// It is none.
fn mib(bytes: u64) -> Result<u64, String> {
    const MIB: u64 = 1 << 20;
    if bytes.is_multiple_of(MIB) { Ok(bytes / MIB) } else { Err(format!("{bytes} bytes are no whole MiB")) }
}
