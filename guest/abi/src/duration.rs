//! Durations as people write them. They are shown exactly: the text parses to the same duration.

use alloc::borrow::ToOwned;
use alloc::format;
use core::fmt;
use core::time::Duration;

/// Reads `200ms`, `5s` or `2m`, whole numbers only; `None` if `text` is no duration or too long to count
/// in milliseconds.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let factor = millis_of(unit)?;
    number.parse::<u64>().ok()?.checked_mul(factor).map(Duration::from_millis)
}

/// A unit in milliseconds.
fn millis_of(unit: &str) -> Option<u64> {
    match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        _ => None,
    }
}

/// Whether `text` is a unit of durations.
pub(crate) fn is_unit_of_time(text: &str) -> bool {
    millis_of(text).is_some()
}

/// Shows whole milliseconds with the largest unit that divides them: `2m`, `5s`, `1500ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShowDuration(pub Duration);

impl fmt::Display for ShowDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let text = match millis {
            0 => "0s".to_owned(),
            _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
            _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
            _ => format!("{millis}ms"),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, ShowDuration, parse_duration};

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        for bad in ["", "5", "s", "1.5s", "-1s", "5h", "18446744073709551615m"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert_eq!(ShowDuration(Duration::ZERO).to_string(), "0s");
    }
}
