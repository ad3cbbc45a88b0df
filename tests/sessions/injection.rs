//! Injected failures: each step of hotplug fails once, at its first, second or a later attempt. The guest is then as
//! it was before, and the next attempt succeeds. The guest's counter of faults that acted shows that the step failed: a
//! retry can hide it from all else.

use tidevm_abi::Size;
use tidevm_machine::{Config, HotplugConfig, InitPolicy};
use tidevm_tests::{Session, Test, account, machine, run_checked};

pub const TESTS: &[Test] = &[
    ("no_page_table_for_the_direct_map", || growing("map-direct", true, [2, 3])),
    ("no_page_table_for_the_memmap", || growing("map-memmap", true, [2, 3])),
    // A growth of this size needs one table.
    ("no_page_for_a_table", || growing("page-table", true, [1, 1])),
    ("no_page_for_a_later_table", no_page_for_a_later_table),
    ("no_memory_for_the_memmap", || growing("alloc-memmap", false, [3, 3])),
    ("onlining_fails", || growing("online", true, [2, 3])),
    ("isolation_fails", || shrinking("isolate")),
    ("migration_fails", || shrinking("migrate")),
];

/// A failed growth stops or is tried again. In both cases nothing of it is left after a shrink to 0. The growth is two
/// whole memory blocks, which join their zone as a range, and a part of a third one; eagerly it is three memory blocks.
/// In each of the `runs`, lazily and eagerly, one more attempt of `step` succeeds before the one that fails.
fn growing(step: &str, memmap_on_memory: bool, runs: [u32; 2]) {
    for (init, runs) in [InitPolicy::Lazy, InitPolicy::Eager].into_iter().zip(runs) {
        (0..runs).for_each(|after| growing_with(init, step, memmap_on_memory, after));
    }
}

fn growing_with(init: InitPolicy, step: &str, memmap_on_memory: bool, after: u32) {
    let config = Config { init, memmap_on_memory, ..machine(512 << 20) };
    let script = format!(
        "plug 258M
         resize 0
         stats
         inject {step} after {after}
         resize 258M
         resize 0
         expect faults.injected == 1
         sleep 0s
         resize 258M
         expect plugged == 258M
         resize 0"
    );
    let session = run_checked(config, &script);
    assert_only_injected(&session, "resize 258M");
    assert_eq!(session.after("sleep 0s"), session.after("stats"), "{init}: {step} after {after}");
    assert_eq!(session.at_the_end(), session.after("stats"), "{init}: {step} after {after}");
}

/// The region begins where neither the direct map nor the memmap has a table, and reaches into the next GiB. So the
/// growth takes a table for the first GiB, one for the memmaps, and one for the memory of the next GiB. Before
/// each failure other tables were made, and they are neither lost nor left mapped: the next attempt maps the same memory,
/// and the guest dies if it is mapped already.
fn no_page_for_a_later_table() {
    for (init, after) in
        [InitPolicy::Lazy, InitPolicy::Eager].into_iter().flat_map(|init| [(init, 0), (init, 1), (init, 2)])
    {
        let regions = [60 << 30, 2 << 30].map(|size| HotplugConfig::new(Size(size)));
        let config = Config { init, hotplug: regions.to_vec(), ..machine(1 << 30) };
        let script = format!(
            "stats
             inject page-table after {after}
             resize 1026M device 1
             expect faults.injected == 1
             resize 1026M device 1 within 1m
             expect plugged == 1026M device 1
             resize 0 device 1"
        );
        let session = run_checked(config, &script);
        assert_only_injected(&session, "resize 1026M device 1");
        assert_eq!(session.at_the_end(), session.after("stats"), "{init}: after {after}");
    }
}

/// A failed shrink leaves the data and the counters of the memory block as they were, and the next shrink works.
fn shrinking(step: &str) {
    for after in 0..3 {
        let script = format!(
            "plug 130M
             hog 4M movable scattered as data
             inject {step} after {after}
             resize 0
             verify data
             resize 0 within 30s
             expect faults.injected == 1
             verify data
             release data
             resize 130M
             expect plugged == 130M
             resize 0"
        );
        let session = run_checked(machine(512 << 20), &script);
        assert_only_injected(&session, "resize 0");
        assert_eq!(session.at_the_end().plugged, [0], "{step} after {after}");
        assert_eq!(session.at_the_end().held, account(&session.boot.sample).held, "{step} after {after}");
    }
}

/// The fault acted before the `expect` in the script, and no other acted later. At most the command that met it failed,
/// as a retry may succeed within the command.
#[track_caller]
fn assert_only_injected(session: &Session, command: &str) {
    session.assert_alive();
    let last = session.steps.last().and_then(|step| step.sample.guest).expect("a guest");
    assert_eq!(last.faults_injected, 1);
    let failures = session.failures();
    assert!(failures.len() <= 1, "{failures:#?}");
    assert!(failures.iter().all(|(failed, _)| failed == command), "{failures:#?}");
}
