//! Whether boot waits until the struct pages of all memory are written (features S1 and S2 of
//! `docs/features.toml`).
//!
//! The times are those of this host. The judgement reads a count that is the same on every host: the sections
//! whose struct pages were all written before the first page could be allocated. Sizes that would take longer
//! than [`LIMIT`], or that the host cannot map, are left out, with the reason.

use std::time::Duration;

use tidevm_abi::{BootTimes, Command, MEMORY_BLOCK_SIZE, Size};
use tidevm_machine::{Config, ConsoleMode, InitPolicy, StartError};
use tidevm_session::Ended;

use super::{Experiment, Finding, Halt, Lab, Number, Record, Side, Value, how_it_ended};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "boot-time",
    about: "Does the first allocation wait until the struct pages of all memory are written?",
    run,
};

/// Boot memory, in GiB.
const SIZES: [u64; 4] = [1, 8, 64, 512];

/// Ratio of memory to its struct pages: 64 bytes per 4 KiB.
const MEMMAP_SHARE: u64 = 64;

/// Longest expected time of a boot. The boot of the next smaller size gives the expectation.
const LIMIT: Duration = Duration::from_secs(180);

fn run(lab: &mut dyn Lab) -> Result<Vec<Side>, Halt> {
    let sides = [
        (false, "eager", InitPolicy::Eager),
        (true, "deferred", InitPolicy::Deferred),
        (true, "lazy", InitPolicy::Lazy),
    ];
    sides.into_iter().map(|(on, setting, init)| side(lab, on, setting, init)).collect()
}

fn side(lab: &mut dyn Lab, on: bool, setting: &'static str, init: InitPolicy) -> Result<Side, Halt> {
    let mut measured = Vec::new();
    let mut numbers = Vec::new();
    for gib in SIZES {
        let boot = boot(lab, setting, init, gib, measured.last())?;
        numbers.extend(numbers_of(init, gib, &boot));
        if let Ok(boot) = boot {
            measured.push(boot);
        }
    }
    let (finding, what) = judge(&measured);
    Ok(Side { on, setting, finding, what, numbers })
}

/// A boot that was measured.
struct Boot {
    gib: u64,
    times: BootTimes,
}

/// Boots, or gives the reason why this size is left out.
fn boot(
    lab: &mut dyn Lab,
    setting: &str,
    init: InitPolicy,
    gib: u64,
    smaller: Option<&Boot>,
) -> Result<Result<Boot, String>, Halt> {
    let expected = smaller.map_or(Duration::ZERO, |smaller| smaller.total() * (gib / smaller.gib) as u32);
    if expected > LIMIT {
        return Ok(Err(format!("would take {} minutes on this host", expected.as_secs().div_ceil(60))));
    }
    let memory = gib << 30;
    // The host gives memory for struct pages in large pieces, however few of them are written.
    let memmap = memory / MEMMAP_SHARE;
    let is_written = init != InitPolicy::Lazy;
    if is_written && lab.available().is_some_and(|available| memmap > available / 2) {
        return Ok(Err(format!("its struct pages need {} of this host's memory", Size(memmap))));
    }
    let config =
        Config { init, cpus: 2, memory: Size(memory), console: ConsoleMode::Off, ..Config::default() };
    let script = match init {
        InitPolicy::Lazy => "stats".to_owned(),
        // The guest counts the last section a moment before it notes the time of the last one.
        _ => "expect deferred == 0 within 10m\nsleep 1s\nstats".to_owned(),
    };
    let label = format!("boot-time, {setting}, {}", Size(memory));
    match lab.session(&label, config, &script) {
        Ok(record) => Ok(read(&record).map(|times| Boot { gib, times })),
        Err(Halt::Start(error @ (StartError::Memory(_) | StartError::Unaddressable { .. }))) => {
            Ok(Err(error.to_string()))
        }
        Err(halt) => Err(halt),
    }
}

fn read(record: &Record) -> Result<BootTimes, String> {
    let times = record.stats_after(|command| *command == Command::Stats).map(|stats| stats.boot);
    times.filter(|_| record.summary.ended == Ended::Done).ok_or_else(|| how_it_ended(record))
}

impl Boot {
    /// Time from the complete direct map until `micros` after the start.
    fn after_mapping(&self, micros: u64) -> Duration {
        Duration::from_micros(micros.saturating_sub(self.times.mapped))
    }

    fn total(&self) -> Duration {
        Duration::from_micros(self.times.initialised.unwrap_or(self.times.first_allocation))
    }

    fn sections(&self) -> u64 {
        (self.gib << 30) / MEMORY_BLOCK_SIZE
    }
}

fn numbers_of(init: InitPolicy, gib: u64, boot: &Result<Boot, String>) -> [Number; 4] {
    let value = |read: &dyn Fn(&Boot) -> Value| match boot {
        Ok(boot) => read(boot),
        Err(why) => Value::Missing(why.clone()),
    };
    let initialised = |boot: &Boot| match boot.times.initialised {
        Some(micros) => Value::Time(boot.after_mapping(micros)),
        None if init == InitPolicy::Lazy => Value::Missing("each page when it is first used".to_owned()),
        None => Value::Missing("not a second after all sections were there".to_owned()),
    };
    [
        Number::charted(
            format!("{gib}G: time to the first allocation"),
            value(&|boot| Value::Time(boot.after_mapping(boot.times.first_allocation))),
        ),
        Number::new(format!("{gib}G: time until all is initialised"), value(&initialised)),
        Number::new(
            format!("{gib}G: sections written before the first allocation"),
            value(&|boot| Value::Count(boot.times.memmaps_written)),
        ),
        Number::new(
            format!("{gib}G: page tables, before all this"),
            value(&|boot| Value::Time(Duration::from_micros(boot.times.mapped))),
        ),
    ]
}

fn judge(measured: &[Boot]) -> (Finding, String) {
    let Some(largest) = measured.last().filter(|_| measured.len() > 1) else {
        return (Finding::Neither, "fewer than two sizes could be booted".to_owned());
    };
    let written = largest.times.memmaps_written;
    let what = format!("{written} of {} sections written first, at {}G", largest.sections(), largest.gib);
    let all = |boot: &Boot| boot.times.memmaps_written == boot.sections();
    if measured.iter().all(all) {
        (Finding::Failure, what)
    } else if measured.iter().any(all) {
        (Finding::Neither, format!("all sections are written first at some sizes only; {what}"))
    } else {
        (Finding::Success, what)
    }
}
