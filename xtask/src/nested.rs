//! A KVM host on any x86-64 Linux machine: QEMU emulates a CPU with SVM, a stock kernel runs on it
//! and loads its own KVM, and a program runs there with nothing else around it.
//!
//! Kernel and shell come from Debian packages that are unpacked, not installed. The program must be
//! statically linked. It has one serial port for its output, the kernel has another one for its
//! messages, and a third one carries the exit status.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use cpio::newc::{Builder, trailer};
use tidevm_guest_image::workspace_root;

use crate::packages;

const QEMU: &str = "qemu-system-x86_64";
/// Stands for whatever kernel is current.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const SHELL_PACKAGE: &str = "busybox-static";
const MEMORY_MIB: u32 = 4096;
const CPUS: u32 = 2;
/// Longest run; nothing that is meant to run here takes as long.
const LIMIT: Duration = Duration::from_secs(40 * 60);
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the host needs, ready to be started.
pub struct Host {
    kernel: PathBuf,
    shell: PathBuf,
    /// In the order in which they are loaded.
    modules: Vec<PathBuf>,
}

/// Where packages are unpacked and runs leave their traces.
fn folder() -> PathBuf {
    workspace_root().join("target/nested")
}

impl Host {
    /// Finds or fetches everything.
    ///
    /// # Errors
    /// What is missing, and the command that brings it.
    pub fn prepare() -> Result<Self> {
        packages::need_program(QEMU, "qemu-system-x86")?;
        let root = folder().join("root");
        let found = || Self::find(&root);
        if let Some(host) = found() {
            return Ok(host);
        }
        let kernel = packages::depends(KERNEL_PACKAGE, "linux-image-")?;
        eprintln!("unpacking {kernel} and {SHELL_PACKAGE} into {}", root.display());
        packages::unpack(&[&kernel, SHELL_PACKAGE], &folder().join("packages"), &root)?;
        found().with_context(|| format!("{kernel} holds no kernel with KVM for AMD CPUs"))
    }

    fn find(root: &Path) -> Option<Self> {
        let in_folder = |folder: PathBuf, prefix: &str| {
            let entries = fs::read_dir(folder).ok()?;
            let mut names = entries.filter_map(|entry| Some(entry.ok()?.path()));
            names.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        };
        let kernel = in_folder(root.join("boot"), "vmlinuz-")?;
        let tree = in_folder(root.join("lib/modules"), "")?.join("kernel");
        let mut modules = Vec::new();
        add_module(&tree, "kvm-amd", &mut modules)?;
        let shell = root.join("bin/busybox");
        shell.exists().then_some(Self { kernel, shell, modules })
    }

    /// Runs `program` with `arguments` and returns its exit status. Arguments that name files here
    /// name the same files there.
    ///
    /// # Errors
    /// QEMU or the kernel does not start, or the program does not end within [`LIMIT`].
    pub fn run(&self, program: &Path, arguments: &[String]) -> Result<ExitCode> {
        let folder = folder();
        fs::create_dir_all(&folder)?;
        let (initramfs, console, status) =
            (folder.join("initramfs"), folder.join("console.log"), folder.join("status"));
        self.pack(&initramfs, program, arguments)?;
        fs::write(&status, "")?;
        let mut qemu = Command::new(QEMU);
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-no-reboot", "-net", "none"])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-smp", &CPUS.to_string(), "-m", &MEMORY_MIB.to_string()])
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-chardev", "stdio,id=program,signal=on", "-serial", "chardev:program"])
            .args(["-serial", &format!("file:{}", status.display())])
            .stdin(Stdio::null());
        wait(qemu.spawn().with_context(|| format!("cannot run {QEMU}"))?)?;
        let text = fs::read_to_string(&status)?;
        let status: Option<u8> = text.trim().parse().ok();
        status.map(ExitCode::from).ok_or_else(|| {
            let log = fs::read_to_string(&console).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(20).collect();
            let last: Vec<_> = last.into_iter().rev().collect();
            anyhow!("the nested host ended before the program did; its last words:\n{}", last.join("\n"))
        })
    }

    /// Writes the archive that the kernel unpacks as its file system.
    fn pack(&self, archive: &Path, program: &Path, arguments: &[String]) -> Result<()> {
        let mut out =
            fs::File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
        for folder in ["bin", "dev", "proc", "sys", "tmp", "lib", "files"] {
            add(&mut out, folder, 0o040_755, b"")?;
        }
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        add(&mut out, "bin/busybox", 0o100_755, &read(&self.shell)?)?;
        add(&mut out, "bin/program", 0o100_755, &read(program)?)?;
        let mut load = String::new();
        for module in &self.modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            add(&mut out, &format!("lib/{name}"), 0o100_644, &read(module)?)?;
            load.push_str(&format!("insmod /lib/{name}\n"));
        }
        let mut command = "/bin/program".to_owned();
        for (index, argument) in arguments.iter().enumerate() {
            let mut there = argument.clone();
            if Path::new(argument).is_file() {
                let name = Path::new(argument).file_name().unwrap_or_default().to_string_lossy();
                there = format!("files/{index}-{name}");
                add(&mut out, &there, 0o100_644, &read(Path::new(argument))?)?;
            }
            command.push_str(&format!(" '{}'", there.replace('\'', r"'\''")));
        }
        let color = if std::io::stdout().is_terminal() { "" } else { "export NO_COLOR=1" };
        let init = include_str!("nested/init.sh");
        let init = init.replace("@LOAD@", &load).replace("@COLOR@", color).replace("@COMMAND@", &command);
        add(&mut out, "init", 0o100_755, init.as_bytes())?;
        trailer(&mut out)?;
        Ok(())
    }
}

fn add(out: &mut fs::File, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let size = u32::try_from(bytes.len()).with_context(|| format!("{name} is too large"))?;
    let mut entry = Builder::new(name).mode(mode).nlink(1).write(&mut *out, size);
    entry.write_all(bytes)?;
    entry.finish()?;
    Ok(())
}

/// Adds module `name`, after those that it needs, unless it is there. `None` when it does not exist.
fn add_module(tree: &Path, name: &str, modules: &mut Vec<PathBuf>) -> Option<()> {
    let file = format!("{name}.ko");
    let path = search(tree, &file)?;
    if modules.contains(&path) {
        return Some(());
    }
    for needed in needs(&fs::read(&path).ok()?) {
        add_module(tree, &needed, modules)?;
    }
    modules.push(path);
    Some(())
}

/// The modules that a module names in its section of `key=value` strings.
fn needs(module: &[u8]) -> Vec<String> {
    let mut strings = module.split(|&byte| byte == 0);
    let line = strings.find_map(|string| string.strip_prefix(b"depends="));
    let line = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
    line.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn search(folder: &Path, file: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().replace('_', "-") == file.replace('_', "-") {
                return Some(path);
            }
            if entry.file_type().ok()?.is_dir() {
                folders.push(path);
            }
        }
    }
    None
}

fn wait(mut qemu: std::process::Child) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = qemu.try_wait()? {
            if !status.success() {
                bail!("{QEMU} failed: {status}");
            }
            return Ok(());
        }
        if Instant::now() > deadline {
            qemu.kill()?;
            qemu.wait()?;
            bail!("waited {} minutes for the program on the nested host to end", LIMIT.as_secs() / 60);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The statically linked program that `name` stands for: `tidevm`, `sessions` (the session tests),
/// or a file.
///
/// # Errors
/// It cannot be built, or there is no such file.
pub fn program(name: &str) -> Result<PathBuf> {
    let (package, build): (&str, &[&str]) = match name {
        "tidevm" => ("tidevm", &["build", "--bin", "tidevm"]),
        "sessions" => ("tidevm-tests", &["test", "--no-run", "--test", "sessions"]),
        file if Path::new(file).is_file() => return Ok(file.into()),
        other => bail!("{other} is neither `tidevm` nor `sessions` nor a file"),
    };
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace_root())
        .args(build)
        .args([
            "--release",
            "--package",
            package,
            "--target",
            TARGET,
            "--message-format",
            "json-render-diagnostics",
        ])
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("building {name} for the nested host failed: {}", output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let executable = message["executable"].as_str()?.to_owned();
        (message["target"]["name"] == name).then_some(executable)
    });
    executables.next_back().map(PathBuf::from).with_context(|| format!("cargo built no {name}"))
}
