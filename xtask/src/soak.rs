//! `cargo xtask soak`: runs the program `soak` at one level or at several, and records each run in `docs/soak.md`.
//!
//! The document has one row per level: the run with the most cycles so far, or the last one that lost something.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use tidevm_guest_image::workspace_root;

use crate::nested::{self, Host};
use crate::{cargo, packages, recorded, setup};

/// The levels, with the cycles of a run when none are given: some minutes each.
const LEVELS: [(&str, &str); 4] =
    [("device", "10000"), ("hosted", "10000"), ("booted", "50"), ("nested", "25")];

/// Runs `level`, or all levels but the nested host.
///
/// # Errors
/// There is no such level, a program cannot be built, or a run broke off.
pub fn run(level: Option<&str>, cycles: Option<&str>, seed: Option<&str>) -> Result<ExitCode> {
    let levels: Vec<_> = match level {
        Some(level) => LEVELS.into_iter().filter(|(name, _)| *name == level).collect(),
        None => LEVELS[..3].to_vec(),
    };
    ensure!(!levels.is_empty(), "no such level; there are {}", LEVELS.map(|(name, _)| name).join(", "));
    let new_seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
    let seed = seed.unwrap_or(&new_seed);
    setup()?;
    // A run takes hours, and its commit is that of its build.
    let build = format!("{} | {}", recorded::date(), recorded::commit());
    let mut good = true;
    for (level, usual) in levels {
        let cycles = cycles.unwrap_or(usual);
        let cells = match level {
            "nested" => on_nested_host(cycles, seed)?,
            level => here(level, cycles, seed)?,
        };
        good &= is_good(&cells);
        record(level, &build, seed, &cells)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn here(level: &str, cycles: &str, seed: &str) -> Result<String> {
    packages::run(cargo().args(["build", "--release", "--package", "tidevm-soak"]))?;
    let mut soak = Command::new(workspace_root().join("target/release/soak"));
    soak.args([level, cycles, seed]).stdout(Stdio::piped());
    let mut child = soak.spawn().with_context(|| format!("cannot run {soak:?}"))?;
    let output = child.stdout.take().context("soak writes to stdout")?;
    let mut cells = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        cells = cells_of(&line).or(cells);
    }
    let status = child.wait()?;
    cells.with_context(|| format!("{soak:?} broke off: {status}"))
}

fn on_nested_host(cycles: &str, seed: &str) -> Result<String> {
    let arguments = ["booted", cycles, seed].map(str::to_owned);
    let mut cells = None;
    let host = Host::prepare()?;
    let code = host.run_for(&nested::program("soak")?, &arguments, nested::MEMORY_MIB, |line| {
        println!("{line}");
        cells = cells_of(line).or(cells.take());
    })?;
    cells.with_context(|| format!("soak broke off on the nested host: {code:?}"))
}

/// The cells of the table in a line of the program.
fn cells_of(line: &str) -> Option<String> {
    line.trim().strip_prefix("record: ").map(str::to_owned)
}

/// Whether nothing was lost, corrupt or otherwise wrong: the last three cells.
fn is_good(cells: &str) -> bool {
    cells.ends_with(" | 0 | 0 | 0")
}

/// Cycles of a run: the first cell.
fn cycles_of(cells: &str) -> u64 {
    cells.split(" | ").next().and_then(|cell| cell.trim().parse().ok()).unwrap_or(0)
}

fn record(level: &str, build: &str, seed: &str, cells: &str) -> Result<()> {
    let path: PathBuf = workspace_root().join("docs/soak.md");
    let document = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let row = format!("| {level} | {build} | {seed} | {cells} |");
    match with_row(&document, level, &row, cells)? {
        Some(new) => Ok(fs::write(&path, new)?),
        None => {
            println!("docs/soak.md keeps a longer run of {level}");
            Ok(())
        }
    }
}

/// The document with `row` in place of the row of `level`, unless that is of a longer run.
fn with_row(document: &str, level: &str, row: &str, cells: &str) -> Result<Option<String>> {
    let start = format!("| {level} |");
    let Some(old) = document.lines().find(|line| line.starts_with(&start)) else {
        bail!("docs/soak.md has no row of {level}");
    };
    let before = old.split(" | ").nth(4).map_or(0, cycles_of);
    let newer = !is_good(cells) || cycles_of(cells) >= before;
    Ok(newer.then(|| document.replace(old, row)))
}

#[cfg(test)]
mod tests {
    use super::{cells_of, is_good, with_row};

    #[test]
    fn the_longest_run_is_recorded_and_a_loss_in_any_case() {
        let document = "# Soak\n\n| hosted | day | commit | 7 | 100 | 90 | 0 | 0 | 0 |\n| booted | - |\n";
        let cells = cells_of("record: 99 | 90 | 0 | 0 | 0").unwrap();
        assert_eq!(with_row(document, "hosted", "new", &cells).unwrap(), None);
        let new = with_row(document, "hosted", "new", "100 | 90 | 0 | 0 | 0").unwrap().unwrap();
        assert_eq!(new, "# Soak\n\nnew\n| booted | - |\n");
        for lost in ["5 | 5 | 1 | 0 | 0", "5 | 5 | 0 | 1 | 0", "5 | 5 | 0 | 0 | 1"] {
            assert!(!is_good(lost));
            assert!(with_row(document, "hosted", "new", lost).unwrap().is_some(), "{lost}");
        }
        assert!(with_row(document, "booted", "new", &cells).unwrap().is_some(), "no run yet");
        assert!(with_row(document, "other", "new", &cells).is_err());
    }
}
