//! The rules by which devices are judged, a row each. How a row is judged is the guest's knowledge (`guest/kernel/src/judge`).
//!
//! Invariant: a row that is not skipped is known to the guest.

mod beyond;
mod device;
mod transport;

/// How strictly a rule binds a device (RFC 2119).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It must do so.
    Must,
    /// It must not.
    MustNot,
    /// It should.
    Should,
    /// It should not.
    ShouldNot,
    /// It may. Such a row shows what it does.
    May,
    /// No text says so, but drivers or hosts suffer otherwise.
    Ours,
}

impl Level {
    /// The word of the specification.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::MustNot => "MUST NOT",
            Self::Should => "SHOULD",
            Self::ShouldNot => "SHOULD NOT",
            Self::May => "MAY",
            Self::Ours => "-",
        }
    }

    /// Whether a device that breaks the rule breaks the specification.
    #[must_use]
    pub fn binds(self) -> bool {
        matches!(self, Self::Must | Self::MustNot)
    }
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// `D26`.
    pub id: &'static str,
    /// How strictly it binds.
    pub level: Level,
    /// The section of virtio 1.3 that says so, or that it is about. Two of them are PCI's and virtio-mmio's.
    pub section: &'static str,
    /// The rule.
    pub rule: &'static str,
    /// What a device does that keeps to it.
    pub expected: &'static str,
    /// Why no guest and no resize API can judge it.
    pub skip: Option<&'static str>,
}

impl Row {
    const fn judged(
        id: &'static str,
        level: Level,
        section: &'static str,
        rule: &'static str,
        expected: &'static str,
    ) -> Self {
        Self { id, level, section, rule, expected, skip: None }
    }

    const fn skipped(
        id: &'static str,
        level: Level,
        section: &'static str,
        rule: &'static str,
        why: &'static str,
    ) -> Self {
        Self { id, level, section, rule, expected: "-", skip: Some(why) }
    }
}

/// All rows, in the order in which they are judged.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    [device::ROWS, beyond::ROWS, transport::ROWS].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::rows;

    #[test]
    fn every_row_is_there_once() {
        let ids: BTreeSet<_> = rows().map(|row| row.id).collect();
        assert_eq!(ids.len(), rows().count());
        for (letter, count) in [("D", 47), ("X", 9), ("R", 12), ("T", 43)] {
            for number in 1..=count {
                assert!(ids.contains(&*format!("{letter}{number}")), "{letter}{number}");
            }
        }
        assert_eq!(ids.len(), 47 + 9 + 12 + 43);
    }
}
