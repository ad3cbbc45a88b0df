//! A guest that reports its free memory, and the host that takes it back. Times are printed, and not asserted: they
//! depend on the host.

use std::time::{Duration, Instant};

use tidevm_machine::{BalloonConfig, BalloonStatus, Config, Size, VmHandle};
use tidevm_session::script::Script;
use tidevm_session::{Ended, StepRun};
use tidevm_tests::{EachStep, Test, machine, run_checked, start};

pub const TESTS: &[Test] = &[
    ("memory_that_a_guest_frees_leaves_the_host", memory_that_a_guest_frees_leaves_the_host),
    ("boot_memory_that_a_guest_frees_leaves_the_host", boot_memory_that_a_guest_frees_leaves_the_host),
    ("without_a_balloon_freed_memory_stays", without_a_balloon_freed_memory_stays),
    ("reports_go_on_beside_churn_and_resizes", reports_go_on_beside_churn_and_resizes),
    ("reports_and_statistics_survive_resets", reports_and_statistics_survive_resets),
    ("statistics_follow_the_guest", statistics_follow_the_guest),
];

const REGION: u64 = 256 << 20;

/// How long the host may take to have memory back. Generous, for slow hosts.
const LIMIT: Duration = Duration::from_secs(60);

fn with_balloon(reporting: bool, stats_interval: Option<Duration>) -> Config {
    Config { balloon: Some(BalloonConfig { reporting, stats_interval }), ..machine(REGION) }
}

/// Runs `script`, and calls `each` with the VM and the text of each step.
fn watch(config: Config, script: &str, mut each: impl FnMut(&VmHandle, &str)) {
    let script = Script::parse("test", script).unwrap_or_else(|errors| panic!("{errors}"));
    let vm = start(config);
    let handle = vm.handle();
    let mut observer = EachStep(|step: &StepRun| {
        assert!(step.is_done(), "{step:?}");
        each(&handle, &step.command.to_string());
    });
    let summary = tidevm_session::run(vm, &script, &mut observer).expect("an observer without an error");
    assert_eq!(summary.ended, Ended::Done);
}

/// Waits until `value` is at most `most`, and prints how long that took.
fn await_at_most(what: &str, most: Size, mut value: impl FnMut() -> Size) {
    let start = Instant::now();
    loop {
        let now = value();
        if now <= most {
            println!("{what}: at {now} after {} ms", start.elapsed().as_millis());
            return;
        }
        assert!(start.elapsed() < LIMIT, "{what}: still {now}, and not {most}, after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn balloon(vm: &VmHandle) -> BalloonStatus {
    vm.state().balloon.expect("there is a balloon")
}

/// Memory that is plugged and free is held by nobody, and each byte can be used again.
fn memory_that_a_guest_frees_leaves_the_host() {
    let session = run_checked(
        with_balloon(true, None),
        "resize 256M
         repeat 2 {
             hog 24M movable as a
             expect host.held >= 24M
             release a
             expect host.held <= 10M within 1m
         }
         hog 4M movable full as b
         verify b
         release b
         resize 0
         expect host.held == 0",
    );
    session.assert_done();
}

fn boot_memory_that_a_guest_frees_leaves_the_host() {
    let mut before = Size(0);
    let script = "expect plugged == 0\nhog 24M unmovable as a\nrelease a";
    watch(with_balloon(true, None), script, |vm, step| {
        let held = || vm.boot_memory_held().expect("the host tells");
        match step {
            "expect plugged == 0" => before = held(),
            "hog 24M unmovable as a" => assert!(held() >= Size(24 << 20)),
            "release a" => {
                // What the kernel itself has, and parts of pageblocks that it uses.
                await_at_most("boot memory", Size(22 << 20), held);
                let reports = vm.balloon_reports().expect("there is a balloon");
                assert!(reports.given_back >= Size(16 << 20), "{reports:?}");
                assert_eq!((reports.failed, reports.refused), (Size(0), 0));
            }
            other => panic!("no step `{other}`"),
        }
    });
    assert!(before > Size(0));
}

/// The test above is about the balloon, and not about something else that gives memory back.
fn without_a_balloon_freed_memory_stays() {
    let session = run_checked(
        machine(REGION),
        "resize 256M
         hog 24M movable as a
         release a
         sleep 2s
         expect host.held >= 24M",
    );
    session.assert_done();
}

fn reports_go_on_beside_churn_and_resizes() {
    let config = Config { cpus: 2, ..with_balloon(true, Some(Duration::from_millis(100))) };
    let mut reports = None;
    watch(
        config,
        "resize 256M
         hog 2M movable scattered full as data
         churn 2 threads for 3s as storm
         hog 16M movable as a
         release a
         resize 130M within 1m
         verify data
         check
         resize 256M within 1m
         hog 32M movable as b
         release b
         resize 192M within 1m
         check
         resize 256M within 1m
         wait storm
         verify data
         release data
         check
         resize 0 within 1m
         check",
        |vm, _| reports = vm.balloon_reports(),
    );
    let reports = reports.expect("there is a balloon");
    assert!(reports.given_back >= Size(16 << 20), "{reports:?}");
    assert_eq!((reports.failed, reports.refused), (Size(0), 0));
}

fn reports_and_statistics_survive_resets() {
    let config = Config { resets: true, ..with_balloon(true, Some(Duration::from_millis(200))) };
    let mut updates = Vec::new();
    watch(
        config,
        "resize 256M
         hog 24M movable as a
         release a
         reset
         expect plugged == 256M within 1m
         reset
         expect plugged == 256M within 1m
         hog 24M movable as a
         release a
         expect host.held <= 10M within 1m
         check",
        |vm, step| {
            if step == "reset" || step == "check" {
                let newer = updates.last().copied().unwrap_or(0);
                let more = |state: &tidevm_machine::State| {
                    state
                        .balloon
                        .filter(|balloon| balloon.updates > newer && balloon.reporting && balloon.statistics)
                };
                let status = vm.wait(LIMIT, "statistics of the new guest", more).expect("they come");
                updates.push(status.updates);
            }
        },
    );
    assert_eq!(updates.len(), 3, "{updates:?}");
}

fn statistics_follow_the_guest() {
    let mut free = Vec::new();
    watch(with_balloon(false, Some(LIMIT)), "resize 256M\nhog 24M movable as a\nrelease a", |vm, step| {
        let before = balloon(vm).updates;
        vm.ask_balloon_stats().expect("there are statistics");
        let newer = |state: &tidevm_machine::State| state.balloon.filter(|balloon| balloon.updates > before);
        let stats = vm.wait(LIMIT, "statistics", newer).expect("they come").stats.expect("some");
        let (now, age) = vm.balloon_stats().expect("some");
        assert!(now == stats && age < LIMIT);
        assert_eq!((stats.swap_in, stats.major_faults), (Some(0), None), "{stats:?}");
        let total = stats.total.expect("the total");
        // Boot memory of 128 MiB without the kernel, and 256 MiB without their memmap.
        assert!((300 << 20..384 << 20).contains(&total), "{step}: {stats:?}");
        assert!(stats.available <= stats.free && stats.free.is_some_and(|free| free <= total), "{stats:?}");
        free.push(stats.free.expect("free memory") >> 20);
    });
    assert!(free[0] >= free[1] + 20 && free[2] >= free[1] + 20, "{free:?} MiB");
}
