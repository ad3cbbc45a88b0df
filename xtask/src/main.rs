//! What plain cargo cannot say: bring a fresh machine up, run the demo, run every test.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use tidevm_guest_image::{Toolchain, find_toolchain, workspace_root};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup   installs what is missing to build tidevm, or says what is
  demo    setup, build, and run `tidevm demo`
  test    setup, then every test that this machine can run
";

/// Debian's compiler with the sources of its libraries; they have to be of one version.
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["setup"] => {
            let toolchain = setup()?;
            eprintln!(
                "ready: the guest is built with {toolchain}; `cargo build --release` gives target/release/tidevm"
            );
            Ok(ExitCode::SUCCESS)
        }
        ["demo"] => {
            setup()?;
            cargo(&["build", "--release", "--package", "tidevm"])?;
            status(Command::new(workspace_root().join("target/release/tidevm")).arg("demo"))
        }
        ["test"] => {
            setup()?;
            status(Command::new(env!("CARGO")).current_dir(workspace_root()).args([
                "test",
                "--workspace",
                "--no-fail-fast",
            ]))
        }
        _ => {
            eprint!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}

/// Makes sure that the guest can be built.
fn setup() -> Result<Toolchain> {
    if let Ok(toolchain) = find_toolchain() {
        return Ok(toolchain);
    }
    let on_debian = Path::new("/usr/bin/apt-get").exists();
    if !on_debian || !is_root()? {
        // Its text names both remedies.
        find_toolchain()?;
    }
    eprintln!(
        "installing {} (Debian's compiler, for the guest's bare-metal target)",
        DEBIAN_PACKAGES.join(" ")
    );
    run(Command::new("apt-get").args(["update", "--quiet"]))?;
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "--quiet", "--yes", "--no-install-recommends"])
        .args(DEBIAN_PACKAGES))?;
    Ok(find_toolchain()?)
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("cannot run `id -u`")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim() == "0")
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run(Command::new(env!("CARGO")).current_dir(workspace_root()).args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    let text = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {text}"))?;
    if !status.success() {
        bail!("{text} failed: {status}");
    }
    Ok(())
}

/// Runs a command whose exit status is this program's.
fn status(command: &mut Command) -> Result<ExitCode> {
    let text = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {text}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
