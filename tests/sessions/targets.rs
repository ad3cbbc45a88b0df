//! Targets in quick succession: what the guest said of an earlier target is no answer to a later one of the same size.

use tidevm_abi::ZoneName;
use tidevm_tests::{Test, machine, run};

pub const TESTS: &[Test] = &[
    (
        "a_target_is_not_answered_by_an_earlier_one_of_its_size",
        a_target_is_not_answered_by_an_earlier_one_of_its_size,
    ),
    ("a_target_without_an_answer_is_told_as_such", a_target_without_an_answer_is_told_as_such),
];

/// The guest is at work for 0 when the target is 1 GiB again. All of the memory is plugged then, and a part of it is
/// offline.
fn a_target_is_not_answered_by_an_earlier_one_of_its_size() {
    let script = "plug 1G\nresize 0 within 5ms\nresize 1G\ncheck";
    let session = run(machine(1 << 30), script);
    session.assert_alive();
    let failures = session.failures();
    assert!(failures.iter().all(|(command, _)| command == "resize 0 within 5ms"), "{failures:#?}");
    let (first, again) = (session.after("plug 1G"), session.after("resize 1G"));
    assert_eq!(again.plugged, [1 << 30]);
    assert_eq!(again.present(ZoneName::Movable), first.present(ZoneName::Movable));
    assert_eq!(again.blocks_online, first.blocks_online);
}

/// The guest said at boot that it is at 0. That is no answer to the target 0 of later.
fn a_target_without_an_answer_is_told_as_such() {
    let script = "resize 1G within 8ms\nresize 0 within 0s\nresize 0\ncheck";
    let session = run(machine(1 << 30), script);
    session.assert_alive();
    let failures = session.failures();
    for (command, reason) in &failures {
        assert!(command.contains("within"), "{failures:#?}");
        assert!(reason.ends_with("the guest is still at it, and has not said why"), "{failures:#?}");
    }
    let (first, last) = (&session.boot.sample, session.at_the_end());
    assert_eq!((last.plugged.as_slice(), last.blocks_online), (&[0][..], first.guest.unwrap().blocks_online));
}
