//! What of a piece of memory is written.

use super::{PAGE, PIECE, pages_with_content};

#[test]
fn runs_of_pages_with_content_are_written_and_zero_pages_are_holes() {
    let mut content = vec![0; PIECE];
    assert_eq!(pages_with_content(&content).count(), 0);
    for at in [0, 3 * PAGE + 7, 5 * PAGE - 1, PIECE - 1] {
        content[at] = 1;
    }
    let runs: Vec<_> = pages_with_content(&content).map(|(at, run)| (at / PAGE, run.len() / PAGE)).collect();
    assert_eq!(runs, [(0, 1), (3, 2), (PIECE / PAGE - 1, 1)]);
}
