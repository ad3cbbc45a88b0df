//! Contiguous allocations that move data out of their way, and the number of drains of per-CPU lists, in a booted
//! guest.

use tidevm_machine::{Config, InitPolicy};
use tidevm_tests::{Session, Test, machine, run, run_checked};

pub const TESTS: &[Test] = &[
    ("a_buffer_takes_the_place_of_data_that_moves", a_buffer_takes_the_place_of_data_that_moves),
    ("a_buffer_beside_churn_comes_or_does_not", a_buffer_beside_churn_comes_or_does_not),
    ("offlining_drains_once", offlining_drains_once),
];

/// Number of forced drains since boot, after the first step whose text is `command`.
#[track_caller]
fn drains(session: &Session, command: &str) -> u64 {
    let step = session.steps.iter().find(|step| step.command.to_string() == command);
    step.and_then(|step| step.sample.guest).expect("a guest to ask").pcp_drains
}

/// S3.12: the data is spread over all Movable memory, so no free range is large enough.
fn a_buffer_takes_the_place_of_data_that_moves() {
    let session = run_checked(
        machine(256 << 20),
        "plug 128M
         hog 2M movable scattered as data
         expect migrated == 0
         hog 16M contiguous as buffer
         expect migrated > 0
         verify data
         verify buffer
         release buffer
         hog 1000K contiguous full as small
         verify small
         release small
         release data
         resize 0",
    );
    session.assert_done();
    assert_eq!(session.at_the_end().plugged, [0]);
}

/// S3.12: whether the allocation succeeds is chance. In both cases no data is corrupted, and an allocated range has
/// the content that was written.
fn a_buffer_beside_churn_comes_or_does_not() {
    let mut script = String::from("plug 128M\nhog 2M movable scattered as data\n");
    script.push_str("churn 2 threads for 3s as storm\n");
    for round in 0..3 {
        script.push_str(&format!("hog up to 6M contiguous as buffer{round}\nverify buffer{round}\n"));
        script.push_str(&format!("release buffer{round}\ncheck\n"));
    }
    script.push_str("wait storm\nverify data\nrelease data\ncheck\nresize 0\ncheck");
    let session = run(Config { cpus: 2, ..machine(256 << 20) }, &script);
    session.assert_alive();
    let hogs = |(command, _): &(String, String)| !command.starts_with("hog ");
    let others: Vec<_> = session.failures().into_iter().filter(hogs).collect();
    assert!(others.is_empty(), "{others:#?}");
    assert_eq!(session.at_the_end().plugged, [0]);
}

/// S3.7, S3.8: taking a memory block offline needs one drain, not one per pageblock, with load on two CPUs.
fn offlining_drains_once() {
    // Eagerly, because deferred memory needs no drain.
    let session = run(
        Config { cpus: 2, init: InitPolicy::Eager, ..machine(512 << 20) },
        "plug 512M
         churn 2 threads for 3s as storm
         resize 384M within 60s
         resize 128M within 60s
         wait storm
         check",
    );
    session.assert_done();
    let after = |command| drains(&session, command);
    let [full, three, one] =
        ["churn 2 threads for 3s as storm", "resize 384M within 1m", "resize 128M within 1m"].map(after);
    assert_eq!((three - full, one - three), (1, 2));
}
