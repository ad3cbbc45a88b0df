//! An experiment's chart: per drawn number one bar per side, with the number at its end.
//!
//! Lengths are proportional, or logarithmic where the numbers of one chart lie too far apart. The caption
//! says which.

use std::fmt::{self, Write};

use super::super::{Side, Value, Verdict};
use tidevm_report::Escaped;

const WIDTH: f64 = 860.0;
/// The left end of bars, and the length of the longest one. The number fits behind it.
const LEFT: f64 = 250.0;
const LONGEST: f64 = 500.0;
/// The length of the shortest bar, except that of 0.
const SHORTEST: f64 = 3.0;
const BAR: f64 = 18.0;
const STEP: f64 = 23.0;
const HEAD: f64 = 24.0;
const GROUP_GAP: f64 = 14.0;

/// Beyond this ratio of the largest to the smallest number, lengths are logarithmic.
const FAR_APART: f64 = 100.0;

/// Draws the charted numbers of `verdict`.
pub(super) fn draw(page: &mut String, verdict: &Verdict) -> fmt::Result {
    let groups = groups(verdict);
    let values: Vec<f64> = groups.iter().flat_map(|(_, values)| values).filter_map(|v| v.number()).collect();
    if values.is_empty() {
        return Ok(());
    }
    let scale = Scale::new(&values);
    let height = groups.iter().map(|(_, values)| HEAD + STEP * values.len() as f64 + GROUP_GAP).sum::<f64>();
    writeln!(page, "<figure>\n<figcaption>{}</figcaption>", scale.caption())?;
    let name = Escaped(verdict.name);
    writeln!(page, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Chart of {name}\">")?;
    let mut top = 0.0;
    for (name, values) in &groups {
        writeln!(page, "<text class=\"group\" x=\"0\" y=\"{}\">{}</text>", top + 15.0, Escaped(name))?;
        top += HEAD;
        for (index, (side, value)) in verdict.sides.iter().zip(values).enumerate() {
            let first_on = verdict.sides.iter().position(|side| side.on);
            bar(page, top, class(side, first_on == Some(index)), side, value, &scale)?;
            top += STEP;
        }
        let (start, end) = (top - STEP * values.len() as f64 - 2.0, top - 3.0);
        writeln!(page, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{LEFT}\" y1=\"{start}\" y2=\"{end}\"/>")?;
        top += GROUP_GAP;
    }
    writeln!(page, "</svg>\n</figure>")
}

/// Each drawn number: its name, and its values, one per side.
fn groups(verdict: &Verdict) -> Vec<(&str, Vec<&Value>)> {
    let names = verdict.sides.first().map_or(&[][..], |side| &side.numbers);
    let charted = names.iter().enumerate().filter(|(_, number)| number.charted);
    let values = |index: usize| {
        verdict.sides.iter().filter_map(move |side| side.numbers.get(index)).map(|number| &number.value)
    };
    charted.map(|(index, number)| (number.name.as_str(), values(index).collect())).collect()
}

fn class(side: &Side, first_on: bool) -> &'static str {
    match (side.on, first_on) {
        (false, _) => "off",
        (true, true) => "on",
        (true, false) => "on2",
    }
}

fn bar(page: &mut String, top: f64, class: &str, side: &Side, value: &Value, scale: &Scale) -> fmt::Result {
    let (label, baseline) = (LEFT - 10.0, top + 13.0);
    writeln!(
        page,
        "<text x=\"{label}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>",
        Escaped(side.title())
    )?;
    let Some(number) = value.number() else {
        let x = LEFT + 8.0;
        return writeln!(page, "<text class=\"none\" x=\"{x}\" y=\"{baseline}\">not measured</text>");
    };
    let length = scale.length(number);
    writeln!(
        page,
        "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR}\"/>"
    )?;
    writeln!(page, "<text x=\"{:.1}\" y=\"{baseline}\">{}</text>", LEFT + length + 8.0, Escaped(value))
}

/// Converts numbers to lengths.
struct Scale {
    least: f64,
    most: f64,
    logarithmic: bool,
}

impl Scale {
    fn new(values: &[f64]) -> Scale {
        let most = values.iter().copied().fold(0.0, f64::max);
        let least = values.iter().copied().filter(|value| *value > 0.0).fold(most, f64::min);
        // Half of the smallest number has length 0, so that the smallest one can be seen.
        Scale { least: least / 2.0, most, logarithmic: most > least * FAR_APART }
    }

    fn length(&self, value: f64) -> f64 {
        if value <= 0.0 {
            return 0.0;
        }
        let share = if self.logarithmic {
            (value / self.least).log10() / (self.most / self.least).log10()
        } else {
            value / self.most
        };
        (share * LONGEST).max(SHORTEST)
    }

    fn caption(&self) -> &'static str {
        match self.logarithmic {
            true => "Lengths are logarithmic: each tenfold number is longer by the same piece.",
            false => "Lengths are proportional.",
        }
    }
}
