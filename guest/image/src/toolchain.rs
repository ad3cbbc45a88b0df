//! Finds a compiler for the guest's target: one with the target installed, or else one with the sources of `core`,
//! so that cargo can build `core` too.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt};

use crate::{Error, TARGET};

/// A way to build for the bare-metal target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The workspace's own compiler has the target's libraries.
    Installed,
    /// This compiler has the sources of its own libraries, which are built together with the guest. The sources
    /// must have the version of the compiler.
    WithSources {
        /// The compiler.
        rustc: PathBuf,
    },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed => write!(f, "the installed target {TARGET}"),
            Self::WithSources { rustc } => write!(f, "{} and its library sources", rustc.display()),
        }
    }
}

/// Finds the first way that works: the installed target, then the workspace's compiler with sources, then any other
/// `rustc` on `PATH` with sources, such as Debian's.
///
/// # Errors
/// [`Error::NoToolchain`], whose text names both ways to get one.
pub fn find() -> Result<Toolchain, Error> {
    let own = PathBuf::from(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    if sysroot(&own).is_some_and(|root| root.join("lib/rustlib").join(TARGET).join("lib").is_dir()) {
        return Ok(Toolchain::Installed);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let others = env::split_paths(&path)
        .chain(["/usr/bin".into()])
        .map(|folder| folder.join("rustc"))
        .filter(|rustc| rustc.is_file());
    std::iter::once(own)
        .chain(others)
        .find(|rustc| sysroot(rustc).is_some_and(|root| has_sources(&root)))
        .map(|rustc| Toolchain::WithSources { rustc })
        .ok_or(Error::NoToolchain)
}

fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
