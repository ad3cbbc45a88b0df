//! [`MeasuredVm`]: one interface to VMs whose guests take commands on their consoles.

use std::env;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidevm_machine::{Config, Confinement, ConsoleMode, GUEST_IMAGE, HotplugConfig, Size, Vm};

use super::Guest;
use crate::console::Console;
use crate::qemu;

/// Boot memory: the data of 2 GiB of plugged memory fits into it.
const MEMORY: Size = Size::gib(3);
/// Size of the hotplug region.
const REGION: Size = Size::gib(4);
const DEVICE_BLOCK: Size = Size::mib(2);
/// One, so that other load on the host disturbs least.
const CPUS: u8 = 1;
/// Longest wait for one event. Writing and checking 2 GiB takes minutes where instructions are counted.
const LIMIT: Duration = Duration::from_secs(20 * 60);
const BOOT_LIMIT: Duration = Duration::from_secs(5 * 60);
/// The last word is for QEMU's emulator, see `tests/linux.rs`. It does no harm on other hosts.
const LINUX_CMDLINE: &str = "console=ttyS0 panic=-1 quiet noxsave";

/// A stock Linux.
#[derive(Clone, Debug)]
pub struct Linux {
    /// Its kernel.
    pub kernel: PathBuf,
    /// A RAM disk that takes commands, see [`crate::console`].
    pub initrd: PathBuf,
}

/// A VM whose guest is measured.
pub trait MeasuredVm {
    /// Sets the plugged size and waits until it is reached.
    ///
    /// # Errors
    /// The size is not reached.
    fn resize(&mut self, size: Size) -> Result<(), String>;

    /// Sends the guest a command and returns its answer, see [`crate::console`].
    ///
    /// # Errors
    /// The guest's reason, or no answer in time.
    fn ask(&mut self, command: &str) -> Result<Vec<String>, String>;

    /// Instructions executed since the start, where they are counted.
    ///
    /// # Errors
    /// This VM should count them, and does not.
    fn instructions(&mut self) -> Result<Option<u64>, String>;
}

/// A VM of QEMU's emulator.
pub struct OnQemu {
    machine: qemu::QemuMachine,
    counts: bool,
    _kernel: Scratch,
}

/// A file that is removed when the value is dropped.
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
    /// A missing program, or a VM that does not start.
    pub fn start(guest: Guest, linux: &Linux, counts: bool) -> Result<Self, String> {
        if let Some(missing) = qemu::missing() {
            return Err(missing);
        }
        let own = Scratch::new("guest");
        let mut options = match guest {
            Guest::Linux => qemu::QemuConfig {
                initrd: Some(linux.initrd.clone()),
                cmdline: LINUX_CMDLINE.to_owned(),
                ..qemu::QemuConfig::new(linux.kernel.clone(), MEMORY)
            },
            Guest::Tidevm => {
                write_own_guest(&own.0)?;
                qemu::QemuConfig::new(own.0.clone(), MEMORY)
            }
        };
        options.cpus = CPUS.into();
        options.hotplug = vec![qemu::Hotplug { device_block: DEVICE_BLOCK, ..qemu::Hotplug::new(REGION) }];
        options.icount = counts;
        let mut machine = qemu::QemuMachine::start(&options)?;
        machine.set_limit(LIMIT);
        Ok(Self { machine, counts, _kernel: own })
    }
}

fn write_own_guest(path: &Path) -> Result<(), String> {
    fs::write(path, GUEST_IMAGE).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

impl MeasuredVm for OnQemu {
    fn resize(&mut self, size: Size) -> Result<(), String> {
        self.machine.resize(0, size)?;
        self.machine.wait_plugged(0, size)
    }

    fn ask(&mut self, command: &str) -> Result<Vec<String>, String> {
        self.machine.command(command)
    }

    fn instructions(&mut self) -> Result<Option<u64>, String> {
        self.counts.then(|| self.machine.instructions()).transpose()
    }
}

/// Starts the same VM on tidevm and passes it to `session`, in a thread that is locked in with it. Without changes of
/// `config`, the guest is tidevm's own.
///
/// # Errors
/// The VM does not start.
pub fn locked_in<T: Send>(
    config: impl FnOnce(Config) -> Config,
    session: impl FnOnce(Vm) -> T + Send,
) -> Result<T, String> {
    Vm::apart(config(self::config()), session).map_err(|error| error.to_string())
}

fn config() -> Config {
    Config {
        cpus: CPUS,
        memory: MEMORY,
        hotplug: vec![HotplugConfig { device_block: DEVICE_BLOCK, ..HotplugConfig::new(REGION) }],
        console: ConsoleMode::Off,
        confinement: Confinement::STRICT,
        ..Config::default()
    }
}

/// A VM of tidevm with Linux as its guest.
pub struct LinuxOnKvm {
    vm: Vm,
    console: Console,
}

impl LinuxOnKvm {
    /// Starts it; returns when Linux is ready.
    ///
    /// # Errors
    /// A missing program, or a VM that does not start.
    pub fn start(linux: &Linux) -> Result<Self, String> {
        let failed = |error: io::Error| format!("no console: {error}");
        let socket = Scratch::new("console");
        let listener = UnixListener::bind(&socket.0).map_err(failed)?;
        let with_linux = |config| Config {
            kernel: Some(linux.kernel.clone()),
            initrd: Some(linux.initrd.clone()),
            cmdline: Some(LINUX_CMDLINE.to_owned()),
            console: ConsoleMode::Connect(socket.0.clone()),
            ..config
        };
        let vm = locked_in(with_linux, |vm| vm)?;
        // This does not block: the VM connects to the socket before its start returns.
        let (stream, _) = listener.accept().map_err(failed)?;
        let console = Console::new(stream.try_clone().map_err(failed)?, stream);
        let linux = Self { vm, console };
        linux.console.ready(BOOT_LIMIT).map_err(|error| linux.explain(&error))?;
        Ok(linux)
    }

    /// The error, with the state of the device and the end of the console.
    fn explain(&self, error: &str) -> String {
        let (device, last) = (&self.vm.state().mem[0], self.console.last_lines());
        format!("{error}; {device:?}; the console's last lines:\n{last}")
    }
}

impl MeasuredVm for LinuxOnKvm {
    fn resize(&mut self, size: Size) -> Result<(), String> {
        self.vm.resize(0, size).map_err(|error| error.to_string())?;
        let reached =
            self.vm.wait(LIMIT, "Linux to follow", |state| (state.mem[0].plugged == size).then_some(()));
        reached.map_err(|error| self.explain(&error.to_string()))
    }

    fn ask(&mut self, command: &str) -> Result<Vec<String>, String> {
        self.console.command(command, LIMIT).map_err(|error| self.explain(&error))
    }

    fn instructions(&mut self) -> Result<Option<u64>, String> {
        Ok(None)
    }
}
