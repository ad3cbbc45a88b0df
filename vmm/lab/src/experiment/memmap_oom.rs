//! A small guest in use that is grown by 12 GiB, whose memmap takes 192 MiB (feature S4.2 of
//! `docs/features.toml`).
//!
//! With the memmap in boot memory, the guest runs out of memory while memory is added to it. That has to be a
//! clean error: the plugged part works, and all of it can be unplugged again. (A Linux guest dies there.) With
//! the memmap in the new memory, the guest grows.

use tidevm_abi::command::{Resize, Target};
use tidevm_abi::{Command, ResizeState, Size};
use tidevm_machine::{Config, ConsoleMode, HotplugConfig};
use tidevm_session::{Ended, StepFailure, StepRun};

use super::{Experiment, Finding, Halt, Lab, Number, Record, Side, Value, count, how_it_ended};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "memmap-oom",
    about: "Can a guest with 256 MiB, of which a workload uses 96, be grown by 12 GiB?",
    run,
};

const GROWN: Size = Size::gib(12);
const SCRIPT: &str = "
    hog 96M unmovable as app
    plug 12G
    check
    resize 0
    check
    verify app";

fn run(lab: &mut dyn Lab) -> Result<Vec<Side>, Halt> {
    let sides = [(false, "memmap in boot memory"), (true, "memmap on memory")];
    sides.into_iter().map(|(on, setting)| side(lab, on, setting)).collect()
}

fn side(lab: &mut dyn Lab, on: bool, setting: &'static str) -> Result<Side, Halt> {
    let config = Config {
        memory: Size::mib(256),
        hotplug: vec![HotplugConfig::new(Size::gib(16))],
        memmap_on_memory: on,
        console: ConsoleMode::Off,
        ..Config::default()
    };
    let record = lab.session(&format!("memmap-oom, {setting}"), config, SCRIPT)?;
    let (finding, what) = judge(&record);
    let stats = record.stats_after(is_plug);
    let missing = || Value::Missing("the guest did not come so far".to_owned());
    let plug = record.step(is_plug);
    let numbers = vec![
        Number::charted("plugged", plug.map_or_else(missing, |step| Value::Size(plugged(step)))),
        Number::new("pages of memmap in boot memory", count(stats, |stats| stats.memmap_boot_pages)),
        Number::new("pages of memmap in the new memory", count(stats, |stats| stats.memmap_altmap_pages)),
        Number::new("time of the plug", plug.map_or_else(missing, |step| Value::Time(step.took))),
    ];
    Ok(Side { on, setting, finding, what, numbers })
}

fn is_plug(command: &Command) -> bool {
    matches!(command, Command::Resize(Resize { target: Target::Plug(_), .. }))
}

fn plugged(step: &StepRun) -> Size {
    step.sample.devices.iter().map(|device| device.plugged).sum()
}

fn judge(record: &Record) -> (Finding, String) {
    let Some(plug) = record.step(is_plug) else { return (Finding::Neither, how_it_ended(record)) };
    if matches!(record.summary.ended, Ended::Died(_)) || !rolled_back(record) {
        return (Finding::Neither, format!("not as clean as it should be: {}", how_it_ended(record)));
    }
    let plugged = plugged(plug);
    match record.failure(is_plug) {
        None if plugged == GROWN => (Finding::Success, format!("grown by {plugged} and back")),
        Some(StepFailure::Stopped(stopped)) if stopped.state == Some(ResizeState::NoMemory) => {
            (Finding::Failure, format!("{stopped}; after that all of it could be taken back"))
        }
        _ => (Finding::Neither, how_it_ended(record)),
    }
}

/// Whether every step except the plug was done, and the guest's zones in the end were as before the plug.
fn rolled_back(record: &Record) -> bool {
    let others = record.steps.iter().filter(|step| !is_plug(&step.command));
    let all_done = others.clone().count() == 5 && others.clone().all(StepRun::is_done);
    let zones = |step: Option<&StepRun>| {
        let guest = step?.sample.guest?;
        let zones = guest.zones.map(|zone| (zone.present, zone.managed, zone.free + zone.pcp));
        Some((zones, guest.memmap_boot_pages, guest.memmap_altmap_pages))
    };
    let before = zones(record.step(|command| matches!(command, Command::Hog(_))));
    let after = zones(record.step(|command| matches!(command, Command::Verify(_))));
    all_done && before.is_some() && before == after
}
