//! Workloads that do not fit: they fail and leave nothing behind, or hold what fits.

use tidevm_machine::{Config, Size};
use tidevm_tests::{Test, account, machine, run_checked};

pub const TESTS: &[Test] = &[
    ("a_hog_that_does_not_fit_gives_everything_back", a_hog_that_does_not_fit_gives_everything_back),
    ("a_use_of_device_memory_that_does_not_fit_gives_everything_back", in_device_memory),
];

/// Of 32 MiB, some are the kernel's own: 32 MiB do not fit although the guest has that many pages to begin with, and
/// 1 GiB is refused before a page is taken.
fn a_hog_that_does_not_fit_gives_everything_back() {
    let mut config = machine(128 << 20);
    config.memory = Size::mib(32);
    let session = run_checked(
        config,
        "fails hog 1G unmovable as a because \"does not fit\"
         fails hog 28M unmovable as a because \"`up to` holds what fits\"
         fails hog 28M movable scattered as a because \"does not fit\"
         fails hog 28M contiguous as a because \"no room\"
         stats
         hog up to 28M unmovable as a
         verify a
         fails hog 28M unmovable as b because \"does not fit\"
         verify a
         release a
         hog up to 28M contiguous as a
         verify a
         release a
         hog 1M movable as a
         verify a
         release a",
    );
    session.assert_done();
    let free = |account: tidevm_tests::Account| account.zones.iter().map(|zone| zone.4).sum::<u64>();
    let before = free(account(&session.boot.sample));
    // Page tables and stacks of the jobs may stay.
    for after in [free(session.after("stats")), free(session.at_the_end())] {
        assert!(before - after < 16, "{before} pages were free, and {after} are left");
    }
    let note = |index: usize| session.steps[index].result.clone().expect("done").unwrap_or_default();
    let fitted = note(5);
    assert!(fitted.ends_with(" of 7168 pages fitted"), "{fitted}");
    let held: u64 = fitted.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
    assert!((4096..7168).contains(&held), "{held} pages of 8192 are free for a hog");
    assert_eq!(note(6), format!("{held} pages intact"));
    assert_eq!(note(10), "0 of 7168 pages fitted", "a contiguous range is there or not");
}

fn in_device_memory() {
    let config = Config { hotplug: Vec::new(), pmem: vec![Size::mib(128)], ..machine(0) };
    let session = run_checked(
        config,
        "pmem map 0 altmap
         expect device.refs == 32256
         pmem hold 64K of 0 as other
         fails pmem hold 128M of 0 as cache because \"at most 32240 pages\"
         expect device.refs == 32272
         pmem hold up to 128M of 0 as cache
         verify cache
         verify other
         release other
         release cache
         pmem unmap 0",
    );
    session.assert_done();
    let note = session.steps[5].result.clone();
    assert_eq!(note, Ok(Some("32240 of 32768 pages fitted".to_owned())));
}
