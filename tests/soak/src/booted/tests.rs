//! The scripts of the booted soak: where a life of a guest is compared, and where it is not.

use super::{Random, script};

/// Most lives are compared at their ends: everything is given back before, and the `stats` follow. Some are ended in the
/// middle, with data in use.
#[test]
fn most_resets_come_after_a_comparison() {
    let mut random = Random::new(1);
    let (mut compared, mut in_use) = (0, 0);
    for _ in 0..40 {
        let text = script(25, &mut random);
        assert!(text.ends_with("release data\nresize 0 within 5m\ncheck\nstats\n"), "{text}");
        let lines: Vec<_> = text.lines().collect();
        let lives = lines.split(|line| line.starts_with("reset "));
        // The last life is no reset's, and one between two resets has no line.
        for life in lives.rev().skip(1).filter(|life| !life.is_empty()) {
            match life {
                [.., "verify data", "release data", "resize 0 within 5m", "check", "stats"] => compared += 1,
                [.., "verify data"] | [.., "verify data", "churn 1 thread for 60s as storm"] => in_use += 1,
                _ => panic!("a life ends with {:?}", life.last()),
            }
        }
    }
    // Three of four, of about 120.
    assert!(in_use >= 10 && (2 * in_use..5 * in_use).contains(&compared), "{compared} and {in_use}");
}
