//! A churn: threads that take pages and give them back, all the time.
//!
//! Invariant: a thread holds at most [`SLOTS`] mappings of at most [`MOST`] pages.

use std::thread;
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Handle, PagePattern};

use crate::pages::Pages;

/// Mappings of a thread.
const SLOTS: usize = 32;
/// Most pages of a mapping.
const MOST: u64 = 16;

/// What a thread has done.
#[derive(Clone, Copy, Default)]
struct Counts {
    allocations: u64,
    failures: u64,
}

/// Runs `threads` threads for `time`.
pub fn run(handle: Handle, threads: u32, time: Duration) -> Answer {
    let until = Instant::now() + time;
    let counts = thread::scope(|scope| {
        let spawned: Vec<_> = (0..threads)
            .map(|seed| thread::Builder::new().spawn_scoped(scope, move || one(handle, seed, until)))
            .collect();
        let ended = spawned.into_iter().map(|thread| match thread {
            Ok(thread) => thread.join().expect("a thread of a churn does not panic"),
            // No memory for a thread.
            Err(_) => Counts { allocations: 0, failures: 1 },
        });
        ended.fold(Counts::default(), |sum, one| Counts {
            allocations: sum.allocations + one.allocations,
            failures: sum.failures + one.failures,
        })
    });
    Answer::Churned { allocations: counts.allocations, failures: counts.failures }
}

fn one(handle: Handle, seed: u32, until: Instant) -> Counts {
    let mut counts = Counts::default();
    let mut slots: [Option<Pages>; SLOTS] = [const { None }; SLOTS];
    let mut random = u64::from(seed) + 1;
    while Instant::now() < until {
        // Xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let slot = &mut slots[(random % SLOTS as u64) as usize];
        if slot.take().is_some() {
            continue;
        }
        match Pages::map((random >> 32) % MOST + 1) {
            Ok(mut pages) => {
                (0..pages.count()).for_each(|page| pages.write(page, PagePattern::new(handle, page, false)));
                *slot = Some(pages);
                counts.allocations += 1;
            }
            Err(_) => counts.failures += 1,
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidevm_abi::Answer;

    use super::run;

    #[test]
    fn all_threads_allocate() {
        let Answer::Churned { allocations, failures } = run(1, 2, Duration::from_millis(20)) else {
            panic!("no counts")
        };
        assert!(allocations > 0 && failures == 0, "{allocations} {failures}");
    }
}
