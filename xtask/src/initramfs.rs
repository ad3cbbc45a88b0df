//! An initramfs: the archive that a Linux kernel unpacks as its first file system (Linux:
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// A kernel module.
pub struct Module {
    /// Name of its file.
    pub file: String,
    /// The unpacked content.
    pub content: Vec<u8>,
}

/// An archive that is being made.
pub struct Initramfs(Vec<u8>);

impl Initramfs {
    /// An archive with the usual folders and `shell`, a static busybox.
    pub fn new(shell: &Path) -> Result<Self> {
        let mut archive = Self(Vec::new());
        for folder in ["bin", "dev", "proc", "sys", "tmp", "lib", "files", "linux"] {
            archive.add(folder, FOLDER, b"")?;
        }
        archive.program("bin/busybox", shell)?;
        Ok(archive)
    }

    fn add(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let size = u32::try_from(bytes.len()).with_context(|| format!("{name} is too large"))?;
        let mut entry = Builder::new(name).mode(mode).nlink(1).write(&mut self.0, size);
        entry.write_all(bytes)?;
        entry.finish()?;
        Ok(())
    }

    /// Adds an executable.
    pub fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        self.add(name, PROGRAM, &read(path)?)
    }

    /// Adds a copy of the file at `path`.
    pub fn copy(&mut self, name: &str, path: &Path) -> Result<()> {
        self.add(name, FILE, &read(path)?)
    }

    /// Adds a file with the content `bytes`.
    pub fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.add(name, FILE, bytes)
    }

    /// Adds modules. Returns the shell commands that load them.
    pub fn modules(&mut self, modules: &[Module]) -> Result<String> {
        let mut load = String::new();
        for Module { file, content } in modules {
            self.file(&format!("lib/{file}"), content)?;
            load.push_str(&format!("insmod /lib/{file}\n"));
        }
        Ok(load)
    }

    /// Ends the archive with `init`, the script that runs as the first process.
    pub fn finish(mut self, init: &str) -> Result<Vec<u8>> {
        self.add("init", PROGRAM, init.as_bytes())?;
        trailer(&mut self.0)?;
        Ok(self.0)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
