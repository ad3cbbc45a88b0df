//! Sizes as people write them, and what they might have meant.

use std::fmt;

/// A number of bytes as the command line writes it: `512M`, `2G`, or plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
        match units.into_iter().find(|&(unit, _)| self.0 >= unit && self.0.is_multiple_of(unit)) {
            Some((unit, suffix)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The multiples of `unit` next to `size`, as advice.
pub(super) fn nearest(size: u64, unit: u64) -> String {
    let below = size - size % unit;
    match (below, below.checked_add(unit)) {
        (0, _) => format!(" (try {})", Size(unit)),
        (below, Some(above)) => format!(" (try {} or {})", Size(below), Size(above)),
        (below, None) => format!(" (try {})", Size(below)),
    }
}
