//! A stock Linux: a kernel with its modules, and a shell, from Debian packages that are unpacked and not
//! installed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::initramfs::{Initramfs, Module};
use crate::packages;

/// A package that depends on the current kernel.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const SHELL_PACKAGE: &str = "busybox-static";

/// The compressions of the kernel in a bzImage: the first bytes, the program that decompresses, and the package
/// of the program.
const PACKERS: [(&[u8], &str, &str); 4] = [
    (b"\x1f\x8b", "gzip", "gzip"),
    (b"\xfd7zXZ\0", "xz", "xz-utils"),
    (b"\x02!L\x18", "lz4", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd"),
];

/// The paths of the parts.
pub struct Stock {
    /// A bzImage.
    pub kernel: PathBuf,
    /// A static busybox.
    pub shell: PathBuf,
    modules: PathBuf,
}

impl Stock {
    /// Finds the parts below `folder`, or fetches them to there.
    ///
    /// # Errors
    /// A part is missing; the text says how to get it.
    pub fn prepare(folder: &Path) -> Result<Self> {
        let root = folder.join("root");
        // Newer packages have all files but the kernel below usr.
        let find = || Self::find(&root, &root).or_else(|| Self::find(&root, &root.join("usr")));
        if let Some(stock) = find() {
            return Ok(stock);
        }
        let kernel = packages::depends(KERNEL_PACKAGE, "linux-image-")?;
        eprintln!("unpacking {kernel} and {SHELL_PACKAGE} into {}", root.display());
        packages::unpack(&[&kernel, SHELL_PACKAGE], &folder.join("packages"), &root)?;
        find().with_context(|| format!("{kernel} and {SHELL_PACKAGE} are not as they were"))
    }

    fn find(root: &Path, files: &Path) -> Option<Self> {
        let in_folder = |folder: PathBuf, prefix: &str| {
            let entries = fs::read_dir(folder).ok()?;
            let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            paths.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        };
        let kernel = in_folder(root.join("boot"), "vmlinuz-")?;
        let modules = in_folder(files.join("lib/modules"), "")?.join("kernel");
        let shell = files.join("bin/busybox");
        shell.exists().then_some(Self { kernel, shell, modules })
    }

    /// The kernel as an ELF file, out of the bzImage (Linux's `Documentation/arch/x86/boot.rst`).
    ///
    /// # Errors
    /// The compression is unknown, or its program is missing.
    pub fn elf(&self) -> Result<Vec<u8>> {
        let image = fs::read(&self.kernel)?;
        let (packed, size) = payload(&image).context("the kernel is no bzImage")?;
        let packer = PACKERS.into_iter().find(|(magic, ..)| packed.starts_with(magic));
        let (_, program, package) = packer.context("the kernel is packed in an unknown way")?;
        packages::need_program(program, package)?;
        let elf = filter(Command::new(program).arg("-dc"), packed)?;
        if elf.len() != size {
            bail!("{program} made {} bytes of the kernel, which is {size} bytes long", elf.len());
        }
        Ok(elf)
    }

    /// The modules `names` and the modules that they need, in the order in which to load them. Modules that are
    /// built into the kernel are left out.
    ///
    /// # Errors
    /// The kernel has no such module.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut modules = Vec::new();
        for name in names {
            self.add(name, &mut modules)?;
        }
        Ok(modules)
    }

    /// A file system for this kernel as a guest. It takes commands on its console, and has virtio-mem on both
    /// transports.
    ///
    /// # Errors
    /// As [`Stock::modules`].
    pub fn agent(&self) -> Result<Vec<u8>> {
        let mut archive = Initramfs::new(&self.shell)?;
        let load = archive.modules(&self.modules(&["virtio_mmio", "virtio_pci", "virtio_mem"])?)?;
        archive.finish(&include_str!("stock/agent-init.sh").replace("@LOAD@", &load))
    }

    /// Whether the module in `file` is built into the kernel.
    fn has_built_in(&self, file: &str) -> bool {
        let list = fs::read_to_string(self.modules.with_file_name("modules.builtin")).unwrap_or_default();
        list.lines().any(|line| line.rsplit('/').next().unwrap_or_default().replace('_', "-") == file)
    }

    fn add(&self, name: &str, modules: &mut Vec<Module>) -> Result<()> {
        let file = format!("{}.ko", name.replace('_', "-"));
        if modules.iter().any(|module| module.file == file) {
            return Ok(());
        }
        let Some(path) = search(&self.modules, &file) else {
            return self.has_built_in(&file).then_some(()).with_context(|| {
                let kernel = self.kernel.display();
                format!("{kernel} has no module {name}")
            });
        };
        let content = match path.extension() {
            Some(packed) if packed == "xz" => output(Command::new("xz").arg("-dc").arg(&path))?,
            _ => fs::read(&path)?,
        };
        for needed in needs(&content) {
            self.add(&needed, modules)?;
        }
        modules.push(Module { file, content });
        Ok(())
    }
}

/// The compressed kernel in a bzImage, and its size after decompression, which follows it.
fn payload(image: &[u8]) -> Option<(&[u8], usize)> {
    const SECTOR: usize = 512;
    const SETUP_SECTORS_AT: usize = 0x1f1;
    const PAYLOAD_AT: usize = 0x248;
    let number = |bytes: &[u8]| Some(u32::from_le_bytes(bytes.first_chunk().copied()?) as usize);
    let start = (usize::from(*image.get(SETUP_SECTORS_AT)?) + 1) * SECTOR;
    let [offset, length] = [PAYLOAD_AT, PAYLOAD_AT + 4].map(|at| image.get(at..).and_then(number));
    let payload = image.get(start + offset?..)?.get(..length?)?;
    let (packed, size) = payload.split_last_chunk::<4>()?;
    Some((packed, number(size)?))
}

/// The output of a command that reads `input` and succeeds.
fn filter(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let text = format!("{command:?}");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut pipe = child.stdin.take().context("a pipe")?;
    let output = thread::scope(|scope| {
        // This fails when the command fails, and the command says why.
        scope.spawn(move || drop(pipe.write_all(input)));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{text} failed: {}", output.status);
    }
    Ok(output.stdout)
}

/// The output of a command that succeeds.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let text = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {text}"))?;
    if !output.status.success() {
        bail!("{text} failed: {}", output.status);
    }
    Ok(output.stdout)
}

/// The modules that a module names in its section of `key=value` strings.
fn needs(module: &[u8]) -> Vec<String> {
    let mut strings = module.split(|&byte| byte == 0);
    let line = strings.find_map(|string| string.strip_prefix(b"depends="));
    let line = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
    line.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The file of a module, compressed or not. File names have `-` or `_` in either place.
fn search(folder: &Path, file: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let name = entry.file_name().to_string_lossy().replace('_', "-");
            if name.strip_suffix(".xz").unwrap_or(&name) == file {
                return Some(entry.path());
            }
            if entry.file_type().ok()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    None
}
