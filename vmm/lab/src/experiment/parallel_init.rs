//! Two ranges of device memory, initialised one after the other or at the same time (feature S5.3 of
//! `docs/features.toml`).
//!
//! The judgement reads how many CPUs initialised struct pages. On a host with a spare CPU for each vCPU, both
//! ranges take about the time of one.

use tidevm_abi::PmemMapped;
use tidevm_machine::{Config, ConsoleMode, Size};

use super::double_init::{mapped, nanos};
use super::{Experiment, Finding, Halt, Lab, Number, Record, Side, Value, how_it_ended};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "parallel-init",
    about: "Does one range of device memory wait until another one is initialised?",
    run,
};

fn run(lab: &mut dyn Lab) -> Result<Vec<Side>, Halt> {
    let sides = [(false, "one CPU", 1), (true, "two CPUs", 2)];
    sides.into_iter().map(|(on, setting, cpus)| side(lab, on, setting, cpus)).collect()
}

fn side(lab: &mut dyn Lab, on: bool, setting: &'static str, cpus: u32) -> Result<Side, Halt> {
    let config =
        Config { cpus: 2, pmem: vec![Size::gib(1); 2], console: ConsoleMode::Off, ..Config::default() };
    let script = format!("pmem map 0 1 altmap on {cpus} cpus\ncheck\npmem unmap 0\npmem unmap 1\ncheck");
    let record = lab.session(&format!("parallel-init, {setting}"), config, &script)?;
    let (finding, what) = judge(&record);
    let mapped = mapped(&record);
    let value = |read: fn(PmemMapped) -> Value| {
        mapped.map_or_else(|| Value::Missing("the guest mapped nothing".to_owned()), read)
    };
    let numbers = vec![
        Number::charted("time until both can be used", value(|mapped| nanos(mapped.total_ns))),
        Number::new("CPUs that wrote struct pages", value(|mapped| Value::Count(mapped.cpus.into()))),
        Number::new("time under the memory hotplug lock", value(|mapped| nanos(mapped.locked_ns))),
        Number::new("pages that can be used", value(|mapped| Value::Count(mapped.pages))),
    ];
    Ok(Side { on, setting, finding, what, numbers })
}

fn judge(record: &Record) -> (Finding, String) {
    match mapped(record) {
        Some(PmemMapped { pages: 1.., cpus: 1, .. }) => {
            (Finding::Failure, "one CPU writes all struct pages, range after range".to_owned())
        }
        Some(PmemMapped { pages: 1.., cpus: cpus @ 2.., .. }) => {
            (Finding::Success, format!("{cpus} CPUs write struct pages at the same time"))
        }
        _ => (Finding::Neither, how_it_ended(record)),
    }
}
