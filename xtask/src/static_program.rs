//! Programs without a dynamic linker: for the nested host, which has no libraries, and for users.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tidevm_guest_image::workspace_root;

/// Named, so that the flags are for the program alone and not for build scripts, which load libraries.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the program `name` of a package statically, by the arguments `build` for cargo.
///
/// # Errors
/// It cannot be built.
pub fn build(name: &str, package: &str, build: &[&str]) -> Result<PathBuf> {
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
        bail!("building the static {name} failed: {}", output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let executable = message["executable"].as_str()?.to_owned();
        (message["target"]["name"] == name).then_some(executable)
    });
    executables.next_back().map(PathBuf::from).with_context(|| format!("cargo built no {name}"))
}
