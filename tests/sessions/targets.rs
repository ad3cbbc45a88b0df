//! Targets in quick succession: what the guest said of an earlier target is no answer to a later one of the same size.

use tidevm_abi::ZoneName;
use tidevm_tests::{Test, account, machine, run};

pub const TESTS: &[Test] = &[
    (
        "a_target_is_not_answered_by_an_earlier_one_of_its_size",
        a_target_is_not_answered_by_an_earlier_one_of_its_size,
    ),
    ("a_target_without_an_answer_is_told_as_such", a_target_without_an_answer_is_told_as_such),
];

/// Most sessions in which the guest is looked for at its work.
const SESSIONS: u32 = 8;
/// What the session says about a guest that has not answered.
const STILL_AT_IT: &str = "the guest is still at it, and has not said why";

/// The guest is at work for 0 when the target is 1 GiB again: a part of the memory has gone, and a part of it is there. A
/// guest that was quick enough to be through with all of it shows nothing, so another one is started.
fn a_target_is_not_answered_by_an_earlier_one_of_its_size() {
    // A step without any time fails: the guest has run no instruction since the target was set.
    const NO_TIME: &str = "resize 0 within 0s";
    let script = format!("plug 1G\n{NO_TIME}\nexpect plugged <= 1022M within 60s\nresize 1G\ncheck");
    let mut at_work = 0;
    for _ in 0..SESSIONS {
        let session = run(machine(1 << 30), &script);
        session.assert_alive();
        let failures = session.failures();
        let [(command, reason)] = &failures[..] else { panic!("{failures:#?}") };
        assert_eq!((command.as_str(), reason.ends_with(STILL_AT_IT)), (NO_TIME, true), "{reason}");
        let (first, again) = (session.after("plug 1G"), session.after("resize 1G"));
        assert_eq!(again.plugged, [1 << 30]);
        assert_eq!(again.present(ZoneName::Movable), first.present(ZoneName::Movable));
        assert_eq!(again.blocks_online, first.blocks_online);
        at_work += u32::from(account(&session.steps[2].sample).plugged != [0]);
        if at_work > 0 {
            return;
        }
    }
    panic!(
        "in each of {SESSIONS} sessions the guest had unplugged everything before the target was set again"
    );
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
