//! The nested host: a KVM host on any x86-64 Linux machine. QEMU emulates a CPU with SVM, a stock kernel runs on
//! that CPU and loads its own KVM, and one program runs on that kernel.
//!
//! The program must be statically linked. Its output goes to one serial port, the kernel's messages to a second,
//! and the exit status to a third. The file system has a stock Linux guest for the program to boot; environment
//! variables name its files.
//!
//! Invariant: one run at a time per working tree, because runs share the files that they leave.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tidevm_guest_image::workspace_root;

use crate::initramfs::Initramfs;
use crate::packages;
use crate::static_program;
use crate::stock::Stock;

const QEMU: &str = "qemu-system-x86_64";
/// A real CPU model, with the features that a hypervisor needs. QEMU warns about features that it does not emulate.
const CPU: &str = "EPYC-Rome,+svm,+npt";
/// Memory of the host in most runs.
pub const MEMORY_MIB: u32 = 4096;
/// CPUs of the host. With two, QEMU 7.2 sometimes (once in minutes) leaves both waiting for each other for ever. One
/// is enough, because the vCPUs of a guest can take turns.
const CPUS: u32 = 1;
/// The kernel's command line. It makes the timer periodic, because QEMU's emulator sometimes loses an interrupt that
/// comes while a CPU enters or leaves a guest. A periodic timer ticks again. A one-shot timer would never be set
/// again, and everything that waits for time would wait for ever.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet nohz=off highres=off";
/// Longest run. Every intended run is shorter.
const LIMIT: Duration = Duration::from_secs(40 * 60);
/// Longest silence of a program. After it the host counts as dead.
const SILENCE: Duration = Duration::from_secs(3 * 60);

/// A nested host that is ready to start.
pub struct Host {
    /// The kernel of the host and of its guests.
    pub stock: Stock,
}

/// The folder for unpacked packages and for the files of runs.
fn folder() -> PathBuf {
    workspace_root().join("target/nested")
}

/// Why QEMU cannot be used, or `None`.
pub fn missing_qemu() -> Option<String> {
    let output = Command::new(QEMU).arg("--version").output();
    output.err().map(|error| format!("{QEMU} cannot be run: {error}"))
}

impl Host {
    /// Finds or fetches QEMU and the stock Linux.
    ///
    /// # Errors
    /// A part is missing; the text names the command that installs it.
    pub fn prepare() -> Result<Self> {
        packages::need_program(QEMU, "qemu-system-x86")?;
        Ok(Self { stock: Stock::prepare(&folder())? })
    }

    /// Runs `program` with `arguments` and returns its exit status. An argument that names a file of this machine
    /// is replaced by the name of a copy on the nested host.
    ///
    /// # Errors
    /// QEMU or the kernel does not start, or the program does not end within [`LIMIT`].
    pub fn run(&self, program: &Path, arguments: &[String]) -> Result<ExitCode> {
        self.boot(program, arguments, MEMORY_MIB, Stdio::inherit(), |_| ())
    }

    /// As [`Host::run`] on a host with `memory_mib` of memory. The program's output goes to `each`, line by line.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn run_for(
        &self,
        program: &Path,
        arguments: &[String],
        memory_mib: u32,
        each: impl FnMut(&str) + Send,
    ) -> Result<ExitCode> {
        self.boot(program, arguments, memory_mib, Stdio::piped(), each)
    }

    fn boot(
        &self,
        program: &Path,
        arguments: &[String],
        memory_mib: u32,
        stdout: Stdio,
        mut each: impl FnMut(&str) + Send,
    ) -> Result<ExitCode> {
        let folder = folder();
        fs::create_dir_all(&folder)?;
        // One run at a time: runs share the files in this folder.
        let lock = fs::File::create(folder.join("lock"))?;
        lock.lock()?;
        let [initramfs, console, output, status, warnings] =
            ["initramfs", "console.log", "output.log", "status", "qemu.log"].map(|name| folder.join(name));
        fs::write(&initramfs, self.pack(program, arguments)?)?;
        fs::write(&status, "")?;
        let mut qemu = Command::new(QEMU);
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-no-reboot", "-net", "none"])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-smp", &CPUS.to_string(), "-m", &memory_mib.to_string()])
            .args(["-append", CMDLINE])
            .arg("-kernel")
            .arg(&self.stock.kernel)
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-chardev", &format!("stdio,id=program,signal=on,logfile={}", output.display())])
            .args(["-serial", "chardev:program"])
            .args(["-serial", &format!("file:{}", status.display())])
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(fs::File::create(&warnings)?);
        let mut qemu = qemu.spawn().with_context(|| format!("cannot run {QEMU}"))?;
        let piped = qemu.stdout.take();
        thread::scope(|scope| {
            if let Some(piped) = piped {
                // A serial port may deliver any byte.
                let lines = BufReader::new(piped).split(b'\n').map_while(Result::ok);
                scope.spawn(move || lines.for_each(|line| each(String::from_utf8_lossy(&line).trim_end())));
            }
            wait(qemu, &output).with_context(|| format!("see {}", warnings.display()))
        })?;
        let text = fs::read_to_string(&status)?;
        let status: Option<u8> = text.trim().parse().ok();
        status.map(ExitCode::from).ok_or_else(|| {
            let log = fs::read_to_string(&console).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(20).collect();
            let last: Vec<_> = last.into_iter().rev().collect();
            anyhow!("the nested host ended before the program did; its last words:\n{}", last.join("\n"))
        })
    }

    /// The host's file system.
    fn pack(&self, program: &Path, arguments: &[String]) -> Result<Vec<u8>> {
        let mut archive = Initramfs::new(&self.stock.shell)?;
        let load = archive.modules(&self.stock.modules(&["kvm-amd"])?)?;
        archive.program("bin/program", program)?;
        archive.copy("linux/vmlinuz", &self.stock.kernel)?;
        archive.file("linux/vmlinux", &self.stock.elf()?)?;
        archive.file("linux/initrd", &linux_guest(&self.stock)?)?;
        let mut command = "/bin/program".to_owned();
        for (index, argument) in arguments.iter().enumerate() {
            // `FILE`, or `--option=FILE`.
            let (option, file) = match argument.split_once('=') {
                Some((option, value)) if argument.starts_with("--") => (format!("{option}="), value),
                _ => (String::new(), argument.as_str()),
            };
            let mut there = argument.clone();
            if Path::new(file).is_file() {
                let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
                let path = format!("files/{index}-{name}");
                archive.copy(&path, Path::new(file))?;
                there = option + &path;
            }
            command.push_str(&format!(" '{}'", there.replace('\'', r"'\''")));
        }
        let color = if std::io::stdout().is_terminal() { "" } else { "export NO_COLOR=1" };
        let init = include_str!("nested/host-init.sh");
        let init = init.replace("@LOAD@", &load).replace("@COLOR@", color).replace("@COMMAND@", &command);
        archive.finish(&init)
    }
}

/// The file system of a stock Linux guest that prints the state of its memory.
fn linux_guest(stock: &Stock) -> Result<Vec<u8>> {
    let mut archive = Initramfs::new(&stock.shell)?;
    // ext4, which mounts ext2 too, asks for crc32c without naming it.
    let load = archive.modules(&stock.modules(&[
        "virtio_mmio",
        "virtio_console",
        "virtio_mem",
        "virtio_balloon",
        "virtio_blk",
        "crc32c_generic",
        "ext4",
    ])?)?;
    archive.finish(&include_str!("nested/linux-init.sh").replace("@LOAD@", &load))
}

/// Waits until the host ends. Fails when the file `output` has not grown for too long.
fn wait(mut qemu: std::process::Child, output: &Path) -> Result<()> {
    let start = Instant::now();
    let (mut written, mut last) = (0, start);
    loop {
        if let Some(status) = qemu.try_wait()? {
            if !status.success() {
                bail!("{QEMU} failed: {status}");
            }
            return Ok(());
        }
        let length = fs::metadata(output).map_or(0, |file| file.len());
        if length != written {
            (written, last) = (length, Instant::now());
        }
        let (limit, waited_for) = if last.elapsed() > SILENCE {
            (SILENCE, "say something")
        } else if start.elapsed() > LIMIT {
            (LIMIT, "end")
        } else {
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        qemu.kill()?;
        qemu.wait()?;
        bail!("waited {} minutes for the program on the nested host to {waited_for}", limit.as_secs() / 60);
    }
}

/// The statically linked program that `name` stands for: `tidevm`, `sessions` or `linux` (tests),
/// `compare` (which measures), `soak`, or a file.
///
/// # Errors
/// It cannot be built, or there is no such file.
pub fn program(name: &str) -> Result<PathBuf> {
    let (package, build): (&str, &[&str]) = match name {
        "tidevm" => ("tidevm", &["build", "--bin", "tidevm"]),
        "sessions" => ("tidevm-tests", &["test", "--no-run", "--test", "sessions"]),
        "linux" => ("tidevm-tests", &["test", "--no-run", "--test", "linux"]),
        "soak" => ("tidevm-soak", &["build", "--bin", "soak"]),
        "compare" => ("tidevm-lab", &["build", "--bin", "compare"]),
        file if Path::new(file).is_file() => return Ok(file.into()),
        other => bail!("{other} is neither `tidevm` nor `sessions` nor `linux` nor `soak` nor a file"),
    };
    static_program::build(name, package, build)
}
