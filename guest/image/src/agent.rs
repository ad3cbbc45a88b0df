//! The agent for Linux guests: a static program, packed as the archive that a kernel unpacks as its first file system.
//!
//! A guest has no libraries when the agent starts, so the program has none to load. The ordinary target's own C library is
//! linked in (`crt-static`), as `xtask` does it for programs of the nested host: no further target has to be installed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, trailer};
use tidevm_abi::kernel::{AGENT_FOLDER, AGENT_PATH};

use crate::{Error, nested_cargo, run};

/// The target of a static program: the ordinary one. It is named, so that the flags are for the program alone and not for
/// build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The package, and its program.
const PACKAGE: &str = "tidevm-linux-agent";

/// The folder, relative to [`workspace_root`](crate::workspace_root), from which the agent is built, beside
/// [`SOURCES`](crate::SOURCES).
pub const AGENT_SOURCES: [&str; 1] = ["guest/linux-agent"];

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Builds the agent below `target_dir`, which must not be the caller's target folder, and packs it. Returns the path of the
/// archive, which is in `folder`.
///
/// # Errors
/// See [`Error`]. A machine without the C library's archives (Debian has them in libc6-dev, Fedora in glibc-static) cannot
/// link a static program.
pub fn build_agent(target_dir: &Path, folder: &Path) -> Result<PathBuf, Error> {
    let mut cargo = nested_cargo(PACKAGE, "agent", TARGET, target_dir);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    run("the agent for Linux guests", cargo)?;
    let program = target_dir.join(TARGET).join("agent").join(PACKAGE);
    let archive = folder.join("agent.cpio");
    let pack = || fs::write(&archive, pack(&fs::read(&program)?)?);
    pack().map_err(|error| Error::Unreadable { path: program.clone(), reason: error.to_string() })?;
    Ok(archive)
}

/// An archive with the agent's folder and `program` in it.
fn pack(program: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = Vec::new();
    for (name, mode, content) in [(AGENT_FOLDER, FOLDER, &[][..]), (&AGENT_PATH[1..], PROGRAM, program)] {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut entry = Builder::new(name).mode(mode).nlink(1).write(&mut archive, size);
        entry.write_all(content)?;
        entry.finish()?;
    }
    trailer(&mut archive)?;
    Ok(archive)
}
