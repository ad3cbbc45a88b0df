//! `expect`: a number compared with what it should be.

use alloc::format;
use core::fmt;
use core::time::Duration;

use super::suffix;
use crate::metric::{Metric, Unit};
use crate::words::{SyntaxError, Table, Word, Words, word_for};

/// `expect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The number to look at.
    pub metric: Metric,
    /// How to compare it.
    pub comparison: Comparison,
    /// What to compare it with: bytes or a count, as [`Metric::unit`] says.
    pub value: u64,
    /// The device, for a metric [of devices](Metric::is_of_devices): `None` is the sum over all of them. Other metrics
    /// have none.
    pub device: Option<usize>,
    /// How long it may take to become true.
    pub within: Option<Duration>,
}

/// How `expect` compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<=`
    AtMost,
    /// `>=`
    AtLeast,
    /// `<`
    Below,
    /// `>`
    Above,
}

const COMPARISONS: Table<Comparison> = &[
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("<", Comparison::Below),
    (">", Comparison::Above),
];

impl Comparison {
    /// Whether `left` stands to `right` as this says.
    #[must_use]
    pub fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::AtMost => left <= right,
            Self::AtLeast => left >= right,
            Self::Below => left < right,
            Self::Above => left > right,
        }
    }
}

impl Expect {
    /// Reads what follows `expect`.
    pub(super) fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        let metric = words.value(&format!("`console`, or a metric ({})", Metric::names()), Metric::new)?;
        let comparison = words.one_of("a comparison", COMPARISONS)?;
        let value = match metric.unit() {
            Unit::Bytes => words.size("a size such as 2G", |_| true)?.0,
            Unit::Count => {
                words.value(&format!("a number ({metric} is no size)"), |text| text.parse().ok())?
            }
        };
        let (device, within) =
            if metric.is_of_devices() { suffix::parse(words)? } else { (None, suffix::within(words)?) };
        let of_none = |word: &Word<'_>| word.text == "device" && !metric.is_of_devices();
        if let Some(word) = words.peek().filter(of_none) {
            return Err(word.error(&format!("no `device`: {metric} is of no device")));
        }
        Ok(Self { metric, comparison, value, device, within })
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comparison = word_for(COMPARISONS, &self.comparison);
        write!(f, "expect {} {comparison} {}", self.metric, self.metric.show(self.value))?;
        suffix::write(f, self.device, self.within)
    }
}
