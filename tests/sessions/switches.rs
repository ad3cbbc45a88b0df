//! Switches: the same session on one and two CPUs, with each switch on and off. The result is the same, and the counters
//! show which mechanism was used.

use tidevm_abi::{ResizeState, ZoneName};
use tidevm_machine::{Config, Size};
use tidevm_session::StepFailure;
use tidevm_tests::{BOOT_BLOCKS, Session, Test, machine, run_checked};

pub const TESTS: &[Test] = &[
    ("one_cpu", || session(|_| ()).assert_done()),
    ("two_cpus", || session(|config| config.cpus = 2).assert_done()),
    ("memmap_on_memory_takes_nothing_from_boot_memory", memmap_on_memory_takes_nothing_from_boot_memory),
    ("without_memmap_on_memory_boot_memory_pays", without_memmap_on_memory_boot_memory_pays),
    ("without_pcp_disable_lists_are_drained_instead", without_pcp_disable_lists_are_drained_instead),
    ("a_guest_too_small_for_the_memmap_says_so", a_guest_too_small_for_the_memmap_says_so),
];

const SCRIPT: &str = "
    plug 258M
    hog 8M movable scattered as data
    churn 2 threads for 2s as storm
    resize 130M within 60s
    verify data
    resize 0 within 60s
    verify data
    wait storm
    release data
    stats";

fn session(change: impl FnOnce(&mut Config)) -> Session {
    let mut config = machine(512 << 20);
    change(&mut config);
    run_checked(config, SCRIPT)
}

fn memmap_on_memory_takes_nothing_from_boot_memory() {
    let session = session(|_| ());
    session.assert_done();
    let grown = session.after("plug 258M");
    assert_eq!((grown.memmap, grown.blocks_online), ((0, 3 * 512), BOOT_BLOCKS + 3));
    assert_eq!(grown.managed(ZoneName::Movable), 258 * 256 - 3 * 512);
}

fn without_memmap_on_memory_boot_memory_pays() {
    let session = session(|config| config.memmap_on_memory = false);
    session.assert_done();
    let grown = session.after("plug 258M");
    assert_eq!((grown.memmap, grown.blocks_online), ((3 * 512, 0), BOOT_BLOCKS + 3));
    assert_eq!(grown.managed(ZoneName::Movable), 258 * 256);
    assert_eq!(session.at_the_end().memmap, (0, 0));
}

fn without_pcp_disable_lists_are_drained_instead() {
    let drains = |session: &Session| {
        session.assert_done();
        let last = session.steps.last().expect("a step");
        last.sample.guest.expect("a guest").pcp_drains
    };
    let disabled = drains(&session(|config| config.cpus = 2));
    let drained = drains(&session(|config| {
        config.cpus = 2;
        config.pcp_disable = false;
    }));
    assert!(drained > disabled, "{drained} drains, and {disabled} with the lists out of play");
}

/// 64 MiB of boot memory cannot hold the memmap of 8 GiB, which is 128 MiB.
fn a_guest_too_small_for_the_memmap_says_so() {
    let mut config = machine(8 << 30);
    config.memory = Size::mib(64);
    config.memmap_on_memory = false;
    let session = run_checked(config, "plug 8G\nexpect plugged < 8G\nresize 0");
    let failures: Vec<_> = session.steps.iter().filter_map(|step| step.result.as_ref().err()).collect();
    let [StepFailure::Stopped(stopped)] = failures[..] else { panic!("{failures:?}") };
    assert_eq!(stopped.state, Some(ResizeState::NoMemory), "{stopped:?}");
    assert_eq!(session.at_the_end().memmap, (0, 0));
}
