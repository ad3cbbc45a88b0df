//! `docs/conformance.md`: every rule with what proves it, and what was judged side by side.
//!
//! `docs/conformance.toml` lists the tests and the driver's rules; the rest is what the judge found in this run. The page
//! has no times and no addresses of a run, so it stays the same as long as the devices do.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use tidevm_judge::render::Counts;
use tidevm_judge::{Level, Outcome, Row, Verdict, rows};

/// `docs/conformance.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    row: Vec<Listed>,
}

/// What stands there of a rule.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    id: String,
    /// Of the driver's rules only.
    level: Option<String>,
    rule: Option<String>,
    #[serde(default)]
    tests: Vec<String>,
    /// Why it cannot apply.
    reason: Option<String>,
}

/// A VMM that was judged.
pub struct Judged<'a> {
    /// `QEMU 7.2.22`.
    pub name: String,
    /// What came of all rows.
    pub outcomes: &'a [Outcome],
}

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

/// The path of the page.
pub fn path() -> PathBuf {
    docs("conformance.md")
}

impl List {
    /// Reads the list.
    pub fn read() -> Self {
        let text = fs::read_to_string(docs("conformance.toml")).expect("docs/conformance.toml");
        toml::from_str(&text).expect("docs/conformance.toml is understood")
    }

    fn tests(&self, id: &str) -> String {
        let listed = self.row.iter().find(|row| row.id == id);
        let tests = listed.map_or(&[][..], |row| &row.tests);
        tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join("<br>")
    }

    /// What is wrong with the list: rules that are missing, or that nothing proves and nothing excuses.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut seen = BTreeMap::new();
        for row in &self.row {
            *seen.entry(row.id.as_str()).or_insert(0) += 1;
            let of_driver = row.id.starts_with(['G', 'Y']);
            let judged = rows().any(|known| known.id == row.id);
            if of_driver == judged || of_driver != row.rule.is_some() || of_driver != row.level.is_some() {
                complaints.push(format!("{}: is no row, or has a rule in two places", row.id));
            }
            if row.tests.is_empty() == row.reason.is_none() {
                complaints.push(format!("{}: either tests or a reason", row.id));
            }
        }
        let driver = (1..=21).map(|row| format!("G{row}")).chain((1..=6).map(|row| format!("Y{row}")));
        complaints
            .extend(driver.filter(|id| !seen.contains_key(id.as_str())).map(|id| format!("{id}: missing")));
        complaints.extend(seen.iter().filter(|(_, count)| **count > 1).map(|(id, _)| format!("{id}: twice")));
        complaints
    }

    /// The page.
    pub fn render(&self, judged: &[Judged<'_>]) -> String {
        let mut page = String::from(INTRODUCTION);
        counts(&mut page, judged);
        let names = judged.iter().map(|judged| judged.name.as_str()).collect::<Vec<_>>();
        let (below, device): (Vec<&Row>, Vec<&Row>) = rows().partition(|row| row.id.starts_with('T'));
        page += "\n## The device\n\n";
        head(
            &mut page,
            &[&["row", "level", "rule", "virtio 1.3"], &names[..], &["tests beside the judge"]].concat(),
        );
        for row in device {
            let tests = self.tests(row.id);
            line(&mut page, [rule(row), verdicts(row, judged), vec![tests]].concat());
        }
        page += "\n## What lies below the device\n\n";
        head(&mut page, &[&["row", "level", "rule", "virtio 1.3"], &names[..]].concat());
        below.into_iter().for_each(|row| line(&mut page, [rule(row), verdicts(row, judged)].concat()));
        page += "\n## The driver of tidevm's guest\n\n";
        head(&mut page, &["row", "level", "rule", "tidevm's guest", "tests, or why it does not apply"]);
        for row in self.row.iter().filter(|row| row.rule.is_some()) {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let verdict = if row.tests.is_empty() { "SKIP" } else { "PASS" };
            let proof = if row.tests.is_empty() { text(&row.reason) } else { self.tests(&row.id) };
            line(&mut page, vec![row.id.clone(), text(&row.level), text(&row.rule), verdict.into(), proof]);
        }
        page += "\n## What came, where it is no pass or the rule leaves a choice\n\n";
        head(&mut page, &["row", "VMM", "verdict", "sent", "came"]);
        for row in rows() {
            if let Some(reason) = row.skip {
                let cells = [row.id, "all", "SKIP", "", reason];
                line(&mut page, cells.map(str::to_owned).into());
                continue;
            }
            for Judged { name, outcomes } in judged {
                let told = outcomes.iter().find(|outcome| outcome.row == row);
                let told = told.filter(|told| told.verdict != Verdict::Pass || row.level == Level::May);
                if let Some(Outcome { sent, came, verdict, .. }) = told {
                    let cells = [row.id, name, &verdict.to_string(), sent, came];
                    line(&mut page, cells.map(str::to_owned).into());
                }
            }
        }
        page
    }
}

fn counts(page: &mut String, judged: &[Judged<'_>]) {
    let kinds = [Verdict::Pass, Verdict::Reject, Verdict::Skip, Verdict::Fail, Verdict::Wedged];
    head(page, &["VMM", "PASS", "REJECT", "SKIP", "FAIL", "WEDGED", "of them break a MUST"]);
    for Judged { name, outcomes } in judged {
        let mut counts = Counts::default();
        outcomes.iter().for_each(|outcome| counts.add(outcome));
        let numbers = kinds.map(|kind| counts.of(kind).to_string());
        line(page, [&[name.clone()][..], &numbers, &[counts.breaches.to_string()]].concat());
    }
}

fn rule(row: &Row) -> Vec<String> {
    [row.id, row.level.word(), row.rule, row.section].map(str::to_owned).into()
}

fn verdicts(row: &Row, judged: &[Judged<'_>]) -> Vec<String> {
    let of = |judged: &Judged<'_>| {
        judged.outcomes.iter().find(|outcome| outcome.row == row).map(|told| told.verdict)
    };
    let text = |verdict| match verdict {
        Some(verdict @ (Verdict::Fail | Verdict::Wedged)) => format!("**{verdict}**"),
        Some(verdict) => verdict.to_string(),
        None => "**none**".to_owned(),
    };
    judged.iter().map(|judged| text(of(judged))).collect()
}

fn head(page: &mut String, cells: &[&str]) {
    line(page, cells.iter().map(|cell| (*cell).to_owned()).collect());
    line(page, vec!["---".to_owned(); cells.len()]);
}

fn line(page: &mut String, cells: Vec<String>) {
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    writeln!(page, "| {} |", cells.join(" | ")).expect("a string");
}

const INTRODUCTION: &str = "\
# Conformance

Every rule on a virtio-mem device and on its driver, with what proves it. `cargo test --package tidevm --test judge` has
`tidevm judge` judge tidevm and QEMU, and writes this page from what it found and from `docs/conformance.toml`; edit that
file. [judge.md](judge.md) says how devices are judged, and what the verdicts mean.

Rows D and G are virtio 1.3's rules on the device and on the driver, in the order of section 5.15. X and Y are rules that
devices and drivers need besides, R are races that have hit devices which others shipped, and T is what lies below the
device. A row of the driver passes by its tests: `cargo xtask test` runs them all.

";
