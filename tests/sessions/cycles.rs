//! Cycles: memory that is plugged and unplugged many times under load loses no page, in the guest or on the host.

use tidevm_machine::Config;
use tidevm_tests::{Test, machine, run_checked};

pub const TESTS: &[Test] = &[
    ("a_hundred_cycles_under_churn_lose_nothing", a_hundred_cycles_under_churn_lose_nothing),
    ("data_moves_as_often_as_it_has_to", data_moves_as_often_as_it_has_to),
];

/// The later cycles are compared with the first one, in which the guest makes page tables that it keeps. A `check`
/// takes time per free buddy block, and scattered data leaves many: a few thousand with 2 MiB of data.
fn a_hundred_cycles_under_churn_lose_nothing() {
    let config = Config { cpus: 2, ..machine(512 << 20) };
    let session = run_checked(
        config,
        "plug 128M
         hog 2M movable scattered as data
         plug 130M
         unplug 130M
         stats
         repeat 10 {
             churn 2 threads for 12s as storm
             repeat 10 {
                 plug 130M within 60s
                 unplug 130M within 60s
             }
             wait storm
             verify data
         }
         verify data
         expect plugged == 128M",
    );
    session.assert_done();
    assert_eq!(session.at_the_end(), session.after("stats"));
}

fn data_moves_as_often_as_it_has_to() {
    let session = run_checked(
        machine(512 << 20),
        "plug 256M
         hog 16M movable scattered full as data
         stats
         repeat 3 {
             resize 128M
             verify data
             resize 0
             verify data
             resize 256M
         }
         expect migrated > 0
         release data
         resize 0",
    );
    session.assert_done();
    assert_eq!(session.at_the_end().held, vec![Some(0)]);
}
