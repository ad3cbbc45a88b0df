//! Experiments that are quick enough for every run, and a short form of the race experiment.

use tidevm_abi::Answer;
use tidevm_lab::experiment::kvm_lab::KvmLab;
use tidevm_lab::experiment::{ALL, text};
use tidevm_machine::{Config, Confinement, HotplugConfig, Size};
use tidevm_tests::{Session, Test, machine, run, run_checked};

pub const TESTS: &[Test] = &[
    ("experiment_early_oom", || passes("early-oom")),
    ("experiment_auto", || passes("auto")),
    ("experiment_double_init", || passes("double-init")),
    ("experiment_offline_race", || passes("offline-race")),
    ("experiment_parallel_init", || passes("parallel-init")),
    ("experiment_same_granularity", || passes("same-granularity")),
    ("a_race_strands_pages_of_a_single_drain", a_race_strands_pages_of_a_single_drain),
    ("a_race_finds_disabled_lists_empty", || no_race("on")),
    ("a_race_finds_lists_drained_again", || no_race("off")),
    ("a_race_needs_cpus_and_memory", a_race_needs_cpus_and_memory),
];

/// S1.2, S3.1, S4.16, S5.1, S5.3: with the mechanism off the failure appears, with it on it does not.
fn passes(name: &str) {
    let experiment = ALL.iter().find(|experiment| experiment.name == name).expect("an experiment");
    let mut lab = KvmLab::new(std::io::sink(), Confinement::STRICT);
    let verdict = experiment.run(&mut lab).expect("the host can");
    assert!(verdict.passed(), "{}", text::text(&[verdict]));
}

/// Runs a race, such as `3 cycles held`. Returns the numbers of cycles, of failures and of stranded pages.
fn race(policy: &str, cycles: &str) -> (Session, (u32, u32, u64)) {
    let config = Config {
        cpus: 3,
        hotplug: vec![HotplugConfig::new(Size::mib(256))],
        cmdline: Some(format!("tidevm.pcp_disable={policy}")),
        ..machine(256 << 20)
    };
    let session = run(config, &format!("plug 256M\nrace {cycles}\ncheck\nresize 0\ncheck"));
    session.assert_alive();
    match session.steps[1].answer {
        Some(Answer::Raced { cycles, failures, stranded }) => (session, (cycles, failures, stranded)),
        other => panic!("{other:?}: {:?}", session.failures()),
    }
}

/// The negative control of S3.1: without it the next two tests would prove nothing. The guest brings the race about in
/// every cycle: the CPU that takes a pageblock is held after its drain until the others have freed their pages.
fn a_race_strands_pages_of_a_single_drain() {
    let (session, (cycles, failures, stranded)) = race("once", "3 cycles held");
    assert!((cycles, failures) == (3, 3) && stranded >= 3, "{failures} of {cycles}, {stranded} pages");
    // The guest goes on without damage.
    assert_eq!(session.failures().len(), 1, "{:?}", session.failures());
    let stats = session.steps[1].sample.guest.expect("a guest");
    assert_eq!(stats.pcp_stranded, stranded);
}

/// S3.1: under `policy` no page is stranded, when it is freed right after the drain and at other moments.
fn no_race(policy: &str) {
    for (cycles, count) in [("3 cycles held", 3), ("100 cycles", 100)] {
        let (session, raced) = race(policy, cycles);
        session.assert_done();
        assert_eq!(raced, (count, 0, 0), "{cycles}");
    }
}

fn a_race_needs_cpus_and_memory() {
    let alone = run_checked(machine(256 << 20), "plug 128M\nrace 1 cycle");
    let empty = run_checked(Config { cpus: 2, ..machine(256 << 20) }, "race 1 cycle");
    for session in [alone, empty] {
        let failures = session.failures();
        assert!(failures.len() == 1 && failures[0].1.contains("two CPUs and plugged memory"), "{failures:?}");
    }
}
