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

/// What the session says about a guest that has not answered.
const STILL_AT_IT: &str = "the guest is still at it, and has not said why";

/// Wherever the guest is on its way to 0 when the target is 1 GiB again, the step is done when all memory is back. Hosted
/// tests hold the guest at each point of its way.
fn a_target_is_not_answered_by_an_earlier_one_of_its_size() {
    // A step without any time fails: the guest has run no instruction since the target was set.
    const NO_TIME: &str = "resize 0 within 0s";
    for pause in ["", "sleep 1ms\n", "sleep 3ms\n", "sleep 10ms\n", "sleep 30ms\n"] {
        let session = run(machine(1 << 30), &format!("plug 1G\n{NO_TIME}\n{pause}resize 1G\ncheck"));
        session.assert_alive();
        let failures = session.failures();
        let [(command, reason)] = &failures[..] else { panic!("{failures:#?}") };
        assert_eq!((command.as_str(), reason.ends_with(STILL_AT_IT)), (NO_TIME, true), "{reason}");
        let (first, again) = (session.after("plug 1G"), session.after("resize 1G"));
        assert_eq!(again.plugged, [1 << 30]);
        assert_eq!(again.present(ZoneName::Movable), first.present(ZoneName::Movable));
        assert_eq!(again.blocks_online, first.blocks_online);
    }
}

/// The guest said at boot that it is at 0. That is no answer to the target 0 of later.
fn a_target_without_an_answer_is_told_as_such() {
    let script = "resize 1G within 0s\nresize 0 within 0s\nresize 0\ncheck";
    let session = run(machine(1 << 30), script);
    session.assert_alive();
    let failures = session.failures();
    let commands: Vec<_> = failures.iter().map(|(command, _)| command.as_str()).collect();
    assert_eq!(commands, ["resize 1G within 0s", "resize 0 within 0s"], "{failures:#?}");
    assert!(failures.iter().all(|(_, reason)| reason.ends_with(STILL_AT_IT)), "{failures:#?}");
    let (first, last) = (&session.boot.sample, session.at_the_end());
    assert_eq!((last.plugged.as_slice(), last.blocks_online), (&[0][..], first.guest.unwrap().blocks_online));
}
