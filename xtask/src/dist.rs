//! `cargo xtask dist`: what users without a compiler get. A static program with its completions and man pages, as a
//! tarball and as a Debian package, and their checksums, in `target/dist`.
//!
//! Mirrors `cargo-deb` and `git archive` in what they leave out of archives: owners, orders of folders and times of the
//! build. All times are that of the commit, or of `SOURCE_DATE_EPOCH` (<https://reproducible-builds.org>).
//!
//! Invariant: the same program and the same time give the same bytes.

mod archive;
mod deb;
#[cfg(test)]
mod tests;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use tidevm_guest_image::workspace_root;

use crate::packages::{need_program, run};
use crate::static_program;
use archive::{Entry, gzip, tar};

/// Files of the repository that go along.
const PAPERS: [&str; 3] = ["README.md", "LICENSE-APACHE", "LICENSE-MIT"];

/// A shell, and the places of its completions in the tarball and in the system of Debian.
const COMPLETIONS: [(&str, &str, &str); 3] = [
    ("bash", "completions/tidevm.bash", "usr/share/bash-completion/completions/tidevm"),
    ("zsh", "completions/_tidevm", "usr/share/zsh/vendor-completions/_tidevm"),
    ("fish", "completions/tidevm.fish", "usr/share/fish/vendor_completions.d/tidevm.fish"),
];

/// What is packed.
struct Release {
    version: String,
    /// Seconds since 1970, of everything in an archive.
    time: u64,
    program: Vec<u8>,
    /// In the order of [`COMPLETIONS`].
    completions: Vec<Vec<u8>>,
    /// Names and contents, by name.
    man_pages: Vec<(String, Vec<u8>)>,
    /// In the order of [`PAPERS`].
    papers: Vec<Vec<u8>>,
}

/// Builds everything, and says where it is.
///
/// # Errors
/// A step fails; the text says which.
pub fn make() -> Result<()> {
    need_program("strip", "binutils")?;
    let folder = workspace_root().join("target/dist");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let release = Release::build(&folder)?;
    for path in release.pack(&folder)? {
        println!("{}", path.display());
    }
    Ok(())
}

impl Release {
    /// Builds the program, and asks it for its completions and man pages. `folder` keeps the program meanwhile.
    fn build(folder: &Path) -> Result<Self> {
        let time = time()?;
        let built = static_program::build("tidevm", "tidevm", &["build", "--bin", "tidevm"])?;
        let program = folder.join("tidevm");
        run(Command::new("strip").arg("--strip-all").arg("-o").arg(&program).arg(built))?;
        let said = |arguments: &[&str]| -> Result<Vec<u8>> {
            let output = Command::new(&program).args(arguments).output()?;
            if !output.status.success() {
                bail!("tidevm {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
            }
            Ok(output.stdout)
        };
        let pages = folder.join("man");
        fs::create_dir(&pages)?;
        said(&["man", pages.to_str().context("the path of the repository is no text")?])?;
        let release = Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time,
            completions: COMPLETIONS
                .iter()
                .map(|(shell, ..)| said(&["completions", shell]))
                .collect::<Result<_>>()?,
            man_pages: files_of(&pages)?,
            papers: PAPERS.iter().map(|paper| read(&workspace_root().join(paper))).collect::<Result<_>>()?,
            program: read(&program)?,
        };
        fs::remove_dir_all(&pages)?;
        fs::remove_file(&program)?;
        Ok(release)
    }

    /// Writes the tarball, the package and their checksums into `folder`.
    fn pack(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let name = format!("tidevm-{}-x86_64-linux", self.version);
        let files = [
            (format!("{name}.tar.gz"), gzip(&tar(self.tarball(&name), self.time)?)?),
            (format!("tidevm_{}_amd64.deb", self.version), deb::package(self)?),
        ];
        let mut sums = String::new();
        let mut paths = Vec::new();
        for (name, content) in files {
            let digest = Sha256::digest(&content);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(sums, "{hex}  {name}")?;
            paths.push(write(folder, &name, &content)?);
        }
        paths.push(write(folder, "SHA256SUMS", sums.as_bytes())?);
        Ok(paths)
    }

    /// What the tarball has, all in one folder.
    fn tarball(&self, folder: &str) -> Vec<Entry> {
        let at = |path: &str| format!("{folder}/{path}");
        let mut entries = vec![Entry::program(at("tidevm"), &self.program)];
        let papers = PAPERS.iter().zip(&self.papers).map(|(name, content)| Entry::file(at(name), content));
        entries.extend(papers);
        let completions = COMPLETIONS.iter().zip(&self.completions);
        entries.extend(completions.map(|((_, path, _), content)| Entry::file(at(path), content)));
        let pages = self.man_pages.iter().map(|(name, page)| Entry::file(at(&format!("man/{name}")), page));
        entries.extend(pages);
        entries
    }
}

/// The time of everything in the archives.
fn time() -> Result<u64> {
    let (text, from) = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => (text, "SOURCE_DATE_EPOCH"),
        Err(_) => {
            let git = Command::new("git")
                .arg("-C")
                .arg(workspace_root())
                .args(["log", "-1", "--format=%ct"])
                .output();
            let output = git.ok().filter(|output| output.status.success());
            let output =
                output.context("there is no commit here: set SOURCE_DATE_EPOCH to the seconds since 1970")?;
            (String::from_utf8_lossy(&output.stdout).trim().to_owned(), "git log")
        }
    };
    text.parse().with_context(|| format!("{from} says {text}, which is no number of seconds since 1970"))
}

/// The files of a folder, by name.
fn files_of(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.file_name().to_string_lossy().into_owned(), read(&entry.path())?));
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(folder: &Path, name: &str, content: &[u8]) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
