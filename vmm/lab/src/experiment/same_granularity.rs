//! Two memory blocks that hold their own memmaps, added one by one and removed as one range (feature S4.16 of
//! `docs/features.toml`).
//!
//! If a range can only be removed the way it was added, the guest refuses and changes nothing. If every memory
//! block is removed with its own memmap, the range is removed and added again. The data in the guest stays
//! intact on both sides.

use tidevm_abi::{Command, Failure};
use tidevm_machine::{Config, ConsoleMode, HotplugConfig, Size};
use tidevm_session::{StepFailure, StepRun};

use super::{Experiment, Finding, Halt, Lab, Number, Record, Side, count, how_it_ended};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "same-granularity",
    about: "Can memory blocks that were added one by one be removed as one range?",
    run,
};

/// The region begins at 4 GiB.
const SCRIPT: &str = "
    plug 256M
    hog 4M movable scattered as data
    readd 256M at 4G
    check
    verify data
    release data
    resize 0
    check";

fn run(lab: &mut dyn Lab) -> Result<Vec<Side>, Halt> {
    let sides = [(false, "as a range", "range"), (true, "block by block", "per-block")];
    sides.into_iter().map(|(on, setting, policy)| side(lab, on, setting, policy)).collect()
}

fn side(lab: &mut dyn Lab, on: bool, setting: &'static str, policy: &str) -> Result<Side, Halt> {
    let config = Config {
        hotplug: vec![HotplugConfig::new(Size::mib(256))],
        cmdline: Some(format!("tidevm.memmap_removal={policy}")),
        console: ConsoleMode::Off,
        ..Config::default()
    };
    let record = lab.session(&format!("same-granularity, {setting}"), config, SCRIPT)?;
    let (finding, what) = judge(&record);
    let after = record.stats_after(is_readd);
    let numbers = vec![
        Number::charted("pages moved out of the way", count(after, |stats| stats.pages_migrated)),
        Number::new("pages of memmap on memory afterwards", count(after, |stats| stats.memmap_altmap_pages)),
    ];
    Ok(Side { on, setting, finding, what, numbers })
}

fn is_readd(command: &Command) -> bool {
    matches!(command, Command::Readd { .. })
}

fn is_hog(command: &Command) -> bool {
    matches!(command, Command::Hog(_))
}

fn judge(record: &Record) -> (Finding, String) {
    let others = record.steps.iter().filter(|step| !is_readd(&step.command));
    let intact = record.steps.len() == 8 && others.clone().all(StepRun::is_done);
    let memmap = |is_wanted: fn(&Command) -> bool| {
        record.stats_after(is_wanted).map(|stats| stats.memmap_altmap_pages)
    };
    if !intact || memmap(is_readd) != memmap(is_hog) {
        return (Finding::Neither, how_it_ended(record));
    }
    match record.failure(is_readd) {
        None => (Finding::Success, "both went and came back, each with its memmap".to_owned()),
        Some(failure @ StepFailure::Refused { failure: Failure::Granularity, .. }) => {
            (Finding::Failure, format!("{failure}; nothing was changed"))
        }
        Some(_) => (Finding::Neither, how_it_ended(record)),
    }
}
