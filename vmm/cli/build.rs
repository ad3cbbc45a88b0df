//! Tells the compiler the version that `tidevm --version` says: that of the package, and the commit it was built from.
//!
//! Sources without git's history, or below the repository of something else, give the version alone. Whether files differ
//! from the commit is not said: an answer would need a build each time.
//!
//! Invariant: the same commit gives the same text, and only a new commit has the program built again.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Digits of a commit that are shown, as many as Linux writes.
const DIGITS: usize = 12;

fn main() {
    let cargo = |name| env::var(name).expect("cargo sets it");
    let version = cargo("CARGO_PKG_VERSION");
    println!("cargo::rerun-if-changed=build.rs");
    let shown = match commit(Path::new(&cargo("CARGO_MANIFEST_DIR"))) {
        Some(commit) => format!("{version} ({commit})"),
        None => version,
    };
    println!("cargo::rustc-env=TIDEVM_VERSION={shown}");
}

/// The commit of the sources with this package. Has cargo look for another one at the next build.
fn commit(package: &Path) -> Option<String> {
    let root = package.join("../..").canonicalize().ok()?;
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").arg("-C").arg(&root).arg("rev-parse").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if Path::new(&git(&["--show-toplevel"])?).canonicalize().ok()? != root {
        return None;
    }
    // HEAD changes with a branch, and its log with each commit. Cargo builds again each time if a file is missing.
    for name in ["HEAD", "logs/HEAD"] {
        let path: PathBuf = root.join(git(&["--git-path", name])?);
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let mut commit = git(&["--verify", "HEAD"])?;
    commit.truncate(DIGITS);
    Some(commit)
}
