//! The crates that others build on, packed as for a registry, and compiled where no workspace is around them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command in `folder`, and returns what it printed.
fn run(command: &mut Command, folder: &Path) -> String {
    let output = command.current_dir(folder).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?} in {}: {text}", folder.display());
    String::from_utf8_lossy(&output.stdout).into_owned() + &text
}

fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(args).env("CARGO_PROFILE_DEV_DEBUG", "0");
    cargo
}

/// Packs the crate `name`, unpacks it in `folder`, and gives the folder of its files.
fn unpacked(name: &str, folder: &Path, target: &str) -> PathBuf {
    let versioned = format!("{name}-{}", env!("CARGO_PKG_VERSION"));
    let packed = format!("{target}/package/{versioned}.crate");
    run(Command::new("tar").args(["-xf", &packed]), folder);
    let unpacked = folder.join(versioned);
    for file in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        assert!(fs::metadata(unpacked.join(file)).is_ok_and(|file| file.len() > 0), "{name}: {file}");
    }
    let manifest = fs::read_to_string(unpacked.join("Cargo.toml")).expect("a packed crate has a manifest");
    for key in ["description", "keywords", "categories", "license", "readme", "rust-version"] {
        assert!(manifest.contains(&format!("\n{key} = ")), "{name} has no {key}: {manifest}");
    }
    unpacked
}

/// The crates that are packed, in the order in which a registry can take them.
const CRATES: [&str; 3] = ["virtio-mem", "tidevm-mm", "tidevm-mm-sim"];

#[test]
fn packed_crates_compile_outside_of_the_workspace() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    let folder = std::env::temp_dir().join(format!("tidevm-packages-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder for temporary files is writable");
    let target = folder.join("target");
    let target = target.to_str().expect("a path in UTF-8");
    // Nobody uses a lockfile of a library, and to make one the registry is asked for crates that it does not have.
    let mut package = cargo(&["package", "--no-verify", "--allow-dirty", "--exclude-lockfile"]);
    package.args(["--target-dir", target]);
    run(package.args(CRATES.iter().flat_map(|name| ["-p", name])), workspace);
    let unpacked = CRATES.map(|name| unpacked(name, &folder, target));
    let [_, mm, sim] = &unpacked;
    // In place of the registry. And what packing left out of the crate's manifest: its tests need a crate that needs it.
    let registry = format!("patch.crates-io.tidevm-mm.path={mm:?}");
    let manifest = mm.join("Cargo.toml");
    for (name, folder) in CRATES.iter().zip(&unpacked) {
        // The library as a kernel has it, before anything is added.
        run(&mut cargo(&["check", "--lib", "--target-dir", target, "--config", &registry]), folder);
        if folder == mm {
            let text = fs::read_to_string(&manifest).expect("it was read before");
            let added = format!("\n[dev-dependencies.tidevm-mm-sim]\npath = {sim:?}\n");
            fs::write(&manifest, text + &added).expect("the folder is this test's own");
        }
        // The programs of the documentation, README.md's among them.
        let tests =
            run(&mut cargo(&["test", "--doc", "--target-dir", target, "--config", &registry]), folder);
        assert!(tests.contains("Readme"), "{name}: {tests}");
    }
    fs::remove_dir_all(&folder).expect("the folder is this test's own");
}
