//! Machines run by QEMU's emulator, which needs no KVM. They compare guests with each other, and run tidevm's guest on
//! an independent virtio-mem device.
//!
//! A machine is a q35, or a microvm, with a serial console that takes commands (see [`crate::console`]). It has one `virtio-mem-pci`
//! device per hotplug region, named `mem0`, `mem1` and so on. A guest ends the machine by writing a byte to the port
//! [`tidevm_abi::EXIT_PORT`]; QEMU's exit status is twice that byte, plus one.
//!
//! Invariant: dropping a machine kills its QEMU and removes its files.

mod program;
pub mod qmp;

use std::env;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::iter;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidevm_abi::{EXIT_PORT, Size};

use crate::console::Console;
use program::QEMU;
pub use program::{has_property, missing};
use qmp::Qmp;

const MICROVM: &str = "microvm,acpi=off,pit=off,pic=off,rtc=off,auto-kernel-cmdline=off";

/// Pause between two polls of a state that QEMU does not report.
const PAUSE: Duration = Duration::from_millis(5);

/// The properties of a machine.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// A bzImage, or an ELF file with a PVH entry.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Number of CPUs.
    pub cpus: u32,
    /// Boot memory, a multiple of 1 MiB. It may be more than the host has: the host gives what the guest writes to.
    pub memory: Size,
    /// The hotplug regions, each with a virtio-mem device.
    pub hotplug: Vec<Hotplug>,
    /// QEMU's microvm instead of its q35: no PCI and no ACPI, as in tidevm's own machine, and so no hotplug regions.
    pub microvm: bool,
    /// Features of the CPU that it lacks or has beside those that QEMU can emulate, as QEMU writes them: `pdpe1gb=off`.
    pub cpu_features: Vec<String>,
    /// Whether to count instructions, for [`QemuMachine::instructions`]. CPUs then take turns, and the machine is
    /// several times slower.
    pub icount: bool,
    /// Whether the guest can end the machine by the port [`EXIT_PORT`].
    pub exit_port: bool,
    /// The longest wait for one event: for the guest to be ready, for an answer, for a size.
    pub limit: Duration,
    /// Further arguments of QEMU.
    pub extra: Vec<String>,
}

/// A hotplug region and its device.
#[derive(Clone, Debug)]
pub struct Hotplug {
    /// Size of the region.
    pub size: Size,
    /// Size of a device block.
    pub device_block: Size,
    /// How much the device asks the guest to plug at boot.
    pub requested: Size,
    /// A file with the region's memory, instead of anonymous memory of QEMU. QEMU creates it, or extends it to the
    /// size of the region. A write to the file changes the guest's memory without the guest's knowledge.
    pub backing: Option<PathBuf>,
}

impl QemuConfig {
    /// A machine with one CPU and without a hotplug region.
    #[must_use]
    pub fn new(kernel: PathBuf, memory: Size) -> Self {
        Self {
            kernel,
            initrd: None,
            cmdline: String::new(),
            cpus: 1,
            memory,
            hotplug: Vec::new(),
            microvm: false,
            cpu_features: Vec::new(),
            icount: false,
            exit_port: true,
            limit: Duration::from_secs(120),
            extra: Vec::new(),
        }
    }

    fn arguments(&self, socket: &Path) -> Command {
        let mut qemu = Command::new(QEMU);
        let memory = format!("memory-backend-ram,id=memory,reserve=off,size={}B", self.memory.0);
        let machine = if self.microvm { MICROVM } else { "q35" };
        qemu.args(["-object", &memory, "-machine", &format!("{machine},memory-backend=memory")]);
        let cpu = iter::once("max").chain(self.cpu_features.iter().map(String::as_str)).collect::<Vec<_>>();
        qemu.args(["-accel", "tcg", "-cpu", &cpu.join(","), "-smp", &self.cpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-qmp", &format!("unix:{}", socket.display())])
            .args(["-append", &self.cmdline])
            .arg("-kernel")
            .arg(&self.kernel);
        if self.exit_port {
            qemu.args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4")]);
        }
        if let Some(initrd) = &self.initrd {
            qemu.arg("-initrd").arg(initrd);
        }
        if self.icount {
            // Without `sleep=off`, which would make an idle guest run from timer to timer without a pause. Without
            // `rr=record`, with which QEMU 7.2 stops passing console input to the guest.
            qemu.args(["-icount", "shift=0"]);
        }
        let (slots, regions) = (self.hotplug.len(), self.hotplug.iter().map(|region| region.size.0));
        let most = self.memory.0 + regions.sum::<u64>();
        match slots {
            0 => qemu.args(["-m", &format!("{}M", self.memory.0 >> 20)]),
            _ => qemu.args(["-m", &format!("{}M,slots={slots},maxmem={most}B", self.memory.0 >> 20)]),
        };
        for (index, Hotplug { size, device_block, requested, backing }) in self.hotplug.iter().enumerate() {
            let backend = match backing {
                Some(path) => format!("memory-backend-file,share=on,mem-path={}", path.display()),
                None => "memory-backend-ram,reserve=off".to_owned(),
            };
            qemu.args(["-object", &format!("{backend},id=backend{index},size={}B", size.0)]);
            let device = format!("virtio-mem-pci,id=mem{index},memdev=backend{index}");
            let (block, requested) = (device_block.0, requested.0);
            qemu.args(["-device", &format!("{device},block-size={block}B,requested-size={requested}B")]);
        }
        qemu.args(&self.extra);
        qemu
    }
}

impl Hotplug {
    /// An empty region with device blocks of 2 MiB.
    #[must_use]
    pub fn new(size: Size) -> Self {
        Self { size, device_block: Size::mib(2), requested: Size(0), backing: None }
    }
}

/// A folder that is removed when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("tidevm-qemu-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A running QEMU. Dropping it kills QEMU.
struct Process {
    child: Child,
    /// The file with its standard error.
    complaints: PathBuf,
}

impl Process {
    fn complaints(&self) -> String {
        fs::read_to_string(&self.complaints).unwrap_or_default()
    }

    /// Calls `look` repeatedly, for at most `limit`, until it returns something.
    fn poll<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut look: impl FnMut(&mut Child) -> Result<Option<T>, String>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = look(&mut self.child)? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(format!("waited {limit:?} for {what}"));
            }
            thread::sleep(PAUSE);
        }
    }

    /// The connection that QEMU makes to `listener`.
    fn accept(&mut self, listener: &UnixListener, limit: Duration) -> Result<UnixStream, String> {
        let accept = |child: &mut Child| match listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => match child.try_wait() {
                Ok(None) => Ok(None),
                Ok(Some(status)) => Err(format!("{QEMU} did not start: {status}")),
                Err(error) => Err(format!("cannot ask for {QEMU}: {error}")),
            },
            Err(error) => Err(format!("{QEMU} cannot connect: {error}")),
        };
        self.poll(limit, "QEMU to connect", accept)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A running machine. It is killed when this is dropped.
pub struct QemuMachine {
    // The order of the fields is the order in which they are dropped.
    process: Process,
    qmp: Qmp,
    console: Console,
    limit: Duration,
    _folder: Folder,
}

impl QemuMachine {
    /// Starts a machine and waits until its guest takes commands.
    ///
    /// # Errors
    /// QEMU does not start, or the guest is not ready within the limit. The text has their last messages.
    pub fn start(options: &QemuConfig) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot run {QEMU}: {error}");
        let folder = Folder::new().map_err(failed)?;
        let [socket, complaints] = ["qmp", "complaints"].map(|name| folder.0.join(name));
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let mut child = options
            .arguments(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&complaints).map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let mut process = Process { child, complaints };
        let console = Console::new(input.expect("a pipe"), output.expect("a pipe"));
        let connected = process.accept(&listener, options.limit);
        let qmp = connected
            .and_then(|stream| Qmp::new(stream, options.limit))
            .map_err(|error| format!("{error}; it says:\n{}", process.complaints()))?;
        let machine = Self { process, qmp, console, limit: options.limit, _folder: folder };
        machine.console.ready(options.limit).map_err(|error| machine.explain(&error))?;
        Ok(machine)
    }

    /// Changes the longest wait for one event, which starts as [`QemuConfig::limit`].
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// The whole console output.
    pub fn text(&self) -> String {
        self.console.text()
    }

    /// What QEMU has written to its standard error: complaints, and what `-trace` asks for.
    pub fn complaints(&self) -> String {
        self.process.complaints()
    }

    /// Sends the guest a command and returns its answer, see [`Console::command`].
    ///
    /// # Errors
    /// The command failed. The text has the last lines of the console.
    pub fn command(&mut self, line: &str) -> Result<Vec<String>, String> {
        self.console.command(line, self.limit).map_err(|error| self.explain(&error))
    }

    /// Sets the target of device `mem{device}`.
    ///
    /// # Errors
    /// QEMU refuses it.
    pub fn resize(&mut self, device: usize, size: Size) -> Result<(), String> {
        let path = format!("/machine/peripheral/mem{device}");
        let arguments = json!({ "path": path, "property": "requested-size", "value": size.0 });
        self.qmp.execute("qom-set", arguments).map(|_| ()).map_err(|error| self.explain(&error))
    }

    /// How much of device `mem{device}` is plugged.
    ///
    /// # Errors
    /// There is no such device.
    pub fn plugged(&mut self, device: usize) -> Result<Size, String> {
        self.property(device, "size")
    }

    /// The target of device `mem{device}`.
    ///
    /// # Errors
    /// There is no such device.
    pub fn requested(&mut self, device: usize) -> Result<Size, String> {
        self.property(device, "requested-size")
    }

    /// Waits until `size` of device `mem{device}` is plugged.
    ///
    /// # Errors
    /// It is not plugged within the limit. The text has the last lines of the console.
    pub fn wait_plugged(&mut self, device: usize, size: Size) -> Result<(), String> {
        let deadline = Instant::now() + self.limit;
        loop {
            let plugged = self.plugged(device)?;
            if plugged == size {
                return Ok(());
            }
            if Instant::now() > deadline {
                let error =
                    format!("waited {:?} for {size} of mem{device} to be plugged; {plugged} is", self.limit);
                return Err(self.explain(&error));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Number of instructions that the CPUs have executed.
    ///
    /// # Errors
    /// The machine does not count instructions.
    pub fn instructions(&mut self) -> Result<u64, String> {
        let state = self.qmp.execute("query-replay", json!({})).map_err(|error| self.explain(&error))?;
        let count = state["icount"].as_u64().filter(|&count| count > 0);
        count.ok_or_else(|| format!("this machine counts no instructions: {state}"))
    }

    /// Tells the guest to power off, and waits for the end of QEMU. The guest does not answer this command.
    ///
    /// # Errors
    /// See [`QemuMachine::wait_exit`].
    pub fn power_off(&mut self) -> Result<ExitStatus, String> {
        self.end_by("poweroff")
    }

    /// Tells the guest to reset the machine, and waits for the end of QEMU, which takes a reset for its end. The guest does
    /// not answer this command.
    ///
    /// # Errors
    /// See [`QemuMachine::wait_exit`].
    pub fn reboot(&mut self) -> Result<ExitStatus, String> {
        self.end_by("reboot")
    }

    fn end_by(&mut self, line: &str) -> Result<ExitStatus, String> {
        self.console.send(line).map_err(|error| self.explain(&error))?;
        self.wait_exit()
    }

    /// Waits until the guest has ended the machine. After a power-off by ACPI, or a reset, the status is 0. The start of this file
    /// explains the others.
    ///
    /// # Errors
    /// The guest does not end the machine within the limit. The text has the last lines of the console.
    pub fn wait_exit(&mut self) -> Result<ExitStatus, String> {
        let look = |child: &mut Child| child.try_wait().map_err(|error| format!("cannot wait: {error}"));
        let ended = self.process.poll(self.limit, "the guest to end the machine", look);
        ended.map_err(|error| self.explain(&error))
    }

    fn property(&mut self, device: usize, name: &str) -> Result<Size, String> {
        let arguments = json!({ "path": format!("/machine/peripheral/mem{device}"), "property": name });
        let value = self.qmp.execute("qom-get", arguments);
        let size =
            |value: Value| value.as_u64().map(Size).ok_or_else(|| format!("mem{device} has {name} {value}"));
        value.and_then(size).map_err(|error| self.explain(&error))
    }

    /// An error text with the last messages of QEMU and of the guest.
    fn explain(&self, error: &str) -> String {
        let (complaints, last) = (self.process.complaints(), self.console.last_lines());
        format!("{error}\nQEMU's complaints:\n{complaints}\nthe console's last lines:\n{last}")
    }
}
