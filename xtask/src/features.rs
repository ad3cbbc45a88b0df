//! `docs/features.md`: the claims of the mechanisms, and the tests that prove each claim.
//!
//! `docs/features.toml` is the list of the claims and of their tests. A run of all tests writes the document from
//! this list and from the results, so the document says nothing that was not run. A run that skipped a test of the
//! list leaves the document alone, and says so. As long as the tests pass the document stays the same, including
//! its record of the run that wrote it (see `recorded`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use tidevm_guest_image::workspace_root;

use crate::recorded;
use crate::results::{Results, TestResult};

/// `docs/features.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    suite: Vec<Suite>,
    mechanism: Vec<Mechanism>,
    row: Vec<Row>,
}

/// A test program.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    /// Its name in cargo.
    name: String,
    /// The kind of machine that its tests run on.
    runs: String,
    /// The folder or file of its sources.
    sources: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mechanism {
    /// `S1`.
    id: String,
    title: String,
}

/// A claim. It has tests, or a figure, or a reason why it cannot apply; otherwise its proof is missing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// `S1.1`.
    id: String,
    claim: String,
    /// `suite::test`.
    #[serde(default)]
    tests: Vec<String>,
    /// The command that prints the figure, for a claim about a quantity.
    figure: Option<String>,
    /// Why the claim cannot apply here.
    cannot: Option<String>,
}

/// The result of a row after a run, the worse the larger.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RowResult {
    Proven,
    Measured,
    CannotApply,
    Missing,
    Skipped,
    Failed,
}

impl Row {
    fn result(&self, results: &Results) -> RowResult {
        let of = |test: &String| match results.of(test) {
            Some(TestResult::Passed) => RowResult::Proven,
            Some(TestResult::Skipped(_)) => RowResult::Skipped,
            Some(TestResult::Failed) | None => RowResult::Failed,
        };
        match self.tests.iter().map(of).max() {
            Some(worst) => worst,
            None if self.cannot.is_some() => RowResult::CannotApply,
            None if self.figure.is_some() => RowResult::Measured,
            None => RowResult::Missing,
        }
    }

    fn cells(&self, results: &Results) -> [String; 4] {
        let mut proof: Vec<String> = self.tests.iter().map(|test| format!("`{test}`")).collect();
        proof.extend(self.figure.iter().map(|figure| format!("figure: {figure}")));
        proof.extend(self.cannot.clone());
        let result = match self.result(results) {
            RowResult::Proven => "passed",
            RowResult::Measured => "measured",
            RowResult::CannotApply => "cannot apply",
            RowResult::Missing => "**missing**",
            RowResult::Skipped => "skipped",
            RowResult::Failed => "**FAILED**",
        };
        [self.id.clone(), self.claim.clone(), proof.join("<br>"), result.to_owned()]
    }
}

impl Features {
    /// Reads the list.
    ///
    /// # Errors
    /// The file is missing or malformed.
    pub fn read() -> Result<Self> {
        let path = path("features.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// Compares the list with a run of all tests, prints a summary, and writes the document if every test of the
    /// list passed. Returns `false` when a test of the list failed, or had no result.
    ///
    /// # Errors
    /// The document cannot be written.
    pub fn conclude(&self, results: &Results) -> Result<bool> {
        println!("\n{}", self.summary(results));
        let mut good = true;
        let mut skipped = 0;
        for (row, test) in self.tests() {
            match results.of(test) {
                Some(TestResult::Passed) => {}
                Some(TestResult::Skipped(reason)) => {
                    println!("{}: {test} was skipped: {reason}", row.id);
                    skipped += 1;
                }
                Some(TestResult::Failed) => {
                    println!("{}: {test} FAILED", row.id);
                    good = false;
                }
                None => {
                    println!("{}: {test} has no result", row.id);
                    good = false;
                }
            }
        }
        if !good {
            println!("docs/features.md stays as it is");
        } else if skipped > 0 {
            println!("docs/features.md stays as it is: this run skipped {skipped} tests that it names");
        } else {
            let path = path("features.md");
            let known = fs::read_to_string(&path).unwrap_or_default();
            if recorded::without(&known) == (self.render(results, ""), true) {
                println!("docs/features.md says the same");
            } else {
                let text = self.render(results, &recorded::line());
                fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
                println!("docs/features.md has changed: look at the difference and commit it");
            }
        }
        Ok(good)
    }

    fn summary(&self, results: &Results) -> String {
        let mut counts = BTreeMap::new();
        for row in &self.row {
            *counts.entry(row.result(results)).or_insert(0) += 1;
        }
        let count = |result| counts.get(&result).copied().unwrap_or(0);
        format!(
            "{} rows: {} proven by tests, {} measured, {} cannot apply, {} failed, {} skipped, {} missing",
            self.row.len(),
            count(RowResult::Proven),
            count(RowResult::Measured),
            count(RowResult::CannotApply),
            count(RowResult::Failed),
            count(RowResult::Skipped),
            count(RowResult::Missing),
        )
    }

    /// The document, with the line `record`.
    fn render(&self, results: &Results, record: &str) -> String {
        let mut text = String::from(INTRODUCTION);
        let suites = self.suite.iter().map(|suite| [format!("`{}`", suite.name), suite.runs.clone()]);
        table(&mut text, ["suite", "its tests run on"], suites);
        text += &format!("\n{}.\n{record}", self.summary(results));
        for Mechanism { id, title } in &self.mechanism {
            text += &format!("\n## {id}: {title}\n\n");
            let rows = self.row.iter().filter(|row| row.id.split('.').next() == Some(id));
            table(&mut text, ["row", "claim", "proof", "result"], rows.map(|row| row.cells(results)));
        }
        text
    }

    /// A complaint for each test of the list that no source has.
    ///
    /// # Errors
    /// Sources cannot be read.
    pub fn unknown_tests(&self) -> Result<Vec<String>> {
        let mut complaints = Vec::new();
        for (row, test) in self.tests() {
            complaints.extend(self.unknown(test)?.map(|complaint| format!("{}: {complaint}", row.id)));
        }
        Ok(complaints)
    }

    /// Why `test` does not exist, or `None`.
    fn unknown(&self, test: &str) -> Result<Option<String>> {
        let (suite, name) = (test.split("::").next(), test.rsplit("::").next().unwrap_or_default());
        let Some(suite) = self.suite.iter().find(|known| suite == Some(&known.name)) else {
            return Ok(Some(format!("{test}: no such suite")));
        };
        let exists = declares(&workspace_root().join(&suite.sources), name)?;
        Ok((!exists).then(|| format!("{test}: not in {}", suite.sources)))
    }

    /// Every test of the list, with the row that names it.
    fn tests(&self) -> impl Iterator<Item = (&Row, &String)> {
        self.row.iter().flat_map(|row| row.tests.iter().map(move |test| (row, test)))
    }
}

/// Whether a Rust file at or below `path` has a test `name`, as a function or in a list of tests.
fn declares(path: &Path, name: &str) -> Result<bool> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            if declares(&entry?.path(), name)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.contains(&format!("fn {name}(")) || text.contains(&format!("(\"{name}\",")))
}

fn table<const N: usize>(text: &mut String, columns: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let row =
        |cells: [String; N]| format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    *text += &row(columns.map(str::to_owned));
    *text += &row([const { String::new() }; N].map(|_| "---".to_owned()));
    rows.for_each(|cells| *text += &row(cells));
}

const INTRODUCTION: &str = "\
# Features

Every claim of the five designs that tidevm implements, of its control plane and of its safety, with the tests and their result.
`cargo xtask test` writes this file from `docs/features.toml` after it has run every test; edit that file.
Later runs than the recorded one had the same results, or they would have changed this file.

";

fn path(name: &str) -> PathBuf {
    workspace_root().join("docs").join(name)
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::{Features, Row};
    use crate::recorded;
    use crate::results::{Reader, Results};

    /// Numbers of the claims of each mechanism.
    const ROWS: [(&str, &[RangeInclusive<usize>]); 12] = [
        ("S1", &[1..=18]),
        ("S2", &[1..=14]),
        ("S3", &[1..=15]),
        ("S4", &[1..=21]),
        ("S5", &[1..=15]),
        // The device and snapshots, the driver, the judge, and the crates.
        ("V", &[1..=14, 20..=29, 40..=43, 50..=50]),
        ("H", &[1..=24]),
        ("B", &[1..=9]),
        ("A", &[1..=4]),
        ("L", &[1..=6]),
        // Sessions and clients, and Linux in scripts.
        ("C", &[1..=16, 20..=22]),
        ("K", &[1..=4]),
    ];

    fn results(text: &str) -> Results {
        let mut reader = Reader::new(Some("mm"));
        text.lines().for_each(|line| reader.line(line));
        reader.finish()
    }

    #[test]
    fn every_row_is_there_once_and_in_order() {
        let features = Features::read().unwrap();
        let ids = |(id, rows): &(&str, &[RangeInclusive<usize>])| -> Vec<String> {
            rows.iter().cloned().flatten().map(|row| format!("{id}.{row}")).collect()
        };
        let expected: Vec<String> = ROWS.iter().flat_map(ids).collect();
        let found: Vec<&String> = features.row.iter().map(|row| &row.id).collect();
        assert_eq!(found, expected.iter().collect::<Vec<_>>());
        let mechanisms: Vec<&str> =
            features.mechanism.iter().map(|mechanism| mechanism.id.as_str()).collect();
        assert_eq!(mechanisms, ROWS.map(|(id, _)| id));
    }

    #[test]
    fn a_row_that_cannot_apply_has_no_tests() {
        let both = |row: &&Row| row.cannot.is_some() && (row.figure.is_some() || !row.tests.is_empty());
        assert_eq!(Features::read().unwrap().row.iter().find(both).map(|row| row.id.clone()), None);
    }

    #[test]
    fn every_test_that_is_named_exists() {
        let unknown = Features::read().unwrap().unknown_tests().unwrap();
        assert!(unknown.is_empty(), "{unknown:#?}");
    }

    /// A run in which all tests pass would write the committed document, but for the record.
    #[test]
    fn the_document_is_that_of_the_table() {
        let features = Features::read().unwrap();
        let mut all = Results::default();
        for (_, test) in features.tests() {
            let (suite, name) = test.split_once("::").unwrap();
            let mut reader = Reader::new(Some(suite));
            reader.line(&format!("test {name} ... ok"));
            all.merge(reader.finish());
        }
        let known = std::fs::read_to_string(super::path("features.md")).unwrap();
        assert!(
            features.render(&all, "") == recorded::without(&known).0,
            "docs/features.toml has changed: `cargo xtask test` writes docs/features.md anew, commit that"
        );
    }

    /// `docs/conformance.md` names tests beside the judge.
    #[test]
    fn every_test_of_the_conformance_page_exists() {
        let features = Features::read().unwrap();
        let text = std::fs::read_to_string(super::path("conformance.toml")).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        let rows = table["row"].as_array().unwrap();
        let tests = rows.iter().filter_map(|row| row.get("tests")?.as_array()).flatten();
        let unknown: Vec<_> =
            tests.clone().filter_map(|test| features.unknown(test.as_str().unwrap()).unwrap()).collect();
        assert!(unknown.is_empty(), "{unknown:#?}");
        assert!(rows.len() > 60 && tests.count() > rows.len());
    }

    /// Each pitfall has a row, with a test or with the reason why it cannot happen.
    #[test]
    fn every_pitfall_has_a_test_that_exists_or_a_reason() {
        let features = Features::read().unwrap();
        let text = std::fs::read_to_string(super::path("pitfalls.md")).unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")).skip(1);
        let mut count = 0;
        for (row, number) in rows.zip(1..) {
            assert!(row.starts_with(&format!("| {number} |")), "{number}: {row}");
            let of_suite = |word: &&str| {
                features.suite.iter().any(|suite| word.starts_with(&format!("{}::", suite.name)))
            };
            let tests: Vec<&str> = row.split('`').skip(1).step_by(2).filter(of_suite).collect();
            assert_ne!(tests.is_empty(), !row.contains("Cannot happen"), "{row}");
            for test in tests {
                assert_eq!(features.unknown(test).unwrap(), None, "pitfall {number}");
            }
            count = number;
        }
        assert_eq!(count, 29);
    }

    #[test]
    fn the_worst_result_counts() {
        let features: Features = toml::from_str(
            "suite = [{ name = 'mm', runs = 'x', sources = 'guest/mm' }]
             mechanism = [{ id = 'S1', title = 'One' }]
             row = [
                 { id = 'S1.1', claim = 'a|b', tests = ['mm::a', 'mm::b'] },
                 { id = 'S1.2', claim = 'c', tests = ['mm::a', 'mm::c'], figure = 'bench' },
                 { id = 'S1.3', claim = 'd', tests = ['mm::nowhere'] },
                 { id = 'S1.4', claim = 'e', cannot = 'because' },
                 { id = 'S1.5', claim = 'f', figure = 'bench' },
                 { id = 'S1.6', claim = 'g' },
                 { id = 'S1.7', claim = 'h', tests = ['mm::c', 'mm::d'] },
             ]",
        )
        .unwrap();
        let text = features
            .render(&results("test a ... ok\ntest b ... ok\ntest c ... ignored\ntest d ... FAILED"), "");
        for line in [
            "7 rows: 1 proven by tests, 1 measured, 1 cannot apply, 2 failed, 1 skipped, 1 missing.",
            "| S1.1 | a\\|b | `mm::a`<br>`mm::b` | passed |",
            "| S1.2 | c | `mm::a`<br>`mm::c`<br>figure: bench | skipped |",
            "| S1.3 | d | `mm::nowhere` | **FAILED** |",
            "| S1.4 | e | because | cannot apply |",
            "| S1.5 | f | figure: bench | measured |",
            "| S1.6 | g |  | **missing** |",
            "| S1.7 | h | `mm::c`<br>`mm::d` | **FAILED** |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
