//! `firecracker-python`: its process manager starts the program, and its classes for the API configure and drive it.
//!
//! It is installed below the target folder, in versions whose files have known hashes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Missing, folder, program};

/// The versions and hashes, made of `requirements.in` by `pip-compile --generate-hashes --strip-extras`.
const REQUIREMENTS: &str = include_str!("../../python/requirements.txt");

/// What pip says when it reaches no index.
const UNREACHABLE: &[&str] = &[
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Connection refused",
    "Read timed out",
    "ProxyError",
    "Network is unreachable",
];

/// The folder of the environment.
fn environment() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("firecracker-python")
}

/// Installs the client, unless it is there in these versions.
///
/// # Panics
/// pip refuses it: a hash is another one, for instance.
pub fn missing() -> Missing {
    let environment = environment();
    let done = environment.join("installed");
    if fs::read_to_string(&done).is_ok_and(|installed| installed == REQUIREMENTS) {
        return None;
    }
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment).output();
    match made {
        Err(error) => return Some(format!("no python3: {error}")),
        Ok(made) if !made.status.success() => {
            let text = String::from_utf8_lossy(&made.stdout).into_owned();
            return Some(format!("python3 makes no environment (package python3-venv): {text}"));
        }
        Ok(_) => {}
    }
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/requirements.txt");
    let mut pip = Command::new(environment.join("bin/python"));
    pip.args(["-m", "pip", "install", "--require-hashes", "--only-binary", ":all:", "--requirement"]);
    let output = pip.arg(requirements).output().expect("pip runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if !output.status.success() {
        assert!(UNREACHABLE.iter().any(|text| said.contains(text)), "{said}");
        return Some(format!("the index of Python's packages cannot be reached: {said}"));
    }
    fs::write(done, REQUIREMENTS).expect("the target folder is writable");
    None
}

/// The calls are in `drive.py`.
pub fn drives_a_machine() {
    let folder = folder("python");
    let mut client = Command::new(environment().join("bin/python"));
    client.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/drive.py")).arg(program()).arg(&folder);
    let output = client.output().expect("python runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
    assert!(said.ends_with("drove a machine\n"), "{said}");
    fs::remove_dir_all(folder).expect("it was there");
}
