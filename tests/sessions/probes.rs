//! Probes: the kernel waits for another CPU where it has to, on two CPUs.
//!
//! The guest holds the other CPU while the boot CPU does what has to wait for it. So a wait that is missing is seen
//! every time, and not when the host happens to run both at a bad moment.

use std::time::Duration;

use tidevm_abi::{Answer, Failure, MAX_RACE_CYCLES, Op, ProbedWait};
use tidevm_machine::{Config, Size};
use tidevm_tests::{Session, Test, machine, run_checked, start};

pub const TESTS: &[Test] = &[
    ("a_grace_period_waits_for_a_step", || probe("grace-period")),
    ("a_memmap_goes_after_all_tlbs_are_flushed", || probe("tlb-flush")),
    ("pages_are_copied_when_every_cpu_has_copied", || probe("page-copy")),
    ("a_release_is_answered_when_its_memory_is_free", || probe("release")),
    ("a_churn_is_answered_when_its_memory_is_free", || probe("churn")),
    ("a_driver_goes_on_when_another_cpu_frees_pages", a_driver_goes_on_when_another_cpu_frees_pages),
    ("one_probe_or_race_runs_at_a_time", one_probe_or_race_runs_at_a_time),
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
    let session = run_checked(two_cpus(), &script);
    let failures = session.failures();
    assert!(failures.len() == 1 && failures[0].0 == "resize 0", "{failures:#?}");
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

/// A script waits for the answer to each call, so the calls are made here. A probe or a race that is asked for while
/// another one is under way is refused; it would hold a CPU for which the other one waits.
fn one_probe_or_race_runs_at_a_time() {
    const LIMIT: Duration = Duration::from_secs(120);
    let vm = start(two_cpus());
    vm.wait(LIMIT, "the guest", |state| state.ready).expect("a guest");
    // A race needs pages of zone Movable.
    vm.resize(0, Size::mib(128)).expect("a target in the region");
    vm.wait(LIMIT, "128 MiB", |state| state.mem[0].answer(Size::mib(128))).expect("plugged memory");
    let call = |op| vm.call(op).expect("the guest reads calls");
    let answer = |id| vm.answer(id, LIMIT, "an answer").expect("an answer");
    let refused = Answer::Failed(Failure::ProbeUnderWay);
    let race = |cycles| Op::Race { cycles, held: true };
    let probes = [ProbedWait::Release, ProbedWait::Churn, ProbedWait::GracePeriod].map(Op::Probe);

    // The first may have ended when the guest reads the second.
    for (first, second) in probes.into_iter().flat_map(|first| probes.map(|second| (first, second))) {
        let [first_answer, second_answer] = [first, second].map(call).map(answer);
        assert_eq!(first_answer, Answer::Done, "{first:?}");
        assert!(
            [refused, Answer::Done].contains(&second_answer),
            "{second:?} beside {first:?}: {second_answer:?}"
        );
    }
    let raced = answer(call(race(1)));
    assert!(matches!(raced, Answer::Raced { cycles: 1, failures: 0, .. }), "{raced:?}");
    assert_eq!(answer(call(probes[0])), Answer::Done);

    // This race ends with the machine.
    call(race(MAX_RACE_CYCLES));
    for op in probes.into_iter().chain([race(1)]) {
        assert_eq!(answer(call(op)), refused, "{op:?} beside a race");
    }
}
