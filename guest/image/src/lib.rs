//! The guest image: builds a kernel for `x86_64-unknown-none` and checks the result, and packs the agent for Linux guests
//! (`agent`). The VMM's build script calls this crate for the guest kernel and the agent, and a test for the tiny kernel of
//! `examples/`.
//!
//! A kernel runs in ring 0 without SSE, so the workspace's ordinary target and flags do not fit. A nested
//! cargo builds it, with a target folder of its own. The compiler flags and wrappers of the caller are removed from
//! its environment.
//!
//! Invariant: a path returned by [`build`] names an ELF file that [`check`] has passed.

mod agent;
mod check;
mod toolchain;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use agent::{AGENT_SOURCES, build_agent};
pub use check::{BannedInstruction, check};
pub use toolchain::{Toolchain, find as find_toolchain};

/// The bare-metal target: soft float, no red zone, no SSE.
pub const TARGET: &str = "x86_64-unknown-none";

/// Why there is no guest image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No compiler on this machine can build for [`TARGET`].
    #[error(
        "no compiler for the guest's target {TARGET} was found. Either\n  \
         - run `rustup target add {TARGET}`, or\n  \
         - on Debian, as root: `apt-get install rustc-web rust-web-src`\n\
         (`cargo xtask setup` does the second by itself when it runs as root)"
    )]
    NoToolchain,
    /// The nested cargo could not be started.
    #[error("cannot run `{command}`: {source}")]
    Cargo {
        /// The command line.
        command: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The nested cargo failed; its own messages stand above this one.
    #[error("building {what} failed: `{command}`")]
    Build {
        /// What was built.
        what: &'static str,
        /// The command line.
        command: String,
    },
    /// The image could not be read back.
    #[error("cannot read the guest image {path}: {reason}")]
    Unreadable {
        /// The image.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The image has instructions that the guest must not use.
    #[error("the guest image {path} holds instructions that ring 0 must not use:\n{}", list(.found))]
    Banned {
        /// The image.
        path: PathBuf,
        /// Every such instruction.
        found: Vec<BannedInstruction>,
    },
}

fn list(found: &[BannedInstruction]) -> String {
    found.iter().map(|banned| format!("  {banned}\n")).collect()
}

/// The root of the workspace, with the guest's sources and the lock file.
#[must_use]
pub fn workspace_root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The folders and files, relative to [`workspace_root`], from which the image is built.
pub const SOURCES: [&str; 7] =
    ["Cargo.toml", "Cargo.lock", "guest/abi", "guest/firmware", "guest/kernel", "guest/mm", "virtio-mem"];

/// A package that is a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its name, which is that of its program too.
    package: &'static str,
    /// Its linker script, below [`workspace_root`].
    script: &'static str,
}

/// The guest kernel of tidevm.
pub const GUEST: Kernel = Kernel { package: "tidevm-guest", script: "guest/kernel/link.ld" };

/// The tiny kernel that shows how to use the libraries.
pub const TINY: Kernel = Kernel { package: "tidevm-tiny-kernel", script: "examples/tiny-kernel/link.ld" };

/// Builds `kernel` below `target_dir`, which must not be the caller's target folder, and checks it.
/// Returns the path of the ELF file.
///
/// # Errors
/// See [`Error`].
pub fn build(kernel: Kernel, toolchain: &Toolchain, target_dir: &Path) -> Result<PathBuf, Error> {
    let mut cargo = nested_cargo(kernel.package, "guest", TARGET, target_dir);
    if let Toolchain::WithSources { rustc } = toolchain {
        // A stable compiler builds `core` only when unstable features are allowed.
        cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core,alloc");
    }
    let script = workspace_root().join(kernel.script);
    let flags = [
        "-Crelocation-model=static".to_owned(),
        "-Clinker=ld".to_owned(),
        "-Clinker-flavor=ld".to_owned(),
        format!("-Clink-arg=-T{}", script.display()),
        "-Clink-arg=--build-id=none".to_owned(),
        "-Clink-arg=-zmax-page-size=4096".to_owned(),
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    run(kernel.package, cargo)?;
    let path = target_dir.join(TARGET).join("guest").join(kernel.package);
    let found = check(&path)?;
    if found.is_empty() { Ok(path) } else { Err(Error::Banned { path, found }) }
}

/// A nested cargo that builds `package` with `profile` for `target` below `target_dir`.
fn nested_cargo(package: &str, profile: &str, target: &str, target_dir: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_root());
    // Removes the caller's compiler flags, wrappers and profiles, which are for the host.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let leaks = ["RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER"]
            .contains(&&*name)
            || [
                "RUSTC_WORKSPACE_",
                "CARGO_BUILD_",
                "CARGO_PROFILE_",
                "CARGO_TARGET_",
                "CARGO_CFG_",
                "CLIPPY_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if leaks {
            cargo.env_remove(&*name);
        }
    }
    cargo.args(["build", "--package", package, "--profile", profile, "--locked", "--target", target]);
    cargo.arg("--target-dir").arg(target_dir);
    cargo
}

/// Runs a nested cargo that builds `what`.
fn run(what: &'static str, mut cargo: Command) -> Result<(), Error> {
    let command = format!("{cargo:?}");
    let status = cargo.status().map_err(|source| Error::Cargo { command: command.clone(), source })?;
    if status.success() { Ok(()) } else { Err(Error::Build { what, command }) }
}
