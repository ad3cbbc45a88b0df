//! Builds and checks the guest kernel, and tells the compiler where it is.
//!
//! The nested build has its own folder beside the profiles of this one, so that all profiles share it.

use std::path::{Path, PathBuf};
use std::{env, process};

use tidevm_guest_image::{Error, GUEST, SOURCES, build, find_toolchain, workspace_root};

fn main() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", workspace_root().join(source).display());
    }
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    // TARGET_DIR/PROFILE/build/PACKAGE/out
    let target_dir = Path::new(&out).ancestors().nth(4).expect("cargo nests OUT_DIR in its target folder");
    match guest(&target_dir.join("guest")) {
        Ok(path) => println!("cargo::rustc-env=TIDEVM_GUEST={}", path.display()),
        Err(error) => {
            eprintln!("{error}");
            process::exit(1);
        }
    }
}

fn guest(target_dir: &Path) -> Result<PathBuf, Error> {
    build(GUEST, &find_toolchain()?, target_dir)
}
