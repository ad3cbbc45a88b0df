//! What `cargo xtask dist` makes, unpacked and installed as a user would, and run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// Makes it, and returns the files by name.
fn dist() -> BTreeMap<String, Vec<u8>> {
    let output = run(Command::new(env!("CARGO_BIN_EXE_xtask")).arg("dist"));
    let paths = String::from_utf8(output.stdout).expect("paths");
    paths
        .lines()
        .map(|path| {
            (
                Path::new(path).file_name().expect("a file").to_string_lossy().into_owned(),
                fs::read(path).expect(path),
            )
        })
        .collect()
}

/// What the program says about its version.
fn version(program: &Path) -> String {
    String::from_utf8_lossy(&run(Command::new(program).arg("--version")).stdout).into_owned()
}

/// The container of `docs/deploy.md` without a container's program: nothing is in its root but the program and what the
/// kernel mounts, and the device if there is one. Then a machine runs there.
fn runs_in_a_root_of_its_own(folder: &Path, program: &Path, said: &str) {
    let root = folder.join("scratch");
    fs::create_dir_all(root.join("dev")).expect("the scratch folder is writable");
    fs::create_dir_all(root.join("proc")).expect("the scratch folder is writable");
    fs::copy(program, root.join("tidevm")).expect("the scratch folder is writable");
    fs::write(root.join("dev/kvm"), "").expect("the scratch folder is writable");
    let within = |command: &str| {
        let mounts = "mount -t proc none proc && (! test -e /dev/kvm || mount --bind /dev/kvm dev/kvm)";
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--", "sh", "-c", &format!("{mounts} && exec chroot . {command}")]);
        shell.current_dir(&root).output()
    };
    match within("/tidevm --version") {
        Ok(output) if output.status.success() => assert_eq!(String::from_utf8_lossy(&output.stdout), said),
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("not permitted") => {
            eprintln!("SKIP what_is_unpacked_or_installed_runs_anywhere: only root can change its root");
            return;
        }
        other => panic!("{other:?}"),
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("SKIP what_is_unpacked_or_installed_runs_anywhere: /dev/kvm cannot be used");
        return;
    }
    fs::write(root.join("a.script"), "plug 128M\nresize 0\n").expect("the scratch folder is writable");
    let output =
        within("/tidevm run --hotplug size=256M --console off --script a.script").expect("as before");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("2 steps done"), "{output:?}");
}

#[test]
fn what_is_unpacked_or_installed_runs_anywhere() {
    let files = dist();
    assert_eq!(files, dist(), "two runs give the same bytes");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dist");
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).expect("the scratch folder is writable");
    for (name, content) in &files {
        fs::write(folder.join(name), content).expect("the scratch folder is writable");
    }
    run(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&folder));
    let named = |end: &str| files.keys().find(|name| name.ends_with(end)).expect("one of each kind").clone();

    let tarball = named(".tar.gz");
    run(Command::new("tar").arg("-xzf").arg(&tarball).current_dir(&folder));
    let unpacked = folder.join(tarball.trim_end_matches(".tar.gz"));
    let said = version(&unpacked.join("tidevm"));
    assert!(said.starts_with(concat!("tidevm ", env!("CARGO_PKG_VERSION"))), "{said}");
    for file in ["README.md", "LICENSE-MIT", "man/tidevm-run.1", "completions/tidevm.bash"] {
        assert!(fs::metadata(unpacked.join(file)).is_ok_and(|file| file.len() > 100), "{file}");
    }
    runs_in_a_root_of_its_own(&folder, &unpacked.join("tidevm"), &said);

    let package = folder.join(named(".deb"));
    if Command::new("dpkg").arg("--version").output().is_err() {
        eprintln!("SKIP what_is_unpacked_or_installed_runs_anywhere: there is no dpkg");
        return;
    }
    let contents = run(Command::new("dpkg-deb").arg("--contents").arg(&package));
    assert!(String::from_utf8_lossy(&contents.stdout).contains("usr/share/man/man1/tidevm-ctl.1.gz"));
    run(Command::new("dpkg-deb").arg("--info").arg(&package));
    let root = folder.join("root");
    fs::create_dir_all(root.join("var/lib/dpkg/info")).expect("the scratch folder is writable");
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).expect("the scratch folder is writable");
    fs::write(root.join("var/lib/dpkg/status"), "").expect("the scratch folder is writable");
    // A system of its own: its list of packages is in this root too.
    let mut install = Command::new("dpkg");
    install.arg(format!("--root={}", root.display())).args(["--force-not-root", "--install"]).arg(&package);
    match install.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("ermission") => {
            run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&root));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(version(&root.join("usr/bin/tidevm")), said);
}
