//! Archives of a small release. `tests/dist.rs` has the real one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use flate2::read::GzDecoder;

use super::Release;

fn release(time: u64) -> Release {
    Release {
        version: "1.2.3".to_owned(),
        time,
        program: b"#!/bin/sh\necho it runs\n".to_vec(),
        completions: vec![b"bash".to_vec(), b"zsh".to_vec(), b"fish".to_vec()],
        man_pages: vec![
            ("tidevm-run.1".to_owned(), b".TH run".to_vec()),
            ("tidevm.1".to_owned(), b".TH".to_vec()),
        ],
        papers: vec![b"read".to_vec(), b"apache".to_vec(), b"mit".to_vec()],
    }
}

/// The files of a release, packed into the folder `name`.
fn packed(name: &str, release: &Release) -> (PathBuf, BTreeMap<String, Vec<u8>>) {
    let folder = std::env::temp_dir().join(format!("xtask-dist-{}-{name}", std::process::id()));
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).expect("a folder for temporary files");
    let paths = release.pack(&folder).expect("it can be packed");
    let file =
        |path: &PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap());
    (folder, paths.iter().map(file).collect())
}

#[test]
fn the_bytes_depend_on_the_release_and_its_time_alone() {
    let (one, first) = packed("one", &release(1_000_000_000));
    let (two, second) = packed("two", &release(1_000_000_000));
    let (three, later) = packed("three", &release(1_000_000_001));
    assert_eq!(first.len(), 3);
    assert_eq!(first, second);
    assert!(first.iter().all(|(name, content)| later[name] != *content), "the time is in each of them");
    for folder in [one, two, three] {
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn the_tarball_is_one_folder_of_roots_files() {
    let (folder, files) = packed("tarball", &release(1_000_000_000));
    let tarball = GzDecoder::new(&files["tidevm-1.2.3-x86_64-linux.tar.gz"][..]);
    let mut archive = tar::Archive::new(tarball);
    let mut modes = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (header, mut content) = (entry.header().clone(), String::new());
        entry.read_to_string(&mut content).unwrap();
        assert_eq!(
            (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()),
            (0, 0, 1_000_000_000)
        );
        modes.insert(entry.path().unwrap().display().to_string(), (header.mode().unwrap(), content));
    }
    let at = |path: &str| modes[&format!("tidevm-1.2.3-x86_64-linux/{path}")].clone();
    assert_eq!(at("tidevm").0, 0o755);
    assert_eq!(at("completions/_tidevm"), (0o644, "zsh".to_owned()));
    assert_eq!(at("man/tidevm-run.1"), (0o644, ".TH run".to_owned()));
    assert_eq!(at("LICENSE-MIT"), (0o644, "mit".to_owned()));
    assert_eq!(at("").0, 0o755);
    assert!(modes.keys().all(|path| path.starts_with("tidevm-1.2.3-x86_64-linux/")), "{modes:?}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_checksums_are_those_of_sha256sum() {
    let (folder, files) = packed("sums", &release(1));
    // `sha256sum` takes a line with one space too, and other readers do not.
    let sums = String::from_utf8_lossy(&files["SHA256SUMS"]);
    assert!(sums.lines().all(|line| line.as_bytes()[64..].starts_with(b"  tidevm")), "{sums}");
    match Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&folder).output()
    {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stdout).matches(": OK").count(), 2, "{output:?}");
        }
        Err(error) => eprintln!("SKIP the_checksums_are_those_of_sha256sum: {error}"),
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn dpkg_reads_the_package() {
    let (folder, _) = packed("deb", &release(1_000_000_000));
    let dpkg = |arguments: &[&str]| {
        let mut command = Command::new("dpkg-deb");
        let output =
            command.args(arguments).env("TZ", "UTC").env("LC_ALL", "C").current_dir(&folder).output().ok()?;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let package = "tidevm_1.2.3_amd64.deb";
    let Some(info) = dpkg(&["--info", package]) else {
        eprintln!("SKIP dpkg_reads_the_package: there is no dpkg-deb");
        fs::remove_dir_all(folder).unwrap();
        return;
    };
    for part in ["Package: tidevm", "Version: 1.2.3", "Architecture: amd64", "Installed-Size: 1"] {
        assert!(info.contains(part), "no `{part}` in {info}");
    }
    let contents = dpkg(&["--contents", package]).expect("as before");
    for part in [
        "drwxr-xr-x root/root",
        "-rwxr-xr-x root/root",
        "2001-09-09 01:46 ./usr/bin/tidevm",
        "./usr/share/man/man1/tidevm-run.1.gz",
        "./usr/share/bash-completion/completions/tidevm",
        "./usr/share/zsh/vendor-completions/_tidevm",
        "./usr/share/fish/vendor_completions.d/tidevm.fish",
        "./usr/share/doc/tidevm/copyright",
    ] {
        assert!(contents.replace(" usr/", " ./usr/").contains(part), "no `{part}` in {contents}");
    }
    dpkg(&["--extract", package, "root"]);
    let output = Command::new(folder.join("root/usr/bin/tidevm")).output().expect("it can be run");
    assert_eq!(output.stdout, b"it runs\n");
    let page = fs::read(folder.join("root/usr/share/man/man1/tidevm-run.1.gz")).unwrap();
    let mut text = String::new();
    GzDecoder::new(&page[..]).read_to_string(&mut text).expect("what man unpacks");
    assert_eq!(text, ".TH run");
    let copyright = fs::read_to_string(folder.join("root/usr/share/doc/tidevm/copyright")).unwrap();
    assert_eq!(copyright, "apache\nmit\n");
    fs::remove_dir_all(folder).unwrap();
}
