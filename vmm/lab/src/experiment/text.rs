//! Verdicts as text for people: per experiment the finding of each side, and its numbers in columns.

use std::fmt::Write;

use super::{Side, Value, Verdict};

/// Between columns.
const GAP: usize = 2;

/// The verdicts. Ends with a line break.
#[must_use]
pub fn text(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        // Writing to a string does not fail.
        let _ = one(&mut text, verdict);
        text.push('\n');
    }
    let passed = verdicts.iter().filter(|verdict| verdict.passed()).count();
    let _ = writeln!(text, "{passed} of {} experiments show what they should", verdicts.len());
    text
}

fn one(text: &mut String, verdict: &Verdict) -> std::fmt::Result {
    let mark = if verdict.passed() { "ok" } else { "FAIL" };
    writeln!(text, "{}  {mark}  {:.1} s", verdict.name, verdict.took.as_secs_f64())?;
    writeln!(text, "  {}", verdict.about)?;
    let titles = verdict.sides.iter().map(Side::title).collect::<Vec<_>>();
    let widest = titles.iter().map(|title| title.chars().count()).max().unwrap_or(0);
    for (side, title) in verdict.sides.iter().zip(&titles) {
        writeln!(text, "  {title:widest$}  {}: {}", side.finding.text(), side.what)?;
    }
    let mut rows = vec![row(String::new(), titles.iter().map(|title| Some(title.clone())))];
    let names = verdict.sides.first().map_or(&[][..], |side| &side.numbers);
    for (index, name) in names.iter().enumerate() {
        let cell = |side: &Side| side.numbers.get(index).map(|number| number.value.to_string());
        rows.push(row(name.name.clone(), verdict.sides.iter().map(cell)));
    }
    columns(text, &rows)?;
    for (side, title) in verdict.sides.iter().zip(&titles) {
        for (why, names) in missing(side) {
            let more = match names.len() {
                1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            writeln!(text, "  {title}, no number for {}{more}: {why}", names[0])?;
        }
    }
    Ok(())
}

/// The names of missing numbers, by reason.
fn missing(side: &Side) -> Vec<(&str, Vec<&str>)> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for number in &side.numbers {
        if let Value::Missing(why) = &number.value {
            match reasons.iter_mut().find(|(known, _)| known == why) {
                Some((_, names)) => names.push(&number.name),
                None => reasons.push((why, vec![&number.name])),
            }
        }
    }
    reasons
}

fn row(name: String, cells: impl Iterator<Item = Option<String>>) -> Vec<String> {
    [name].into_iter().chain(cells.map(Option::unwrap_or_default)).collect()
}

/// Aligned rows: the first column is left-aligned, the others are right-aligned.
fn columns(text: &mut String, rows: &[Vec<String>]) -> std::fmt::Result {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            match column {
                0 => write!(text, "  {cell:width$}")?,
                _ => write!(text, "{:GAP$}{cell:>width$}", "")?,
            }
        }
        writeln!(text)?;
    }
    Ok(())
}
