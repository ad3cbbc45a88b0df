//! Cycles in booted guests: sessions of some cycles each, with random targets, workloads, failures of the host and of the
//! guest, and resets.
//!
//! Each session has a machine with policies of its own. A life of a guest begins with the boot or with a reset, which may
//! come under churn, and while an earlier guest plugs. In a first cycle the guest makes page tables that it keeps; then
//! its counters of zones are recorded. At the end of a session, and before most resets, everything is given back. The
//! counters of all lives of a session are compared: a guest after a reset has the memory of the one before. A life that
//! a reset ends with memory in use is compared at its beginning only.
//!
//! Invariant: a step that fails, a guest that dies, data that is wrong, and counters that differ end up in the figures,
//! never in a session that counts as good.

use std::fmt::Write;
use std::io;
use std::time::Duration;

use tidevm_abi::command::Command;
use tidevm_abi::{Answer, FaultStep, MEMORY_BLOCK_SIZE, Size};
use tidevm_machine::hosted::{HostCall, fail};
use tidevm_machine::{Config, Confinement, ConsoleMode, HotplugConfig, InitPolicy, Vm};
use tidevm_session::script::Script;
use tidevm_session::{Booted, Ended, Observer, Sample, StepRun, Summary, run as run_session};

use crate::{Random, Tally};

const REGION: u64 = 512 << 20;
const BLOCK: u64 = 2 << 20;
/// Cycles of one session.
const CYCLES: u64 = 25;
/// Percentage of the cycles that begin with a reset.
const RESETS: u64 = 12;
/// Percentage of the resets before which everything is given back and compared. The others come with memory in use, so
/// the pages of the life that they end are not counted.
const COMPARED_RESETS: u64 = 75;

/// Runs sessions until `cycles` cycles are done. `tell` is told of each session, and of each thing that was wrong.
///
/// # Errors
/// A VM does not start, or a session breaks off before its first cycle.
pub fn run(cycles: u64, seed: u64, mut tell: impl FnMut(&str, &Tally)) -> io::Result<Tally> {
    let mut random = Random::new(seed);
    let mut tally = Tally::new();
    while tally.cycles < cycles {
        let count = CYCLES.min(cycles - tally.cycles);
        let config = config(&mut random);
        let what = format!(
            "{} CPUs, {} initialisation, memmap on memory {}",
            config.cpus, config.init, config.memmap_on_memory
        );
        let text = script(count, &mut random);
        let script = Script::parse("soak", &text).map_err(io::Error::other)?;
        let before = tally.cycles;
        let mut watcher = Watcher {
            random: random.clone(),
            before: None,
            wanted_resets: 0,
            migrated: 0,
            faults_injected: 0,
            tally,
            wrong: Vec::new(),
        };
        // The thread of the session is locked in with the VM, as that of `tidevm`, and ends with it.
        let config = Config { confinement: Confinement::STRICT, ..config };
        let summary = Vm::apart(config, |vm| run_session(vm, &script, &mut watcher));
        let summary = summary.map_err(io::Error::other)??;
        HostCall::ALL.iter().for_each(|&call| fail(call, None));
        random.number();
        watcher.end_of_session(&summary);
        tally = watcher.tally;
        tally.count_host_failures();
        for wrong in &watcher.wrong {
            tell(&format!("WRONG: {what}: {wrong}"), &tally);
        }
        tell(&what, &tally);
        if tally.cycles == before {
            return Err(io::Error::other(format!("{what}: not one cycle was done: {:?}", summary.ended)));
        }
    }
    Ok(tally)
}

fn config(random: &mut Random) -> Config {
    Config {
        cpus: random.pick(&[1, 2]),
        memory: Size(MEMORY_BLOCK_SIZE),
        hotplug: vec![HotplugConfig::new(Size(REGION))],
        console: ConsoleMode::Off,
        init: random.pick(&[InitPolicy::Lazy, InitPolicy::Eager, InitPolicy::Deferred]),
        memmap_on_memory: random.chance(70),
        ..Config::default()
    }
}

/// The script of a session: `count` cycles in one life of a guest or in several, which begin and end with nothing in use.
fn script(count: u64, random: &mut Random) -> String {
    let steps: Vec<FaultStep> = FaultStep::of_memory().collect();
    let mut text = String::new();
    begin_life(&mut text);
    // What the device requests.
    let mut requested = 256 << 20;
    for cycle in 0..count {
        if random.chance(RESETS) {
            reset(&mut text, requested, random);
        }
        if random.chance(20) {
            let inject = Command::Inject { step: random.pick(&steps), after: random.below(4) as u32 };
            let _ = writeln!(text, "{inject}");
        }
        let churn = random.chance(20);
        if churn {
            text += "churn 1 thread for 500ms as storm\n";
        }
        // At least what the data needs beside boot memory.
        requested = (2 + random.below(REGION / BLOCK - 1)) * BLOCK;
        let _ = writeln!(text, "resize {}M within 5m", requested >> 20);
        if churn {
            text += "wait storm\n";
        }
        if cycle.is_multiple_of(3) {
            text += "verify data\n";
        }
    }
    end_life(&mut text);
    text
}

/// The first steps of a guest: its first cycle, its counters, and its data.
fn begin_life(text: &mut String) {
    let _ = writeln!(text, "resize {}M\nresize 0\nstats\nresize 256M", REGION >> 20);
    *text += "hog 2M movable scattered as data\n";
}

/// The last steps of a guest: it gives everything back, and its counters are compared.
fn end_life(text: &mut String) {
    *text += "verify data\nrelease data\nresize 0 within 5m\ncheck\nstats\n";
}

/// A reset, and the steps until the next guest has data again. The machine requests `requested` bytes.
fn reset(text: &mut String, mut requested: u64, random: &mut Random) {
    if random.chance(COMPARED_RESETS) {
        end_life(text);
        requested = 0;
    } else {
        *text += "verify data\n";
        if random.chance(50) {
            *text += "churn 1 thread for 60s as storm\n";
        }
    }
    // A second reset comes while the guest plugs.
    for _ in 0..random.pick(&[1, 1, 2]) {
        *text += "reset within 5m\n";
    }
    let _ = writeln!(text, "expect plugged == {}M within 5m", requested >> 20);
    // Memory of the earlier guest that came back would be struct pages that are not zero.
    *text += "check\n";
    begin_life(text);
}

struct Watcher {
    random: Random,
    /// Pages of each zone at the first `stats`.
    before: Option<Vec<[u64; 3]>>,
    /// Resets that the script has made.
    wanted_resets: u64,
    /// Pages that the guest has moved since it was started.
    migrated: u64,
    /// Injected failures that have met a step of the guest since it was started.
    faults_injected: u64,
    tally: Tally,
    wrong: Vec<String>,
}

fn account(sample: &Sample) -> Option<Vec<[u64; 3]>> {
    let stats = sample.guest?;
    Some(stats.zones.iter().map(|zone| [zone.present, zone.managed, zone.free + zone.pcp]).collect())
}

impl Watcher {
    /// Compares the pages of zones with those at the first `stats`.
    fn compare(&mut self, now: &[[u64; 3]]) {
        let before = self.before.get_or_insert_with(|| now.to_vec());
        let lost: u64 = before.iter().zip(now).map(|(before, now)| before[2].saturating_sub(now[2])).sum();
        let different = (before != now)
            .then(|| format!("present, managed and free pages were {before:?} and are {now:?}"));
        self.tally.lost += lost;
        if let Some(different) = different {
            self.fault(different);
        }
    }

    /// Records that something is not as it must be.
    fn fault(&mut self, what: String) {
        self.tally.faults += 1;
        self.wrong.push(what);
    }

    fn end_of_session(&mut self, summary: &Summary) {
        self.tally.resets += summary.resets;
        match &summary.ended {
            Ended::Done | Ended::Failed { reason: None } => {}
            other => self.fault(format!("the session ended early: {other:?}")),
        }
        if summary.resets != self.wanted_resets {
            self.fault(format!("{} resets, of which the script made {}", summary.resets, self.wanted_resets));
        }
    }
}

impl Observer for Watcher {
    fn boot(&mut self, _: &Booted) -> io::Result<()> {
        Ok(())
    }

    fn step(&mut self, step: &StepRun) -> io::Result<()> {
        match (&step.command, &step.answer) {
            (Command::Resize(resize), _) if resize.within == Some(Duration::from_secs(300)) => {
                self.tally.cycles += u64::from(resize.target.size().0 > 0);
                self.tally.reached += u64::from(step.is_done() && resize.target.size().0 > 0);
            }
            (Command::Verify(_), Some(Answer::Verified { pages, corrupt, .. })) => {
                self.tally.verified += pages;
                self.tally.corrupt += corrupt;
            }
            (Command::Reset { .. }, _) => {
                self.wanted_resets += 1;
                (self.migrated, self.faults_injected) = (0, 0);
            }
            (Command::Stats, _) => match account(&step.sample) {
                Some(now) => self.compare(&now),
                None => self.fault("a guest without counters".to_owned()),
            },
            _ => {}
        }
        if let Some(stats) = step.sample.guest {
            self.tally.migrated += stats.pages_migrated.saturating_sub(self.migrated);
            self.migrated = stats.pages_migrated;
            self.tally.guest_failures += stats.faults_injected.saturating_sub(self.faults_injected);
            self.faults_injected = stats.faults_injected;
        }
        if let Err(failure) = &step.result {
            self.fault(format!("`{}`: {failure}", step.command));
        }
        HostCall::ALL.iter().for_each(|&call| fail(call, None));
        if self.random.chance(60) {
            fail(self.random.pick(&HostCall::ALL), Some(self.random.below(2) as u32));
        }
        Ok(())
    }

    fn end(&mut self, _: &Summary) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
