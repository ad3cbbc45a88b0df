//! The bitmap against a plain implementation: a vector of bools, one device block at a time.

use super::*;

/// The ranges of a bitmap of `len` device blocks that begin and end at or beside a word boundary.
fn ranges(len: u64) -> impl Iterator<Item = BlockRange> {
    let edges =
        move || [0, 1, 62, 63, 64, 65, 126, 127, 128, 129, len].into_iter().filter(move |&e| e <= len);
    edges().flat_map(move |first| {
        edges().filter(move |&end| end >= first).map(move |end| BlockRange::new(first, end - first))
    })
}

fn plain(len: u64, range: BlockRange) -> Vec<bool> {
    (0..len).map(|block| (range.first()..range.end()).contains(&block)).collect()
}

fn bits(bitmap: &BlockBitmap) -> Vec<bool> {
    (0..bitmap.len).map(|first| bitmap.count_in(BlockRange::new(first, 1)) == 1).collect()
}

#[test]
fn set_clear_and_count_agree_with_bools() {
    for len in [1, 63, 64, 65, 130, 192] {
        for a in ranges(len) {
            for b in ranges(len) {
                let mut bitmap = BlockBitmap::new(len);
                bitmap.set(a);
                bitmap.set(b);
                let both: Vec<_> = plain(len, a).iter().zip(plain(len, b)).map(|(x, y)| x | y).collect();
                assert_eq!(bits(&bitmap), both, "{a:?} and {b:?} of {len}");
                assert_eq!(bitmap.count(), both.iter().filter(|bit| **bit).count() as u64);
                assert_eq!(bitmap.count_in(b), b.count);

                bitmap.clear(a);
                bitmap.clear(a);
                let rest: Vec<_> = plain(len, b).iter().zip(plain(len, a)).map(|(x, y)| x & !y).collect();
                assert_eq!(bits(&bitmap), rest, "{b:?} without {a:?} of {len}");
                assert_eq!(bitmap.count(), rest.iter().filter(|bit| **bit).count() as u64);
                assert_eq!(bitmap.count(), rest.iter().filter(|bit| **bit).count() as u64);
                assert_eq!(bitmap.is_empty(), bitmap.count() == 0);
            }
        }
    }
}

#[test]
fn runs_are_maximal_and_ascending() {
    let mut bitmap = BlockBitmap::new(200);
    assert_eq!(bitmap.runs().next(), None);
    let runs = [(0, 1), (2, 62), (65, 63), (129, 1), (190, 10)];
    for (first, count) in runs {
        bitmap.set(BlockRange::new(first, count));
    }
    assert_eq!(bitmap.next_run(60), Some(BlockRange::new(60, 4)));
    assert_eq!(bitmap.next_run(200), None);
    let found: Vec<_> = bitmap.runs().map(|run| (run.first(), run.count())).collect();
    assert_eq!(found, runs);
}

#[test]
#[should_panic(expected = "blocks 60..65 of a region of 64 blocks")]
fn a_range_beyond_the_region_is_a_bug_of_the_caller() {
    BlockBitmap::new(64).set(BlockRange::new(60, 5));
}
