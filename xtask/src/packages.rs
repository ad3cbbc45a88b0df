//! Debian's packages: installs them as root, or says which command installs them.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Makes sure that `program` can be run. If it is missing, installs `package`, which may be several with spaces between them.
///
/// # Errors
/// The package cannot be installed; the text says what to do.
pub fn need_program(program: &str, package: &str) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return Ok(());
    }
    if !can_install()? {
        bail!("{program} is missing: on Debian, run `apt-get install {package}` as root");
    }
    install(&package.split(' ').collect::<Vec<_>>())
}

/// Makes sure that pages can be looked at: installs a browser, and a font for it.
///
/// # Errors
/// They cannot be installed; the text says what to do.
pub fn need_browser() -> Result<()> {
    need_program("chromium", "chromium fonts-dejavu-core")
}

/// Whether [`install`] can work: Debian's tools exist and this process is root.
pub fn can_install() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("cannot run `id -u`")?;
    let is_root = String::from_utf8_lossy(&output.stdout).trim() == "0";
    Ok(is_root && Path::new("/usr/bin/apt-get").exists())
}

/// Installs packages, and says so.
pub fn install(packages: &[&str]) -> Result<()> {
    eprintln!("installing {}", packages.join(" "));
    update()?;
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "--quiet", "--yes", "--no-install-recommends"])
        .args(packages))
}

fn update() -> Result<()> {
    run(Command::new("apt-get").args(["update", "--quiet"]))
}

/// The package that `package` depends on and whose name begins with `prefix`.
pub fn depends(package: &str, prefix: &str) -> Result<String> {
    need_debian()?;
    if let Some(found) = look_up(package, prefix)? {
        return Ok(found);
    }
    if can_install()? {
        update()?;
    }
    look_up(package, prefix)?
        .with_context(|| format!("apt knows no package {package}; run `apt-get update` as root"))
}

fn look_up(package: &str, prefix: &str) -> Result<Option<String>> {
    let output = Command::new("apt-cache")
        .env("LC_ALL", "C")
        .args(["depends", package])
        .output()
        .context("cannot run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names.find(|name| name.starts_with(prefix)).map(str::to_owned))
}

fn need_debian() -> Result<()> {
    for tool in ["/usr/bin/apt-get", "/usr/bin/apt-cache", "/usr/bin/dpkg-deb"] {
        if !Path::new(tool).exists() {
            bail!("{tool} is missing: this needs Debian's packages");
        }
    }
    Ok(())
}

/// Downloads `packages` to `downloads` and unpacks them to `root`. Needs no root rights.
pub fn unpack(packages: &[&str], downloads: &Path, root: &Path) -> Result<()> {
    need_debian()?;
    // Renamed at the end, so that a half-unpacked folder is never used.
    let partial = root.with_extension("partial");
    for folder in [downloads, &partial, root] {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    fs::create_dir_all(downloads)?;
    fs::create_dir_all(&partial)?;
    if can_install()? {
        update()?;
    }
    run(Command::new("apt-get").current_dir(downloads).args(["download", "--quiet"]).args(packages))?;
    for entry in fs::read_dir(downloads)? {
        run(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(&partial))?;
    }
    fs::rename(&partial, root)?;
    Ok(())
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let text = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {text}"))?;
    if !status.success() {
        bail!("{text} failed: {status}");
    }
    Ok(())
}
