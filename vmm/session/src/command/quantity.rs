//! Sizes and durations as text. What is shown is exact: it parses to the value it was made from.
//!
//! Sizes are read by `parse-size` with binary units, so `512M` is 512 MiB as in QEMU and Cloud
//! Hypervisor, and overflow is an error. They are shown by [`tidevm_machine::config::Size`].

use std::fmt;
use std::time::Duration;

/// Reads `512M`, `2G`, `2GiB` or plain bytes; `None` if `text` is no size or beyond 64 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    // A bare unit or a sign is no size, whatever the parser makes of it.
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    parse_size::Config::new().with_binary().parse_size(text).ok()
}

/// Reads `200ms`, `5s` or `2m`, whole numbers only; `None` if `text` is no duration or too long to count
/// in milliseconds.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).map(Duration::from_millis)
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
