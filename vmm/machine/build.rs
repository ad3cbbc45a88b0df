//! Builds and checks the guest kernel, builds and packs the agent for Linux guests, and tells the compiler where they are.
//!
//! The nested builds have a folder of their own beside the profiles of this one, so that all profiles share it.

use std::path::{Path, PathBuf};
use std::{env, process};

use tidevm_guest_image::{
    AGENT_SOURCES, Error, GUEST, SOURCES, build, build_agent, find_toolchain, workspace_root,
};

fn main() {
    for source in SOURCES.iter().chain(&AGENT_SOURCES) {
        println!("cargo::rerun-if-changed={}", workspace_root().join(source).display());
    }
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    // TARGET_DIR/PROFILE/build/PACKAGE/out
    let target_dir = Path::new(&out).ancestors().nth(4).expect("cargo nests OUT_DIR in its target folder");
    let target_dir = target_dir.join("guest");
    match guest(&target_dir).and_then(|path| Ok((path, build_agent(&target_dir, Path::new(&out))?))) {
        Ok((guest, agent)) => {
            println!("cargo::rustc-env=TIDEVM_GUEST={}", guest.display());
            println!("cargo::rustc-env=TIDEVM_LINUX_AGENT={}", agent.display());
        }
        Err(error) => {
            eprintln!("{error}");
            process::exit(1);
        }
    }
}

fn guest(target_dir: &Path) -> Result<PathBuf, Error> {
    build(GUEST, &find_toolchain()?, target_dir)
}
