//! A set of device blocks as its runs.
//!
//! Takes the place of the bitmaps of Linux's `virtio_mem.c`. Differs on purpose: the cost follows the number of runs
//! and not the size of the region. The runs are two stacks with a gap between them, as text in an editor's gap buffer.
//! A change moves the gap to its place and then costs a few runs. The driver goes through the region in one direction, so
//! all changes of a pass together move each run once. A search is binary and moves nothing.
//!
//! Invariants: runs are not empty, do not overlap and do not touch; `below` ascends, `above` descends, and every run of
//! `below` lies below every run of `above`; `count` is the number of device blocks.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use crate::blocks::BlockRange;

/// A set of device blocks. A search that finds a run returns the part of it that was asked for.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// The runs below the gap. The last is the highest.
    below: Vec<BlockRange>,
    /// The runs above the gap. The last is the lowest.
    above: Vec<BlockRange>,
    count: u64,
    /// Number of runs that were looked at or moved.
    #[cfg(test)]
    pub(super) visited: core::cell::Cell<u64>,
}

impl Runs {
    /// Number of device blocks.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Number of runs.
    pub(super) const fn len(&self) -> usize {
        self.below.len() + self.above.len()
    }

    /// Number of runs for which there is memory, wherever the gap is.
    pub(super) fn room(&self) -> usize {
        self.below.capacity().min(self.above.capacity())
    }

    /// Reserves memory for `more` runs, so that changes which add no more of them cannot fail.
    pub(super) fn try_reserve(&mut self, more: usize) -> Result<(), TryReserveError> {
        // The gap may move to either end.
        let len = self.len() + more;
        for stack in [&mut self.below, &mut self.above] {
            if stack.capacity() < len {
                // Twice what is needed, so that most actions need no memory.
                stack.try_reserve(len + more - stack.len())?;
            }
        }
        Ok(())
    }

    /// The lowest run.
    pub(super) fn lowest(&self) -> Option<BlockRange> {
        self.below.first().or(self.above.last()).copied()
    }

    /// The highest run.
    pub(super) fn highest(&self) -> Option<BlockRange> {
        self.above.first().or(self.below.last()).copied()
    }

    /// The part at or above `from` of the lowest run that has one.
    pub(super) fn at_or_above(&self, from: u64) -> Option<BlockRange> {
        let run = self.get(self.ending_by(from))?;
        let first = run.first().max(from);
        Some(BlockRange::new(first, run.end() - first))
    }

    /// The part below `end` of the highest run that has one.
    pub(super) fn below(&self, end: u64) -> Option<BlockRange> {
        let above = self.search(&self.above, |run| run.first() >= end);
        let run = match self.above.get(above) {
            Some(run) => run,
            None => &self.below[self.search(&self.below, |run| run.first() < end).checked_sub(1)?],
        };
        Some(BlockRange::new(run.first(), run.end().min(end) - run.first()))
    }

    /// The first device block at or above `from`.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        self.at_or_above(from).map(BlockRange::first)
    }

    /// The runs, ascending.
    pub(super) fn all(&self) -> impl Iterator<Item = BlockRange> + '_ {
        (0..self.len()).map_while(|index| self.get(index))
    }

    /// The runs within `range`, ascending.
    pub(super) fn within(&self, range: BlockRange) -> impl Iterator<Item = BlockRange> + '_ {
        (self.ending_by(range.first())..).map_while(move |index| {
            self.visit(1);
            let part = self.get(index)?.overlap(range);
            (part.count() > 0).then_some(part)
        })
    }

    /// Number of device blocks of `range` in the set.
    pub(super) fn count_in(&self, range: BlockRange) -> u64 {
        if self.count == 0 {
            return 0;
        }
        self.within(range).map(BlockRange::count).sum()
    }

    /// Puts the device blocks of `range` into the set.
    pub(super) fn insert(&mut self, range: BlockRange) {
        if range.count() == 0 {
            return;
        }
        self.move_gap(range.first());
        let (mut first, mut end) = (range.first(), range.end());
        if let Some(run) = self.below.pop_if(|run| run.end() >= first) {
            self.count -= run.count();
            (first, end) = (run.first(), end.max(run.end()));
        }
        while let Some(run) = self.above.pop_if(|run| run.first() <= end) {
            self.visit(1);
            self.count -= run.count();
            end = end.max(run.end());
        }
        self.below.push(BlockRange::new(first, end - first));
        self.count += end - first;
    }

    /// Takes the device blocks of `range` out of the set.
    pub(super) fn remove(&mut self, range: BlockRange) {
        if range.count() == 0 {
            return;
        }
        self.move_gap(range.first());
        if let Some(run) = self.below.pop_if(|run| run.end() > range.first()) {
            self.below.push(BlockRange::new(run.first(), range.first() - run.first()));
            self.above.push(BlockRange::new(range.first(), run.end() - range.first()));
        }
        while let Some(run) = self.above.pop_if(|run| run.first() < range.end()) {
            self.visit(1);
            let rest = run.end().saturating_sub(range.end());
            self.count -= run.count() - rest;
            if rest > 0 {
                self.above.push(BlockRange::new(range.end(), rest));
            }
        }
    }

    /// Moves the gap so that the runs that begin below `to` lie below it.
    fn move_gap(&mut self, to: u64) {
        while let Some(run) = self.below.pop_if(|run| run.first() >= to) {
            self.visit(1);
            self.above.push(run);
        }
        while let Some(run) = self.above.pop_if(|run| run.first() < to) {
            self.visit(1);
            self.below.push(run);
        }
    }

    /// The run with `index` in ascending order.
    fn get(&self, index: usize) -> Option<BlockRange> {
        let of_above = || self.above.get((self.len() - 1).checked_sub(index)?);
        if index < self.len() { self.below.get(index).or_else(of_above).copied() } else { None }
    }

    /// Number of runs that end at or below `block`.
    fn ending_by(&self, block: u64) -> usize {
        let below = self.search(&self.below, |run| run.end() <= block);
        if below < self.below.len() {
            return below;
        }
        self.len() - self.search(&self.above, |run| run.end() > block)
    }

    /// The number of runs at the start of `runs` for which `is_before` holds.
    fn search(&self, runs: &[BlockRange], is_before: impl Fn(&BlockRange) -> bool) -> usize {
        runs.partition_point(|run| {
            self.visit(1);
            is_before(run)
        })
    }

    /// Counts runs that are looked at or moved, for tests.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "only tests count"))]
    fn visit(&self, _runs: u64) {
        #[cfg(test)]
        self.visited.set(self.visited.get() + _runs);
    }
}

#[cfg(test)]
mod tests;
