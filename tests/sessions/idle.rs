//! An idle VM takes no CPU time.

use std::fs;
use std::io;

use tidevm_session::script::Script;
use tidevm_session::{Ended, StepRun};
use tidevm_tests::{EachStep, Test, machine, start};

pub const TESTS: &[Test] = &[("an_idle_machine_takes_no_cpu_time", an_idle_machine_takes_no_cpu_time)];

/// `utime` and `stime` of `/proc/self/stat`: the time of all threads, including the time of vCPUs in the guest.
fn cpu_ticks() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses is the only field with spaces. Field 3 follows it.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    Ok(fields.skip(14 - 3).take(2).filter_map(|field| field.parse::<u64>().ok()).sum())
}

/// The limit of a tenth of a CPU is far above the cost of the sampling around the step, and far below a loop that
/// does not sleep.
fn an_idle_machine_takes_no_cpu_time() {
    let mut config = machine(256 << 20);
    config.cpus = 2;
    let script =
        Script::parse("test", "plug 128M\nsleep 1s\nsleep 2s").unwrap_or_else(|errors| panic!("{errors}"));
    let vm = start(config);
    // The CPU time of this process after each step, in ticks of 10 ms.
    let mut ticks = Vec::new();
    let mut observer = EachStep(|_: &StepRun| ticks.push(cpu_ticks().expect("proc is mounted")));
    let summary = tidevm_session::run(vm, &script, &mut observer).expect("an observer without an error");
    assert_eq!(summary.ended, Ended::Done);
    assert!(ticks[0] > 0, "a boot takes CPU time: {ticks:?}");
    assert!(ticks[2] - ticks[1] <= 20, "{ticks:?}");
}
