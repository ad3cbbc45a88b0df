//! Probes: the kernel waits for another CPU where it has to, on two CPUs.
//!
//! The guest holds the other CPU while the boot CPU does what has to wait for it. So a wait that is missing is seen
//! every time, and not when the host happens to run both at a bad moment.

use tidevm_machine::Config;
use tidevm_tests::{Session, Test, machine, run, run_checked};

pub const TESTS: &[Test] = &[
    ("a_grace_period_waits_for_a_step", || probe("grace-period")),
    ("a_memmap_goes_after_all_tlbs_are_flushed", || probe("tlb-flush")),
    ("pages_are_copied_when_every_cpu_has_copied", || probe("page-copy")),
    ("a_release_is_answered_when_its_memory_is_free", || probe("release")),
    ("a_churn_is_answered_when_its_memory_is_free", || probe("churn")),
    ("a_driver_goes_on_when_another_cpu_frees_pages", a_driver_goes_on_when_another_cpu_frees_pages),
];

fn two_cpus() -> Config {
    Config { cpus: 2, ..machine(256 << 20) }
}

/// Twice, because a probe must leave nothing behind. No page is lost.
fn probe(wait: &str) {
    let session = run_checked(two_cpus(), &format!("probe {wait}\nstats\nprobe {wait}\nplug 128M\nresize 0"));
    session.assert_done();
    let [first, second] = [1, 2].map(|step| free(&session, step));
    assert_eq!(first, second);
}

/// Free pages of all zones after step `step`.
fn free(session: &Session, step: usize) -> u64 {
    let guest = session.steps[step].sample.guest.expect("a guest");
    guest.zones.iter().map(|zone| zone.free + zone.pcp).sum()
}

/// Drains of per-CPU lists of a driver that has tried to unplug 128 MiB with one page in the way, as often as it does.
const DRAINS: u64 = 78;

/// The driver tries again at growing intervals, and at last only when pages are freed. Then the page is released, on
/// the other CPU.
fn a_driver_goes_on_when_another_cpu_frees_pages() {
    let script = format!(
        "plug 128M
         hog 4K pinned as pin
         resize 0
         expect pcp.drains >= {DRAINS} within 60s
         release pin
         expect plugged == 0 within 60s"
    );
    let session = run(two_cpus(), &script);
    let failures = session.failures();
    assert!(failures.len() == 1 && failures[0].0 == "resize 0", "{failures:#?}");
    assert_eq!(session.at_the_end().held, [Some(0)]);
}
