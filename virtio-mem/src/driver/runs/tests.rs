//! The runs against a plain implementation: a vector of bools, one device block at a time.

use super::*;

const LEN: u64 = 12;

impl Runs {
    /// Number of runs for which there is memory below and above the gap.
    pub(in crate::driver) fn capacities(&self) -> (usize, usize) {
        (self.below.capacity(), self.above.capacity())
    }
}

fn ranges() -> impl Iterator<Item = BlockRange> {
    (0..LEN).flat_map(|first| (first..=LEN).map(move |end| BlockRange::new(first, end - first)))
}

fn bools(runs: &Runs) -> Vec<bool> {
    let mut bools = alloc::vec![false; LEN as usize];
    for run in runs.within(BlockRange::new(0, LEN)) {
        assert!(run.count() > 0 && (run.first() == 0 || !bools[run.first() as usize - 1]), "{runs:?}");
        bools[run.first() as usize..run.end() as usize].fill(true);
    }
    bools
}

/// All searches, from all places.
fn check(runs: &Runs, plain: &[bool]) {
    assert_eq!(bools(runs), plain);
    assert_eq!(runs.count(), plain.iter().filter(|bit| **bit).count() as u64);
    let is_start = |&at: &usize| plain[at] && (at == 0 || !plain[at - 1]);
    assert_eq!(runs.len(), (0..plain.len()).filter(is_start).count());
    let run_from = |first: usize| {
        let count = plain[first..].iter().take_while(|bit| **bit).count();
        BlockRange::new(first as u64, count as u64)
    };
    let run_to = |end: usize| {
        let count = plain[..end].iter().rev().take_while(|bit| **bit).count();
        BlockRange::new((end - count) as u64, count as u64)
    };
    assert_eq!(runs.lowest(), plain.iter().position(|bit| *bit).map(run_from));
    assert_eq!(runs.highest(), plain.iter().rposition(|bit| *bit).map(|last| run_to(last + 1)));
    for at in 0..=plain.len() {
        let above = plain[at..].iter().position(|bit| *bit).map(|offset| run_from(at + offset));
        let below = plain[..at].iter().rposition(|bit| *bit).map(|last| run_to(last + 1));
        assert_eq!((runs.at_or_above(at as u64), runs.below(at as u64)), (above, below), "{runs:?} at {at}");
        assert_eq!(runs.next(at as u64), above.map(BlockRange::first));
    }
}

#[test]
fn changes_and_searches_agree_with_bools() {
    // The order of the changes moves the gap up and down.
    let sets: [&[(u64, u64)]; 4] = [&[], &[(2, 3), (7, 2)], &[(9, 2), (0, 1), (4, 2)], &[(0, 12)]];
    for set in sets {
        for range in ranges() {
            for inserts in [false, true] {
                let (mut runs, mut plain) = (Runs::default(), alloc::vec![false; LEN as usize]);
                for &(first, count) in set {
                    runs.insert(BlockRange::new(first, count));
                    plain[first as usize..(first + count) as usize].fill(true);
                }
                check(&runs, &plain);
                if inserts {
                    runs.insert(range)
                } else {
                    runs.remove(range)
                }
                plain[range.first() as usize..range.end() as usize].fill(inserts);
                check(&runs, &plain);
                for within in ranges() {
                    let of_range = &plain[within.first() as usize..within.end() as usize];
                    let count = of_range.iter().filter(|bit| **bit).count() as u64;
                    assert_eq!(runs.count_in(within), count, "{runs:?} in {within:?}");
                }
            }
        }
    }
}

#[test]
fn room_for_more_runs_is_there_wherever_the_gap_is() {
    let mut runs = Runs::default();
    (0..100).for_each(|nr| runs.insert(BlockRange::new(2 * nr, 1)));
    for gap in [0, 100, 300] {
        runs.move_gap(gap);
        runs.try_reserve(20).unwrap();
        let (below, above) = runs.capacities();
        assert!(below.min(above) >= runs.len() + 20);
    }
    runs.try_reserve(usize::MAX / 64).unwrap_err();
    assert_eq!(runs.count(), 100);
}
