//! `cargo xtask fuzz`: builds the fuzzers of `tests/fuzz` and runs one, or all in turn.
//!
//! Does what cargo-fuzz does with `--sanitizer none`: libFuzzer finds inputs by the coverage that the compiler's own
//! pass counts, for which stable Rust is enough. So the one thing that it needs beside cargo is a C++ compiler. The
//! fuzzers have debug assertions and overflow checks.
//!
//! Inputs that a run finds go to a folder below `target`, from which the next run goes on. `--keep` takes the best of
//! them into the committed corpus.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tidevm_guest_image::workspace_root;

use crate::cargo;
use crate::packages;

/// The targets, with the most bytes of an input.
const TARGETS: [(&str, u32); 8] = [
    ("device", 1000),
    ("registers", 1500),
    ("chains", 1500),
    ("records", 4000),
    ("script", 3000),
    ("http", 4000),
    ("kernel", 16_000),
    ("mm", 400),
];

/// The length of a run when none is given.
pub const SECONDS: &str = "60";

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Longest time of one input in seconds, on a machine that has other work.
const LONGEST: u32 = 60;
/// Most bytes of the process.
const MEMORY_MIB: u32 = 2048;
/// Most bytes and files of a committed corpus that `--keep` makes.
const CORPUS: u64 = 60 << 10;
const FILES: usize = 40;

/// What cargo-fuzz passes to the compiler, without a sanitizer.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
];

/// A folder of one target below `target/fuzz`.
fn folder(kind: &str, target: &str) -> PathBuf {
    workspace_root().join("target/fuzz").join(kind).join(target)
}

fn committed(target: &str) -> PathBuf {
    workspace_root().join("tests/fuzz/corpus").join(target)
}

/// Runs the fuzzer of `target`, or of every target, for `seconds` each.
///
/// # Errors
/// There is no such target, or it cannot be built. What a fuzzer finds is a failure, not an error.
pub fn run(target: Option<&str>, seconds: &str) -> Result<ExitCode> {
    let seconds: u32 = seconds.parse().with_context(|| format!("--seconds {seconds}: not a number"))?;
    let targets: Vec<_> =
        TARGETS.into_iter().filter(|(name, _)| target.is_none_or(|one| one == *name)).collect();
    ensure!(!targets.is_empty(), "no such target; there are {}", TARGETS.map(|(name, _)| name).join(", "));
    let programs = build()?;
    let mut rows = Vec::new();
    for (name, longest) in targets {
        rows.push((name, fuzz(&programs, name, longest, seconds)?));
    }
    println!("\n{:12}{:>14}{:>12}{:>10}  result", "target", "executions", "per second", "coverage");
    for (name, row) in &rows {
        let result = if row.found { "FOUND an input: see target/fuzz/findings" } else { "nothing found" };
        println!("{name:12}{:>14}{:>12}{:>10}  {result}", row.executions, row.per_second, row.coverage);
    }
    Ok(if rows.iter().any(|(_, row)| row.found) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The figures of a run.
#[derive(Default)]
struct Row {
    executions: u64,
    per_second: u64,
    coverage: u64,
    found: bool,
}

impl Row {
    /// Takes a line of libFuzzer's output.
    fn line(&mut self, line: &str) {
        let number = |text: &str| text.trim().parse().ok();
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:").and_then(number) {
            self.executions = count;
        } else if let Some(count) = line.strip_prefix("stat::average_exec_per_sec:").and_then(number) {
            self.per_second = count;
        } else if let Some((_, rest)) = line.split_once(" cov: ") {
            self.coverage = rest.split(' ').next().and_then(number).unwrap_or(self.coverage);
        }
    }
}

/// Builds all fuzzers and returns their folder.
fn build() -> Result<PathBuf> {
    packages::need_program("c++", "g++")?;
    let target_dir = workspace_root().join("target/fuzz");
    let mut build = cargo();
    build
        .args(["build", "--package", "tidevm-fuzz", "--features", "libfuzzer", "--bins", "--release"])
        .args(["--target", TRIPLE, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        // Programs are released small; fuzzers are to be fast, and counters are added before anything is inlined.
        .envs(
            [("LTO", "off"), ("OPT_LEVEL", "3"), ("CODEGEN_UNITS", "16")]
                .map(|(name, value)| (format!("CARGO_PROFILE_RELEASE_{name}"), value)),
        );
    packages::run(&mut build)?;
    Ok(target_dir.join(TRIPLE).join("release"))
}

fn fuzz(programs: &Path, name: &str, longest: u32, seconds: u32) -> Result<Row> {
    let (found, findings) = (folder("corpus", name), folder("findings", name));
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&findings)?;
    let mut fuzzer = Command::new(programs.join(name));
    fuzzer
        .args([format!("-max_total_time={seconds}"), format!("-max_len={longest}")])
        .args([format!("-timeout={LONGEST}"), format!("-rss_limit_mb={MEMORY_MIB}")])
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg("-print_final_stats=1")
        .args([&found, &committed(name)])
        .stderr(Stdio::piped());
    let mut child = fuzzer.spawn().with_context(|| format!("cannot run {fuzzer:?}"))?;
    let mut row = Row::default();
    let output = child.stderr.take().context("libFuzzer writes to stderr")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{name}: {line}");
        row.line(&line);
    }
    row.found = !child.wait()?.success();
    Ok(row)
}

/// Takes inputs of the runs so far into the committed corpus of `target`: of the least inputs with all coverage some
/// of every length.
///
/// # Errors
/// There is no such target, or the fuzzer fails.
pub fn keep(target: &str) -> Result<ExitCode> {
    ensure!(TARGETS.iter().any(|(name, _)| *name == target), "there is no target {target}");
    let merged = folder("merged", target);
    let _ = fs::remove_dir_all(&merged);
    fs::create_dir_all(&merged)?;
    let mut merge = Command::new(build()?.join(target));
    merge.arg("-merge=1").args([&merged, &committed(target), &folder("corpus", target)]);
    if !merge.status()?.success() {
        bail!("{merge:?} failed");
    }
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&merged)? {
        let bytes = fs::read(entry?.path())?;
        inputs.push((bytes.len(), bytes));
    }
    inputs.sort();
    // Inputs with a name were made by hand, and stay.
    for entry in fs::read_dir(committed(target))? {
        let entry = entry?;
        let of_fuzzer = entry.file_name().to_string_lossy().starts_with("input-");
        if of_fuzzer {
            fs::remove_file(entry.path())?;
        }
    }
    let (mut total, mut count) = (0, 0);
    let step = inputs.len().div_ceil(FILES).max(1);
    for (number, (length, bytes)) in inputs.iter().step_by(step).enumerate() {
        total += *length as u64;
        if total > CORPUS {
            break;
        }
        fs::write(committed(target).join(format!("input-{number:03}")), bytes)?;
        count += 1;
    }
    println!("{target}: {count} of {} inputs are in the committed corpus", inputs.len());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use tidevm_guest_image::workspace_root;

    use super::{Row, TARGETS};

    /// A fuzzer that the list lacks would be run by no command, and its corpus would never grow.
    #[test]
    fn each_fuzzer_is_a_target_and_has_a_corpus() {
        let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let folder = workspace_root().join("tests/fuzz");
        let manifest: toml::Table =
            toml::from_str(&fs::read_to_string(folder.join("Cargo.toml")).unwrap()).unwrap();
        let fuzzers = manifest["bin"].as_array().unwrap().iter();
        let fuzzers: BTreeSet<String> = fuzzers.map(|bin| bin["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(targets, fuzzers, "targets, and the [[bin]] entries of tests/fuzz/Cargo.toml");
        let corpora = fs::read_dir(folder.join("corpus")).unwrap();
        let corpora: BTreeSet<String> =
            corpora.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(targets, corpora, "targets, and the folders of tests/fuzz/corpus");
    }

    #[test]
    fn the_figures_of_libfuzzer_are_read() {
        let mut row = Row::default();
        for line in [
            "#2048\tpulse  cov: 812 ft: 1021 corp: 12/3Kb lim: 17 exec/s: 1024 rss: 35Mb",
            "stat::number_of_executed_units: 9041",
            "stat::average_exec_per_sec:     1291",
        ] {
            row.line(line);
        }
        assert_eq!((row.coverage, row.executions, row.per_second), (812, 9041, 1291));
    }
}
