//! Targets in quick succession: what the guest said of an earlier target is no answer to a later one of the same size.

use std::time::Duration;

use tidevm_abi::{ResizeState, ZoneName};
use tidevm_machine::Size;
use tidevm_tests::{Test, machine, ready, run};

pub const TESTS: &[Test] = &[
    (
        "a_target_is_not_answered_by_an_earlier_one_of_its_size",
        a_target_is_not_answered_by_an_earlier_one_of_its_size,
    ),
    ("a_target_without_an_answer_is_told_as_such", a_target_without_an_answer_is_told_as_such),
    ("a_target_costs_few_exits", a_target_costs_few_exits),
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

/// An interrupt has its reason read and acknowledged. One tells of the target, one of the response. Of the configuration
/// three fields are read, between two reads of its generation: what is usable, plugged and requested. A field has two words,
/// of which the upper one is 0 in regions below 4 GiB. The guest notifies of its request and of its report. Other
/// interrupts may come, so the fewest exits of several targets count.
fn a_target_costs_few_exits() {
    for (region, words) in [(256 << 20, 1), (4 << 30, 2)] {
        costs_few_exits(region, 2 + 3 * words);
    }
}

/// `configuration` words are read for a target in a region of `region` bytes.
fn costs_few_exits(region: u64, configuration: u64) {
    const INTERRUPT: u64 = 2;
    const NOTIFICATIONS: u64 = 2;
    const LIMIT: Duration = Duration::from_secs(120);
    let vm = ready(machine(region));
    let mmio = || vm.exits().iter().map(|exits| exits.mmio).sum::<u64>();
    let of_target = |size: Size| {
        let before = mmio();
        vm.resize(0, size).expect("a size");
        let stopped = vm.wait(LIMIT, "the target", |state| state.mem[0].stopped(size));
        assert_eq!(stopped.unwrap_or_else(|error| panic!("{error}")), ResizeState::Reached);
        mmio() - before
    };
    let exits = [128, 256, 0, 128, 256, 0].map(|mib| of_target(Size::mib(mib)));
    let most = 2 * INTERRUPT + configuration + NOTIFICATIONS;
    assert!(exits.iter().min() <= Some(&most), "{region:#x}: {exits:?}, and at most {most}");
}
