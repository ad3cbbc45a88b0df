//! Workloads that do not fit: they fail and leave nothing behind, or hold what fits. And calls that do not go together.

use std::time::Duration;

use tidevm_abi::{Answer, Failure, HogKind, Op};
use tidevm_machine::{Config, Size};
use tidevm_tests::{Account, Test, machine, ready, run};

pub const TESTS: &[Test] = &[
    ("a_hog_that_does_not_fit_gives_everything_back", a_hog_that_does_not_fit_gives_everything_back),
    ("a_use_of_device_memory_that_does_not_fit_gives_everything_back", in_device_memory),
    ("a_release_beside_another_call_is_refused", a_release_beside_another_call_is_refused),
];

/// Of 32 MiB, at least 4 MiB are the kernel's own. 1 GiB is refused before a page is taken.
fn a_hog_that_does_not_fit_gives_everything_back() {
    let mut config = machine(128 << 20);
    config.memory = Size::mib(32);
    let session = run(
        config,
        "hog 8M unmovable as base
         fails hog 1G unmovable as a because \"does not fit\"
         fails hog 20M unmovable as a because \"`up to` holds what fits\"
         fails hog 20M movable scattered as a because \"does not fit\"
         fails hog 20M contiguous as a because \"there is no room for it\"
         check
         hog up to 20M unmovable as a
         verify a
         fails hog 20M unmovable as b because \"no memory for it\"
         verify a
         release a
         hog up to 20M contiguous as a
         verify a
         release a
         hog 1M movable as a
         verify a
         release a
         verify base
         check",
    );
    session.assert_done();
    let free = |account: Account| account.zones.iter().map(|zone| zone.4).sum::<u64>();
    let before = free(session.after("hog 8M unmovable as base"));
    // Page tables may stay.
    for after in [free(session.after("check")), free(session.at_the_end())] {
        assert!(before - after < 16, "{before} pages were free, and {after} are left");
    }
    let note = |index: usize| session.steps[index].result.clone().expect("done").unwrap_or_default();
    let fitted = note(6);
    assert!(fitted.ends_with(" of 5120 pages fitted"), "{fitted}");
    let held: u64 = fitted.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
    assert!((2048..5120).contains(&held), "{held} pages");
    assert_eq!((note(7), note(9)), (format!("{held} pages intact"), format!("{held} pages intact")));
    assert_eq!(note(11), "0 of 5120 pages fitted", "a contiguous range is there or not");
}

fn in_device_memory() {
    let config = Config { hotplug: Vec::new(), pmem: vec![Size::mib(128)], ..machine(0) };
    let session = run(
        config,
        "pmem map 0 altmap reserve 124M
         expect device.refs == 512
         pmem hold 64K of 0 as other
         fails pmem hold 2M of 0 as cache because \"at most 496 pages\"
         expect device.refs == 528
         pmem hold up to 2M of 0 as cache
         verify cache
         verify other
         release other
         release cache
         pmem unmap 0
         check",
    );
    session.assert_done();
    let note = session.steps[5].result.clone();
    assert_eq!(note, Ok(Some("496 of 512 pages fitted".to_owned())));
}

/// The guest stands still while three calls are made, so it reads all of them before the first one ends: a hog, and two
/// releases of it. If it carried out a release, the hog would go on without a handle.
fn a_release_beside_another_call_is_refused() {
    const LIMIT: Duration = Duration::from_secs(120);
    const HANDLE: u32 = 1;
    const PAGES: u64 = 1 << 8;
    let vm = ready(Config { hotplug: Vec::new(), ..machine(0) });
    let answer = |id| vm.answer(id, LIMIT, "an answer").expect("an answer");
    let together = |ops: &[Op]| -> Vec<Answer> {
        vm.pause().expect("a guest that runs");
        let ids: Vec<u32> = ops.iter().map(|op| vm.call(*op).expect("room for calls")).collect();
        vm.resume();
        ids.into_iter().map(answer).collect()
    };
    let (kind, handle) = (HogKind::Movable, HANDLE);
    let hog = Op::Hog { handle, pages: PAGES, partial: false, kind, scattered: false, full: false };
    let release = Op::Release { handle };
    let busy = Answer::Failed(Failure::WorkloadBusy);
    assert_eq!(together(&[hog, release, release]), [Answer::Hogged { pages: PAGES }, busy, busy]);
    assert_eq!(together(&[release, release]), [Answer::Released { pages: PAGES }, busy]);
    assert_eq!(together(&[release]), [Answer::Failed(Failure::UnknownHandle)]);
    // The handle is free again, and a workload that was taken is released as a whole.
    assert_eq!(together(&[hog]), [Answer::Hogged { pages: PAGES }]);
    assert_eq!(together(&[release]), [Answer::Released { pages: PAGES }]);
}
