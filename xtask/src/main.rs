//! `cargo xtask`: the tasks of this repository that plain cargo cannot do. They set up a fresh machine, run the
//! demo, run every test, and run a program on an emulated KVM host.
//!
//! This program must build before a compiler for the guest exists, so it does not depend on the packages that
//! contain the guest.

mod compare;
mod dist;
mod features;
mod fuzz;
mod initramfs;
mod mutants;
mod nested;
mod packages;
mod recorded;
mod results;
mod soak;
mod static_program;
mod stock;
mod suites;

use std::env;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use tidevm_guest_image::{Toolchain, find_toolchain, workspace_root};

use crate::nested::Host;
use crate::packages::run;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup                        installs what is missing to build tidevm, or says what is
  browser                      installs the browser by which tests look at pages, or says what is missing
  demo                         setup, build, and run `tidevm demo`
  test                         setup, then every test that this machine can run; writes docs/features.md
  compare                      setup, then one session on stock Linux and on tidevm's guest, under QEMU
                               and on the nested host, side by side; takes half an hour
  mutants [PATH|LIST]          breaks the code as a maintainer could by mistake, one change at a time, and looks
                               whether a hosted test fails; writes docs/mutants.md. PATH is where the changed
                               files begin, LIST the name of a list in tests/mutants
  fuzz [TARGET] [--seconds N]  run the fuzzer of one target of `tests/fuzz`, or of each in turn; 60 s each
  fuzz TARGET --keep           take what the runs found into the committed corpus
  soak [LEVEL] [--cycles N [--seed S]]
                               plug and unplug again and again with failures and resets, at the level `device`,
                               `hosted`, `booted` or `nested`, or at the first three; writes docs/soak.md
  dist                         setup, then a static tidevm with completions and man pages, as a tarball and as a
                               Debian package, with checksums, in target/dist
  nested -- PROGRAM ARGS...    setup, then run PROGRAM on a KVM host inside QEMU's emulator:
                               `tidevm`, `sessions` (the session tests), `linux` (tests with a
                               stock kernel as the guest), `soak`, or a static executable
";

/// Debian's compiler and the sources of its libraries. Both must have the same version.
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];

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
        ["browser"] => {
            packages::need_browser()?;
            Ok(ExitCode::SUCCESS)
        }
        ["demo"] => {
            setup()?;
            run(cargo().args(["build", "--release", "--package", "tidevm"]))?;
            status(Command::new(workspace_root().join("target/release/tidevm")).arg("demo"))
        }
        ["test"] => {
            setup()?;
            suites::run()
        }
        ["compare"] => {
            setup()?;
            compare::run()
        }
        ["mutants"] => mutants::run(""),
        ["mutants", path] => mutants::run(path),
        ["fuzz"] => fuzz::run(None, fuzz::SECONDS),
        ["fuzz", "--seconds", seconds] => fuzz::run(None, seconds),
        ["fuzz", target] => fuzz::run(Some(target), fuzz::SECONDS),
        ["fuzz", target, "--keep"] => fuzz::keep(target),
        ["fuzz", target, "--seconds", seconds] => fuzz::run(Some(target), seconds),
        ["dist"] => {
            setup()?;
            dist::make()?;
            Ok(ExitCode::SUCCESS)
        }
        ["soak"] => soak::run(None, None, None),
        ["soak", "--cycles", cycles] => soak::run(None, Some(cycles), None),
        ["soak", "--cycles", cycles, "--seed", seed] => soak::run(None, Some(cycles), Some(seed)),
        ["soak", level] => soak::run(Some(level), None, None),
        ["soak", level, "--cycles", cycles] => soak::run(Some(level), Some(cycles), None),
        ["soak", level, "--cycles", cycles, "--seed", seed] => {
            soak::run(Some(level), Some(cycles), Some(seed))
        }
        ["nested", "--", program, ..] => {
            setup()?;
            Host::prepare()?.run(&nested::program(program)?, &arguments[3..])
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
    if packages::can_install()? {
        eprintln!("the guest needs a compiler for its bare-metal target: Debian has one");
        packages::install(&COMPILER_PACKAGES)?;
    }
    // The error names both ways to get a compiler.
    Ok(find_toolchain()?)
}

fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace_root());
    cargo
}

/// Runs a command, and returns its exit status as the status of this program.
fn status(command: &mut Command) -> Result<ExitCode> {
    let text = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {text}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
