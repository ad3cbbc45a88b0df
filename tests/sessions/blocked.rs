//! Blocked shrinks: a shrink that cannot reach its target stops, says why, and loses nothing.

use tidevm_machine::Size;
use tidevm_tests::{Session, Test, account, machine, run_checked};

pub const TESTS: &[Test] = &[
    ("pinned_pages_stop_a_shrink", pinned_pages_stop_a_shrink),
    ("unmovable_pages_do_not_live_in_movable_memory", unmovable_pages_do_not_live_in_movable_memory),
    ("a_shrink_without_room_stops", a_shrink_without_room_stops),
    ("a_blocked_shrink_goes_on_when_pages_are_freed", a_blocked_shrink_goes_on_when_pages_are_freed),
];

#[track_caller]
fn only_failure(session: &Session) -> (String, String) {
    session.assert_alive();
    let failures = session.failures();
    assert_eq!(failures.len(), 1, "{failures:#?}");
    assert_eq!(session.summary.ended.status(), 1);
    failures.into_iter().next().expect("one failure")
}

fn pinned_pages_stop_a_shrink() {
    let session = run_checked(
        machine(512 << 20),
        "plug 256M
         hog 16K pinned scattered as pins
         hog 4M movable scattered as data
         resize 0
         verify pins
         verify data
         expect plugged > 0
         expect plugged < 256M
         release pins
         resize 0
         verify data
         release data",
    );
    let (command, reason) = only_failure(&session);
    assert_eq!(command, "resize 0");
    let plugged = session.after("resize 0").plugged[0];
    assert!(reason.contains(&format!("{} MiB above the target", plugged >> 20)), "{reason}");
    assert!(reason.contains("cannot move: pfn 0x") && reason.contains("(workload pins)"), "{reason}");
    assert_eq!(session.at_the_end().plugged, [0]);
    assert_eq!(session.at_the_end().held, account(&session.boot.sample).held);
}

fn unmovable_pages_do_not_live_in_movable_memory() {
    let session = run_checked(
        machine(512 << 20),
        "plug 128M
         hog 8M unmovable scattered as kernel
         resize 0
         verify kernel
         release kernel",
    );
    session.assert_done();
    assert_eq!(session.at_the_end().plugged, [0]);
}

/// The movable data is larger than boot memory.
fn a_shrink_without_room_stops() {
    let mut config = machine(512 << 20);
    config.memory = Size::mib(32);
    let session = run_checked(
        config,
        "plug 128M
         hog 48M movable as data
         resize 0 within 30s
         verify data
         release data
         resize 0",
    );
    let (command, reason) = only_failure(&session);
    assert_eq!(command, "resize 0 within 30s");
    assert!(reason.contains("no room to move the pages to"), "{reason}");
    assert_eq!(session.at_the_end().plugged, [0]);
}

fn a_blocked_shrink_goes_on_when_pages_are_freed() {
    let session = run_checked(
        machine(512 << 20),
        "plug 128M
         hog 4K pinned as pin
         resize 0
         release pin
         expect plugged == 0 within 20s",
    );
    assert_eq!(only_failure(&session).0, "resize 0");
    assert_eq!(session.at_the_end().held, [Some(0)]);
}
