//! The crates that others build on, packed as for a registry, and compiled where no workspace is around them.

use std::fs;
use std::path::Path;
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

#[test]
fn a_packed_crate_compiles_outside_of_the_workspace() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    let folder = std::env::temp_dir().join(format!("tidevm-packages-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder for temporary files is writable");
    let target = folder.join("target");
    let target = target.to_str().expect("a path in UTF-8");
    for (name, features) in [("virtio-mem", ""), ("tidevm-mm", "sim")] {
        run(
            &mut cargo(&["package", "--no-verify", "--allow-dirty", "-p", name, "--target-dir", target]),
            workspace,
        );
        let versioned = format!("{name}-{}", env!("CARGO_PKG_VERSION"));
        let packed = format!("{target}/package/{versioned}.crate");
        run(Command::new("tar").args(["-xf", &packed]), &folder);
        let unpacked = folder.join(versioned);
        for file in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
            assert!(fs::metadata(unpacked.join(file)).is_ok_and(|file| file.len() > 0), "{name}: {file}");
        }
        // The library as a kernel has it, and then the programs of the documentation, README.md's among them.
        run(&mut cargo(&["check", "--lib", "--target-dir", target]), &unpacked);
        let tests =
            run(&mut cargo(&["test", "--doc", "--features", features, "--target-dir", target]), &unpacked);
        assert!(tests.contains("Readme"), "{name}: {tests}");
    }
    fs::remove_dir_all(&folder).expect("the folder is this test's own");
}
