//! What is shown of a trial: a table for people, JSON (an object per line), or TAP (version 14).
//!
//! Each outcome is shown as soon as it is there. So the widths of the table's columns are those of all rows, which are known.
//! A rule that does not bind is no failure to TAP's readers: its line has the directive for that ([`NO_FAILURE`]).

use std::fmt::Write;

use serde_json::json;

use crate::rows::rows;
use crate::{Outcome, Verdict};

/// How outcomes are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Aligned columns.
    #[default]
    Table,
    /// An object per line.
    Json,
    /// TAP, version 14.
    Tap,
}

/// Counts outcomes by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By the order of [`VERDICTS`].
    counts: [usize; VERDICTS.len()],
    /// Rules of the specification that are broken.
    pub breaches: usize,
}

/// The verdicts, the best first.
const VERDICTS: [Verdict; 5] =
    [Verdict::Pass, Verdict::Reject, Verdict::Skip, Verdict::Fail, Verdict::Wedged];

impl Counts {
    /// Counts one more.
    pub fn add(&mut self, outcome: &Outcome) {
        let place = VERDICTS.iter().position(|verdict| *verdict == outcome.verdict);
        self.counts[place.unwrap_or_default()] += 1;
        self.breaches += usize::from(outcome.is_breach());
    }

    /// The number of one verdict.
    #[must_use]
    pub fn of(&self, verdict: Verdict) -> usize {
        VERDICTS.iter().zip(self.counts).find(|(known, _)| **known == verdict).map_or(0, |(_, count)| count)
    }

    /// `88 PASS, 1 FAIL`.
    #[must_use]
    pub fn text(&self) -> String {
        let counts = VERDICTS.iter().zip(self.counts).filter(|(_, count)| *count > 0);
        counts.map(|(verdict, count)| format!("{count} {verdict}")).collect::<Vec<_>>().join(", ")
    }
}

impl Form {
    /// What stands before the first outcome. `version` is the VMM's.
    #[must_use]
    pub fn head(self, version: &str) -> String {
        match self {
            Self::Table => {
                let [id, level, section] = widths();
                format!(
                    "{version}\n\n{:id$}  {:level$}  {:section$}  {:7}  rule\n",
                    "row", "level", "virtio 1.3", "verdict"
                )
            }
            Self::Json => format!("{}\n", json!({ "event": "start", "vmm": version })),
            Self::Tap => format!("TAP version 14\n1..{}\n# {version}\n", rows().count()),
        }
    }

    /// One outcome, the `number`-th, counted from 1.
    #[must_use]
    pub fn outcome(self, number: usize, outcome: &Outcome) -> String {
        match self {
            Self::Table => table(outcome),
            Self::Json => {
                let Outcome { row, sent, came, verdict } = outcome;
                let object = json!({
                    "event": "row",
                    "row": row.id,
                    "level": row.level.word(),
                    "section": row.section,
                    "rule": row.rule,
                    "sent": sent,
                    "expected": row.expected,
                    "came": came,
                    "verdict": verdict.to_string(),
                });
                format!("{object}\n")
            }
            Self::Tap => tap(number, outcome),
        }
    }

    /// What stands behind the last outcome.
    #[must_use]
    pub fn end(self, counts: &Counts) -> String {
        match self {
            Self::Table => format!("\n{}\n", counts.text()),
            Self::Json => {
                let by: serde_json::Map<_, _> = VERDICTS
                    .iter()
                    .map(|verdict| (verdict.to_string(), json!(counts.of(*verdict))))
                    .collect();
                format!("{}\n", json!({ "event": "end", "verdicts": by, "breaches": counts.breaches }))
            }
            Self::Tap => format!("# {}\n", counts.text()),
        }
    }
}

/// Widths of the columns of ids, levels and sections.
fn widths() -> [usize; 3] {
    let width = |of: fn(&crate::Row) -> &str| rows().map(|row| of(row).len()).max().unwrap_or(0);
    [width(|row| row.id).max("row".len()), width(|row| row.level.word()), width(|row| row.section)]
}

fn table(outcome: &Outcome) -> String {
    let [id, level, section] = widths();
    let Outcome { row, sent, came, verdict } = outcome;
    let mut text = format!(
        "{:id$}  {:level$}  {:section$}  {:7}  {}\n",
        row.id,
        row.level.word(),
        row.section,
        verdict,
        row.rule
    );
    let indent = id + level + section + 7 + 8;
    // Writing to a string cannot fail.
    let _ = match verdict {
        Verdict::Pass => Ok(()),
        Verdict::Skip => writeln!(text, "{:indent$}{came}", ""),
        _ if sent.is_empty() => writeln!(text, "{:indent$}came: {came}", ""),
        _ => writeln!(text, "{:indent$}sent: {sent}\n{:indent$}came: {came}", "", ""),
    };
    text
}

/// TAP's directive for a test point that may fail. In two halves, because the word alone marks unfinished work here.
const NO_FAILURE: &str = concat!("TO", "DO");

fn tap(number: usize, outcome: &Outcome) -> String {
    let Outcome { row, sent, came, verdict } = outcome;
    let is_good = !matches!(verdict, Verdict::Fail | Verdict::Wedged);
    let ok = if is_good { "ok" } else { "not ok" };
    // A hash begins a directive.
    let clean = |text: &str| text.replace('\\', "\\\\").replace('#', "\\#");
    let directive = match verdict {
        Verdict::Skip => format!(" # SKIP {}", clean(came)),
        Verdict::Fail | Verdict::Wedged if !row.level.binds() => {
            format!(" # {NO_FAILURE} {} binds no device", row.level.word())
        }
        _ => String::new(),
    };
    let mut text = format!("{ok} {number} - {}: {}{directive}\n", row.id, clean(row.rule));
    if !matches!(verdict, Verdict::Skip | Verdict::Pass) {
        let quoted = |text: &str| json!(text).to_string();
        let _ = write!(
            text,
            "  ---\n  verdict: {verdict}\n  section: {}\n  sent: {}\n  expected: {}\n  came: {}\n  ...\n",
            quoted(row.section),
            quoted(sent),
            quoted(row.expected),
            quoted(came)
        );
    }
    text
}

#[cfg(test)]
mod tests;
