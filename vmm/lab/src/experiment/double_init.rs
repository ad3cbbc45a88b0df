//! Device memory whose struct pages are written twice, the first time under the memory hotplug lock, as Linux
//! did before 4.20 (feature S5.1 of `docs/features.toml`).
//!
//! The judgement reads how many struct pages were written under the lock, a count that is the same on every
//! host. The times beside it are those of this host. Struct pages of the pages that hold the memmap are
//! always written under the lock, because those pages do not belong to the device.

use std::time::Duration;

use tidevm_abi::{Answer, PmemMapped};
use tidevm_machine::{Config, ConsoleMode, Size};

use super::{Experiment, Finding, Halt, Lab, Number, Record, Side, Value, how_it_ended};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "double-init",
    about: "Is the memory hotplug lock held while the struct pages of device memory are written?",
    run,
};

const SIZE: Size = Size::gib(1);
const SCRIPT: &str = "pmem map 0 altmap on 1 cpus\ncheck\npmem unmap 0\ncheck";

fn run(lab: &mut dyn Lab) -> Result<Vec<Side>, Halt> {
    let sides = [(false, "twice, first under the lock", "twice"), (true, "once, outside", "once")];
    sides.into_iter().map(|(on, setting, policy)| side(lab, on, setting, policy)).collect()
}

fn side(lab: &mut dyn Lab, on: bool, setting: &'static str, policy: &str) -> Result<Side, Halt> {
    let config = Config {
        pmem: vec![SIZE],
        cmdline: Some(format!("tidevm.device_init={policy}")),
        console: ConsoleMode::Off,
        ..Config::default()
    };
    let record = lab.session(&format!("double-init, {setting}"), config, SCRIPT)?;
    let (finding, what) = judge(&record);
    let mapped = mapped(&record);
    let value = |read: fn(PmemMapped) -> Value| {
        mapped.map_or_else(|| Value::Missing("the guest mapped nothing".to_owned()), read)
    };
    let numbers = vec![
        Number::charted("time under the lock", value(|mapped| nanos(mapped.locked_ns))),
        Number::charted("time until all can be used", value(|mapped| nanos(mapped.total_ns))),
        Number::new("struct pages written under the lock", value(|mapped| Value::Count(mapped.locked_pages))),
        Number::new("pages that can be used", value(|mapped| Value::Count(mapped.pages))),
    ];
    Ok(Side { on, setting, finding, what, numbers })
}

/// The guest's answer to `pmem map`, if every step of the session was done.
pub(super) fn mapped(record: &Record) -> Option<PmemMapped> {
    if record.steps.iter().any(|step| !step.is_done()) {
        return None;
    }
    record.steps.iter().find_map(|step| match step.answer {
        Some(Answer::PmemMapped(mapped)) => Some(mapped),
        _ => None,
    })
}

pub(super) fn nanos(nanos: u64) -> Value {
    Value::Time(Duration::from_nanos(nanos))
}

fn judge(record: &Record) -> (Finding, String) {
    match mapped(record) {
        Some(PmemMapped { pages: pages @ 1.., locked_pages, .. })
            if locked_pages <= SIZE.pages().saturating_sub(pages) =>
        {
            (
                Finding::Success,
                format!("{locked_pages} struct pages are written under the lock, the memmap's own"),
            )
        }
        Some(PmemMapped { pages: pages @ 1.., locked_pages, .. }) if locked_pages >= pages => (
            Finding::Failure,
            format!("{locked_pages} struct pages are written under the lock, and again after"),
        ),
        _ => (Finding::Neither, how_it_ended(record)),
    }
}
