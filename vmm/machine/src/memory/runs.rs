//! A set of addresses as ascending, disjoint ranges that never touch: two that would are one.
//!
//! The VMM's view of plugged memory is made from these, one mapping a run; a bitmap would have to
//! be searched for them.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Start to end.
    runs: BTreeMap<u64, u64>,
}

impl Runs {
    /// Adds a range that may overlap what is there.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut merged = range;
        // Every run that overlaps or touches becomes part of the new one.
        while let Some((start, end)) = self.last_before(merged.end.saturating_add(1)) {
            if end < merged.start {
                break;
            }
            self.runs.remove(&start);
            merged = merged.start.min(start)..merged.end.max(end);
        }
        self.runs.insert(merged.start, merged.end);
    }

    /// Takes a range out, whatever of it is there.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((start, end)) = self.last_before(range.end) {
            if end <= range.start {
                break;
            }
            self.runs.remove(&start);
            if end > range.end {
                self.runs.insert(range.end, end);
            }
            if start < range.start {
                self.runs.insert(start, range.start);
            }
        }
    }

    /// Whether any address of `range` is in the set.
    #[must_use]
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        !range.is_empty() && self.last_before(range.end).is_some_and(|(_, end)| end > range.start)
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|(&start, &end)| start..end)
    }

    /// The last run that starts before `address`.
    fn last_before(&self, address: u64) -> Option<(u64, u64)> {
        self.runs.range(..address).next_back().map(|(&start, &end)| (start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::Runs;

    fn runs(ranges: &[(u64, u64)]) -> Runs {
        Runs { runs: ranges.iter().copied().collect() }
    }

    #[test]
    fn neighbours_become_one() {
        let mut set = Runs::default();
        set.insert(10..20);
        set.insert(30..40);
        assert_eq!(set, runs(&[(10, 20), (30, 40)]));
        set.insert(20..30);
        assert_eq!(set, runs(&[(10, 40)]));
        set.insert(5..50);
        assert_eq!(set, runs(&[(5, 50)]));
    }

    #[test]
    fn a_hole_makes_two() {
        let mut set = runs(&[(0, 100), (200, 300)]);
        set.remove(40..60);
        assert_eq!(set, runs(&[(0, 40), (60, 100), (200, 300)]));
        set.remove(80..250);
        assert_eq!(set, runs(&[(0, 40), (60, 80), (250, 300)]));
        assert!(set.overlaps(&(79..90)) && !set.overlaps(&(80..250)) && !set.overlaps(&(70..70)));
    }
}
