//! Stock Linux reports its free memory and gives statistics. Times are printed: they depend on the host.

use std::time::{Duration, Instant};

use tidevm_machine::{BalloonConfig, Size};
use tidevm_tests::Test;

use crate::guest::{LIMIT, Linux, MIB};

pub const TESTS: &[Test] = &[("linux_gives_free_memory_back", linux_gives_free_memory_back)];

/// The size of the file that the guest makes and drops.
const DATA_MIB: u64 = 64;

/// The least part of it that has to leave the host: pages around the file keep some of its blocks.
const BACK: u64 = DATA_MIB * 3 / 4 * MIB;

/// Linux reports 2 s after a free. It is quiet if it has reported nothing for longer.
const QUIET: Duration = Duration::from_secs(5);

fn held(linux: &Linux) -> Size {
    let regions = linux.vm.held_by_each().expect("the host tells");
    regions.into_iter().chain([linux.vm.boot_memory_held().expect("the host tells")]).sum()
}

fn given_back(linux: &Linux) -> Size {
    linux.vm.balloon_reports().expect("there is a balloon").given_back
}

/// Waits until the guest has nothing more to report.
fn await_quiet(linux: &Linux) {
    let start = Instant::now();
    let (mut reported, mut since) = (given_back(linux), start);
    while since.elapsed() < QUIET {
        assert!(start.elapsed() < LIMIT, "Linux still reports memory; the console:\n{}", linux.text());
        std::thread::sleep(Duration::from_millis(100));
        if given_back(linux) != reported {
            (reported, since) = (given_back(linux), Instant::now());
        }
    }
}

fn linux_gives_free_memory_back() {
    let linux = Linux::boot(&format!("data={DATA_MIB} at=300:drop"), |config| {
        let stats_interval = Some(Duration::from_secs(1));
        config.balloon = Some(BalloonConfig { reporting: true, stats_interval });
    });
    linux.await_state("Linux's reports", |state| state.balloon.filter(|balloon| balloon.reporting));
    linux.resize(0, 256);
    linux.await_seen("the data", |seen| seen.data == "intact");
    await_quiet(&linux);
    let full = held(&linux);
    let free = linux.vm.balloon_stats().expect("statistics").0.free.expect("free memory");
    linux.resize(0, 384);
    linux.await_text("the guest has dropped its data");
    let start = Instant::now();
    while held(&linux).0 + BACK > full.0 {
        assert!(start.elapsed() < LIMIT, "{full} became {}; the console:\n{}", held(&linux), linux.text());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{full} held became {} within {} ms of the free", held(&linux), start.elapsed().as_millis());
    linux.await_state("statistics of the free memory", |state| {
        let now = state.balloon?.stats?.free?;
        (now >= free + BACK).then_some(())
    });
    let reports = linux.vm.balloon_reports().expect("there is a balloon");
    assert_eq!((reports.failed, reports.refused), (Size(0), 0));
    // Memory that was given back is plugged like any other.
    linux.resize(0, 0);
    assert_eq!(linux.vm.held(0).unwrap(), Size(0));
    linux.assert_content();
}
