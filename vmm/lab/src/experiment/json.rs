//! Writes verdicts as one JSON object, for programs. Times are seconds, sizes are bytes. A missing number is
//! null, with the reason in `why`.

use serde::Serialize;

use super::{Number, Side, Value, Verdict};

/// The verdicts as one line of JSON, with a line break at its end.
///
/// # Panics
/// Never: a verdict consists of strings, numbers and lists.
#[must_use]
pub fn json(verdicts: &[Verdict]) -> String {
    let data = All {
        passed: verdicts.iter().all(Verdict::passed),
        experiments: verdicts.iter().map(experiment).collect(),
    };
    serde_json::to_string(&data).expect("strings, numbers and lists") + "\n"
}

#[derive(Serialize)]
struct All<'o> {
    passed: bool,
    experiments: Vec<ExperimentData<'o>>,
}

#[derive(Serialize)]
struct ExperimentData<'o> {
    name: &'o str,
    about: &'o str,
    passed: bool,
    seconds: f64,
    sides: Vec<SideData<'o>>,
}

#[derive(Serialize)]
struct SideData<'o> {
    mechanism: &'static str,
    setting: &'o str,
    finding: &'static str,
    what: &'o str,
    numbers: Vec<NumberData<'o>>,
}

#[derive(Serialize)]
struct NumberData<'o> {
    name: &'o str,
    unit: Option<&'static str>,
    value: Option<serde_json::Value>,
    why: Option<&'o str>,
}

fn experiment(verdict: &Verdict) -> ExperimentData<'_> {
    ExperimentData {
        name: verdict.name,
        about: verdict.about,
        passed: verdict.passed(),
        seconds: verdict.took.as_secs_f64(),
        sides: verdict.sides.iter().map(side).collect(),
    }
}

fn side(side: &Side) -> SideData<'_> {
    SideData {
        mechanism: if side.on { "on" } else { "off" },
        setting: side.setting,
        finding: side.finding.text(),
        what: &side.what,
        numbers: side.numbers.iter().map(number).collect(),
    }
}

fn number(number: &Number) -> NumberData<'_> {
    let (unit, value, why) = match &number.value {
        Value::Count(count) => (Some("count"), Some((*count).into()), None),
        Value::Size(size) => (Some("bytes"), Some(size.0.into()), None),
        Value::Time(time) => (Some("seconds"), Some(time.as_secs_f64().into()), None),
        Value::Missing(why) => (None, None, Some(why.as_str())),
    };
    NumberData { name: &number.name, unit, value, why }
}
