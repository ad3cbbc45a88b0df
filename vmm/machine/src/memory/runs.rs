//! A set of offsets into a mapping as runs: ascending ranges that neither overlap nor touch.
//!
//! The VMM's view of guest memory has one window per run. A change costs time in proportion to the runs that it
//! touches, not to all runs; a bitmap would be searched for the ends of a run.

use std::collections::BTreeMap;

use super::range::OffsetRange;

/// A set of offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// The runs by their first offset.
    runs: BTreeMap<u64, OffsetRange>,
}

impl Runs {
    /// Adds a range. Parts of it may be in the set already.
    pub fn insert(&mut self, range: OffsetRange) {
        let mut merged = range;
        // Every run that overlaps or touches the range becomes part of it.
        while let Some(run) = self.last_before(merged.end().saturating_add(1)) {
            if run.end() < merged.start() {
                break;
            }
            self.runs.remove(&run.start());
            merged = merged.hull(run);
        }
        self.runs.insert(merged.start(), merged);
    }

    /// Removes a range. Parts of it may not be in the set.
    pub fn remove(&mut self, range: OffsetRange) {
        while let Some(run) = self.last_before(range.end()) {
            if run.end() <= range.start() {
                break;
            }
            self.runs.remove(&run.start());
            let rest = [run.start()..range.start(), range.end()..run.end()];
            for rest in rest.into_iter().filter_map(OffsetRange::new) {
                self.runs.insert(rest.start(), rest);
            }
        }
    }

    /// Whether any offset of `range` is in the set.
    #[must_use]
    pub fn overlaps(&self, range: OffsetRange) -> bool {
        self.last_before(range.end()).is_some_and(|run| run.end() > range.start())
    }

    /// Whether all of `range` is in the set.
    #[must_use]
    pub fn contains(&self, range: OffsetRange) -> bool {
        self.last_before(range.end())
            .is_some_and(|run| run.start() <= range.start() && range.end() <= run.end())
    }

    /// The runs that overlap `range`, descending.
    pub fn overlapping(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> + '_ {
        let before_end = self.runs.range(..range.end()).rev().map(|(_, &run)| run);
        before_end.take_while(move |run| run.end() > range.start())
    }

    /// The runs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = OffsetRange> + '_ {
        self.runs.values().copied()
    }

    /// The last run that starts before `offset`.
    fn last_before(&self, offset: u64) -> Option<OffsetRange> {
        self.runs.range(..offset).next_back().map(|(_, &run)| run)
    }
}

#[cfg(test)]
mod tests {
    use super::Runs;
    use crate::memory::fake::offsets;

    fn runs(ranges: &[(u64, u64)]) -> Runs {
        Runs { runs: ranges.iter().map(|&(start, end)| (start, offsets(start..end))).collect() }
    }

    #[test]
    fn neighbours_become_one() {
        let mut set = Runs::default();
        set.insert(offsets(10..20));
        set.insert(offsets(30..40));
        assert_eq!(set, runs(&[(10, 20), (30, 40)]));
        set.insert(offsets(20..30));
        assert_eq!(set, runs(&[(10, 40)]));
        set.insert(offsets(5..50));
        assert_eq!(set, runs(&[(5, 50)]));
    }

    #[test]
    fn a_hole_makes_two() {
        let mut set = runs(&[(0, 100), (200, 300)]);
        set.remove(offsets(40..60));
        assert_eq!(set, runs(&[(0, 40), (60, 100), (200, 300)]));
        assert!(set.overlapping(offsets(39..201)).eq([offsets(200..300), offsets(60..100), offsets(0..40)]));
        assert!(set.overlapping(offsets(40..200)).eq([offsets(60..100)]));
        set.remove(offsets(80..250));
        assert_eq!(set, runs(&[(0, 40), (60, 80), (250, 300)]));
        assert!(set.overlaps(offsets(79..90)) && !set.overlaps(offsets(80..250)));
        assert!(set.contains(offsets(60..80)) && set.contains(offsets(299..300)));
        assert!(
            ![59..61, 79..81, 60..251, 80..250, 40..60].into_iter().any(|part| set.contains(offsets(part)))
        );
    }
}
