//! Resets of the machine by the script: everything is given back, the guest starts anew, and its driver plugs again what
//! the device requests. All sessions run with system-call filters, so that these show that a reset needs no other call.

use tidevm_machine::{Config, HotplugConfig, Size};
use tidevm_tests::{Test, machine, run, run_checked};

pub const TESTS: &[Test] = &[
    ("a_reset_gives_everything_back_and_the_driver_plugs_again", everything_is_given_back_and_plugged_again),
    ("a_reset_in_the_middle_of_a_plug_under_churn_loses_nothing", in_the_middle_of_a_plug_under_churn),
    ("a_reset_takes_back_what_the_guest_could_not_give", a_reset_takes_back_what_the_guest_could_not_give),
    ("resets_of_the_script_need_no_reboot", resets_of_the_script_need_no_reboot),
];

const REGION: u64 = 512 << 20;

/// The guest after the reset has the memory that the guest before it had.
fn everything_is_given_back_and_plugged_again() {
    let session = run_checked(
        machine(REGION),
        "resize 256M
         hog 2M movable scattered full as data
         verify data
         reset
         expect resets == 1
         expect requested == 256M
         expect plugged == 256M within 1m
         resize 256M within 1m
         hog 2M movable scattered full as data
         resize 130M
         verify data
         release data
         reset within 1m
         expect plugged == 130M within 1m
         resize 256M
         resize 0",
    );
    session.assert_done();
    assert_eq!((session.summary.resets, session.summary.bad_records), (2, 0));
    let after_reset = session.steps.iter().find(|step| step.command.to_string() == "reset").expect("a reset");
    assert_eq!(after_reset.result, Ok(None));
    let sample = &after_reset.sample;
    assert_eq!(sample.devices[0].requested, Size(256 << 20));
    assert!(sample.guest.expect("counters").pages_migrated == 0, "the counters are those of the new guest");
    let before = session.after("resize 256M");
    let after = session.after("resize 256M within 1m");
    assert_eq!(
        (before.zones, before.memmap, before.blocks_online),
        (after.zones, after.memmap, after.blocks_online)
    );
    assert_eq!(session.at_the_end().held, vec![Some(0)]);
}

/// The first reset comes when the target was just set, and the second when the next guest was just up, so that both guests
/// are at work for the target. No later step and no end of the session waits for the churn.
fn in_the_middle_of_a_plug_under_churn() {
    let config = Config { cpus: 2, ..machine(REGION) };
    let session = run(
        config,
        "resize 128M
         churn 2 threads for 60s as storm
         resize 512M within 0s
         reset
         reset
         expect resets == 2
         expect plugged == 512M within 1m
         resize 512M within 1m
         check
         churn 2 threads for 1s as storm
         hog 4M movable scattered as data
         resize 128M within 1m
         wait storm
         verify data
         release data
         check
         resize 0 within 1m",
    );
    session.assert_alive();
    let failures = session.failures();
    assert!(matches!(&failures[..], [(step, _)] if step == "resize 512M within 0s"), "{failures:#?}");
    assert_eq!((session.summary.resets, session.steps.len(), session.summary.bad_records), (2, 17, 0));
    assert_eq!((session.at_the_end().plugged, session.at_the_end().held), (vec![0], vec![Some(0)]));
}

/// The target of before the reset is reached by it.
fn a_reset_takes_back_what_the_guest_could_not_give() {
    let session = run_checked(
        machine(REGION),
        "resize 256M
         hog 4M pinned as dma
         resize 0
         expect host.held > 4M
         reset
         expect plugged == 0
         expect host.held == 0
         plug 128M
         hog 4M pinned as dma
         verify dma",
    );
    session.assert_alive();
    let failures = session.failures();
    let [(step, why)] = &failures[..] else { panic!("{failures:#?}") };
    assert!(step == "resize 0" && why.contains("dma"), "{failures:#?}");
    assert_eq!(session.steps.len(), 10, "{:?}", session.summary.ended);
}

/// `--no-reboot` is about resets that the guest makes. Device memory is mapped by the guest, so the next guest maps it
/// again.
fn resets_of_the_script_need_no_reboot() {
    let hotplug = vec![HotplugConfig::new(Size(128 << 20)); 2];
    let config =
        Config { reboot: false, resets: true, hotplug, pmem: vec![Size(128 << 20)], ..machine(REGION) };
    let session = run_checked(
        config,
        "plug 64M device 1
         pmem map 0
         pmem hold 1M of 0 as cache
         repeat 2 { reset }
         expect plugged == 64M device 1 within 1m
         pmem map 0
         pmem hold 1M of 0 as cache
         verify cache
         release cache
         pmem unmap 0",
    );
    session.assert_done();
    assert_eq!(session.summary.resets, 2);
}
