//! Machines whose guests take commands on their consoles, as one: set a size, wait for it, ask.

use std::env;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidevm_machine::{Config, ConsoleMode, GUEST_IMAGE, HotplugConfig, Size, Vm};

use super::{GIB, Guest};
use crate::console::Console;
use crate::qemu;

/// Boot memory: what was in 2 GiB of plugged memory has room in it.
const MEMORY: u64 = 3 * GIB;
/// Plugged memory at most.
const REGION: u64 = 4 * GIB;
const BLOCK: u64 = 2 << 20;
/// So that the host's other load disturbs least.
const CPUS: u8 = 1;
/// Longest wait for one thing. Writing and summing up 2 GiB takes minutes where instructions are counted.
const LIMIT: Duration = Duration::from_secs(20 * 60);
const BOOT_LIMIT: Duration = Duration::from_secs(5 * 60);
/// The last word is for QEMU's emulator, see `tests/linux.rs`; it harms nowhere.
const LINUX_CMDLINE: &str = "console=ttyS0 panic=-1 quiet noxsave";

/// A stock Linux.
#[derive(Clone, Debug)]
pub struct Linux {
    /// Its kernel.
    pub kernel: PathBuf,
    /// A RAM disk that takes commands, see [`crate::console`].
    pub initrd: PathBuf,
}

/// A machine with a guest to be measured.
pub trait Machine {
    /// Sets the plugged size in bytes and waits until it is reached.
    ///
    /// # Errors
    /// It is not.
    fn resize(&mut self, bytes: u64) -> Result<(), String>;

    /// Sends the guest a command and returns its answer, see [`crate::console`].
    ///
    /// # Errors
    /// What has failed.
    fn ask(&mut self, command: &str) -> Result<Vec<String>, String>;

    /// Instructions executed since the start, where they are counted.
    ///
    /// # Errors
    /// They are to be counted, and are not.
    fn instructions(&mut self) -> Result<Option<u64>, String>;
}

/// A machine of QEMU's.
pub struct OnQemu {
    machine: qemu::Machine,
    counts: bool,
    _kernel: Scratch,
}

/// A file that is gone with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(env::temp_dir().join(format!("tidevm-compare-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

impl OnQemu {
    /// Starts it; returns when its guest is ready.
    ///
    /// # Errors
    /// What is missing, or does not start.
    pub fn start(guest: Guest, linux: &Linux, counts: bool) -> Result<Self, String> {
        if let Some(missing) = qemu::missing() {
            return Err(missing);
        }
        let own = Scratch::new("guest");
        let mut options = match guest {
            Guest::Linux => qemu::Options {
                initrd: Some(linux.initrd.clone()),
                cmdline: LINUX_CMDLINE.to_owned(),
                ..qemu::Options::new(linux.kernel.clone(), MEMORY)
            },
            Guest::Tidevm => {
                write_own_guest(&own.0)?;
                qemu::Options::new(own.0.clone(), MEMORY)
            }
        };
        options.cpus = CPUS.into();
        options.hotplug = vec![qemu::Hotplug { block: BLOCK, ..qemu::Hotplug::new(REGION) }];
        options.icount = counts;
        let mut machine = qemu::Machine::start(&options)?;
        machine.set_limit(LIMIT);
        Ok(Self { machine, counts, _kernel: own })
    }
}

fn write_own_guest(path: &Path) -> Result<(), String> {
    fs::write(path, GUEST_IMAGE).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

impl Machine for OnQemu {
    fn resize(&mut self, bytes: u64) -> Result<(), String> {
        self.machine.resize(0, bytes)?;
        self.machine.wait_plugged(0, bytes)
    }

    fn ask(&mut self, command: &str) -> Result<Vec<String>, String> {
        self.machine.command(command)
    }

    fn instructions(&mut self) -> Result<Option<u64>, String> {
        self.counts.then(|| self.machine.instructions()).transpose()
    }
}

/// The same machine of tidevm's, with its own guest.
#[must_use]
pub fn config() -> Config {
    Config {
        cpus: CPUS,
        memory: Size(MEMORY),
        hotplug: vec![HotplugConfig { block: Size(BLOCK), ..HotplugConfig::new(Size(REGION)) }],
        console: ConsoleMode::Off,
        ..Config::default()
    }
}

/// A machine of tidevm's with Linux in it.
pub struct LinuxOnKvm {
    vm: Vm,
    console: Console,
}

impl LinuxOnKvm {
    /// Starts it; returns when Linux is ready.
    ///
    /// # Errors
    /// What is missing, or does not start.
    pub fn start(linux: &Linux) -> Result<Self, String> {
        let failed = |error: io::Error| format!("no console: {error}");
        let socket = Scratch::new("console");
        let listener = UnixListener::bind(&socket.0).map_err(failed)?;
        let vm = Vm::start(Config {
            kernel: Some(linux.kernel.clone()),
            initrd: Some(linux.initrd.clone()),
            cmdline: Some(LINUX_CMDLINE.to_owned()),
            console: ConsoleMode::Socket(socket.0.clone()),
            ..config()
        });
        let vm = vm.map_err(|error| error.to_string())?;
        // It has connected, or it would not have started.
        let (stream, _) = listener.accept().map_err(failed)?;
        let console = Console::new(stream.try_clone().map_err(failed)?, stream);
        let linux = Self { vm, console };
        linux.console.ready(BOOT_LIMIT).map_err(|error| linux.explain(&error))?;
        Ok(linux)
    }

    /// An error with what can be known of the machine.
    fn explain(&self, error: &str) -> String {
        let (device, last) = (&self.vm.state().mem[0], self.console.last_lines());
        format!("{error}; {device:?}; the console's last lines:\n{last}")
    }
}

impl Machine for LinuxOnKvm {
    fn resize(&mut self, bytes: u64) -> Result<(), String> {
        self.vm.resize(0, Size(bytes)).map_err(|error| error.to_string())?;
        let reached =
            self.vm.wait(LIMIT, "Linux to follow", |state| (state.mem[0].plugged == bytes).then_some(()));
        reached.map_err(|error| self.explain(&error.to_string()))
    }

    fn ask(&mut self, command: &str) -> Result<Vec<String>, String> {
        self.console.command(command, LIMIT).map_err(|error| self.explain(&error))
    }

    fn instructions(&mut self) -> Result<Option<u64>, String> {
        Ok(None)
    }
}
