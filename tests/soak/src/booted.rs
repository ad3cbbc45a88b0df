//! Cycles in booted guests: sessions of some cycles each, with random targets, workloads, and failures of the host
//! and of the guest.
//!
//! Each session boots a guest with policies of its own, so a boot stands for the reset that a session's guest does
//! not make. After a first cycle, in which the guest makes page tables that it keeps, the counters of zones are
//! recorded; at the end everything is given back, and the counters are compared. Each session is locked in as `tidevm`
//! does it.
//!
//! Invariant: a guest that dies, data that is wrong, and counters that differ end up in the figures, never in a
//! session that counts as good.

use std::fmt::Write;
use std::io;
use std::time::Duration;

use tidevm_abi::command::Command;
use tidevm_abi::{Answer, MEMORY_BLOCK_SIZE, Size};
use tidevm_machine::hosted::{HostCall, fail};
use tidevm_machine::{Config, Confinement, ConsoleMode, HotplugConfig, InitPolicy, Vm};
use tidevm_session::script::Script;
use tidevm_session::{Booted, Ended, Observer, Sample, StepRun, Summary, run as run_session};

use crate::{Random, Tally};

const REGION: u64 = 512 << 20;
const BLOCK: u64 = 2 << 20;
/// Cycles of one session.
const CYCLES: u64 = 25;

/// Runs sessions until `cycles` cycles are done. `tell` is told of each session, and of each thing that was wrong.
///
/// # Errors
/// A VM does not start.
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
        let text = script(count, &mut random, &mut tally);
        let script = Script::parse("soak", &text).map_err(io::Error::other)?;
        let mut watcher = Watcher { random: random.clone(), before: None, tally, wrong: Vec::new() };
        let config = Config { confinement: Confinement::STRICT, ..config };
        let summary =
            Vm::apart(config, |vm| run_session(vm, &script, &mut watcher)).map_err(io::Error::other)??;
        HostCall::ALL.iter().for_each(|&call| fail(call, None));
        random.number();
        watcher.end_of_session(&summary);
        tally = watcher.tally;
        tally.resets += 1;
        tally.count_host_failures();
        for wrong in &watcher.wrong {
            tell(&format!("{what}: {wrong}"), &tally);
        }
        tell(&what, &tally);
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

/// The script of a session: `stats` before and after `count` cycles, with nothing in use.
fn script(count: u64, random: &mut Random, tally: &mut Tally) -> String {
    let mut text = format!("resize {}M\nresize 0\nstats\nresize 256M\n", REGION >> 20);
    text += "hog 2M movable scattered as data\n";
    for cycle in 0..count {
        // At least what the data needs beside boot memory.
        let target = 2 + random.below(REGION / BLOCK - 1);
        if random.chance(20) {
            let step =
                random.pick(&["map-direct", "map-memmap", "alloc-memmap", "online", "isolate", "migrate"]);
            let _ = writeln!(text, "inject {step} after {}", random.below(4));
            tally.guest_failures += 1;
        }
        let churn = random.chance(20);
        if churn {
            let _ = writeln!(text, "churn 1 thread for 500ms as storm");
        }
        let _ = writeln!(text, "resize {}M within 5m", (target * BLOCK) >> 20);
        if churn {
            text += "wait storm\n";
        }
        if cycle.is_multiple_of(3) {
            text += "verify data\n";
        }
    }
    text + "verify data\nrelease data\nresize 0 within 5m\ncheck\nstats\n"
}

struct Watcher {
    random: Random,
    /// Pages of each zone at the first `stats`.
    before: Option<Vec<[u64; 3]>>,
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
        let Some(before) = &self.before else {
            self.before = Some(now.to_vec());
            return;
        };
        let lost: u64 = before.iter().zip(now).map(|(before, now)| before[2].saturating_sub(now[2])).sum();
        if before != now {
            self.wrong.push(format!("present, managed and free pages were {before:?} and are {now:?}"));
        }
        self.tally.lost += lost;
    }

    fn end_of_session(&mut self, summary: &Summary) {
        match &summary.ended {
            Ended::Done | Ended::Failed { reason: None } => {}
            other => {
                self.tally.lost += 1;
                self.wrong.push(format!("the session ended early: {other:?}"));
            }
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
            (Command::Stats, _) => {
                if let Some(stats) = step.sample.guest {
                    self.tally.migrated += stats.pages_migrated;
                }
                match account(&step.sample) {
                    Some(now) => self.compare(&now),
                    None => self.wrong.push("a guest without counters".to_owned()),
                }
            }
            _ => {}
        }
        if let Err(failure) = &step.result {
            self.wrong.push(format!("`{}`: {failure}", step.command));
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
