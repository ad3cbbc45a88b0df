//! Frees on other CPUs while a range is isolated (feature S3 of `docs/features.toml`).
//!
//! One CPU takes a pageblock out of the allocator and gives it back, while two other CPUs free pages of it. The
//! CPU that takes the pageblock is held after its drain of per-CPU lists until the other CPUs have freed their
//! pages, so every cycle is a race. If per-CPU lists are drained once instead of being disabled, these pages stay
//! on them. Isolation does not find pages there.

use tidevm_abi::{Answer, Command};
use tidevm_machine::{Config, ConsoleMode, HotplugConfig, Size};

use super::{Experiment, Finding, Halt, Lab, Number, Record, Side, Value, count, how_it_ended};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "offline-race",
    about: "Do pages hide on per-CPU lists while their range is taken out of the allocator?",
    run,
};

const CYCLES: u32 = 20;

fn run(lab: &mut dyn Lab) -> Result<Vec<Side>, Halt> {
    let sides = [(false, "lists drained once", "once"), (true, "lists disabled", "on")];
    sides.into_iter().map(|(on, setting, policy)| side(lab, on, setting, policy)).collect()
}

fn side(lab: &mut dyn Lab, on: bool, setting: &'static str, policy: &str) -> Result<Side, Halt> {
    let config = Config {
        cpus: 3,
        hotplug: vec![HotplugConfig::new(Size::mib(256))],
        cmdline: Some(format!("tidevm.pcp_disable={policy}")),
        console: ConsoleMode::Off,
        ..Config::default()
    };
    let script = format!("plug 256M\nrace {CYCLES} cycles held\ncheck");
    let record = lab.session(&format!("offline-race, {setting}"), config, &script)?;
    let (finding, what) = judge(&record);
    let raced = raced(&record);
    let missing = || Value::Missing("the guest did not answer".to_owned());
    let number = |pick: fn(Raced) -> u64| raced.map_or_else(missing, |raced| Value::Count(pick(raced)));
    let numbers = vec![
        Number::charted("pages stranded", number(|raced| raced.stranded)),
        Number::new("cycles", number(|raced| raced.cycles)),
        Number::new("cycles that failed", number(|raced| raced.failures)),
        Number::new("drains of per-CPU lists", count(record.stats_after(is_race), |stats| stats.pcp_drains)),
        Number::new("time", record.step(is_race).map_or_else(missing, |step| Value::Time(step.took))),
    ];
    Ok(Side { on, setting, finding, what, numbers })
}

fn is_race(command: &Command) -> bool {
    matches!(command, Command::Race(_))
}

#[derive(Clone, Copy)]
struct Raced {
    cycles: u64,
    failures: u64,
    stranded: u64,
}

fn raced(record: &Record) -> Option<Raced> {
    match record.step(is_race)?.answer? {
        Answer::Raced { cycles, failures, stranded } => {
            Some(Raced { cycles: cycles.into(), failures: failures.into(), stranded })
        }
        _ => None,
    }
}

fn judge(record: &Record) -> (Finding, String) {
    let intact = record.step(|command| *command == Command::Check).is_some_and(|step| step.is_done());
    match raced(record).filter(|raced| intact && raced.cycles == u64::from(CYCLES)) {
        Some(Raced { cycles, failures, stranded: 1.. }) => {
            (Finding::Failure, format!("{failures} of {cycles} cycles failed over pages on per-CPU lists"))
        }
        Some(Raced { cycles, failures: 0, stranded: 0 }) => {
            (Finding::Success, format!("all {cycles} cycles took their pageblock at once"))
        }
        _ => (Finding::Neither, how_it_ended(record)),
    }
}
