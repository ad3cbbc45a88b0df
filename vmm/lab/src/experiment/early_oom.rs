//! Large per-CPU buffers while CPUs are brought up, before most of boot memory is initialised (feature S1.2
//! of `docs/features.toml`).
//!
//! Eight CPUs with 200 MiB each need 1.6 of 2 GiB, and 128 MiB are initialised at that time. If allocations
//! do not initialise more memory, the guest dies of [`DeathKind::OutOfMemory`].

use tidevm_machine::{Config, ConsoleMode, DeathKind, InitPolicy, Size};
use tidevm_session::Ended;

use super::{Experiment, Finding, Halt, Lab, Number, Record, Side, Value, how_it_ended, last_words};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "early-oom",
    about: "Do allocations during boot fail while most of memory is not initialised yet?",
    run,
};

const CPUS: u8 = 8;
const SCRIPT: &str = "expect deferred == 0 within 60s\ncheck";

fn run(lab: &mut dyn Lab) -> Result<Vec<Side>, Halt> {
    let sides = [
        (false, "zones do not grow", "percpu_buf=200M tidevm.deferred_grow=off"),
        (true, "zones grow on demand", "percpu_buf=200M"),
    ];
    sides.into_iter().map(|(on, setting, words)| side(lab, on, setting, words)).collect()
}

fn side(lab: &mut dyn Lab, on: bool, setting: &'static str, words: &str) -> Result<Side, Halt> {
    let config = Config {
        init: InitPolicy::Deferred,
        cpus: CPUS,
        memory: Size::gib(2),
        cmdline: Some(words.to_owned()),
        console: ConsoleMode::Off,
        ..Config::default()
    };
    let record = lab.session(&format!("early-oom, {setting}"), config, SCRIPT)?;
    let (finding, what) = judge(&record);
    let cpus = record.boot.as_ref().and_then(|boot| boot.ready).map_or(0, |ready| ready.cpus);
    let never = || Value::Missing("the guest never came up".to_owned());
    let numbers = vec![
        Number::charted("CPUs of the guest that came up", Value::Count(cpus.into())),
        Number::new("time until it was ready", record.summary.boot.map_or_else(never, Value::Time)),
    ];
    Ok(Side { on, setting, finding, what, numbers })
}

fn judge(record: &Record) -> (Finding, String) {
    let up = record.boot.as_ref().and_then(|boot| boot.ready);
    match &record.summary.ended {
        Ended::Died(death) if death.kind == DeathKind::OutOfMemory => (Finding::Failure, last_words(death)),
        Ended::Done if up.is_some_and(|ready| ready.cpus == u32::from(CPUS)) => {
            (Finding::Success, format!("all {CPUS} CPUs came up with 200 MiB each"))
        }
        _ => (Finding::Neither, how_it_ended(record)),
    }
}
