//! A load that swings tenfold in a booted guest, on a machine of a fixed size and on one that is sized automatically.
//!
//! The trace of loads follows from [`SEED`]. Most of boot memory is taken at boot, so that small loads fill the rest: a
//! guest kernel may run only a few instructions per microsecond. For the same reason memory goes at [`PACE`], ten times as
//! fast as by default.
//!
//! A machine of the smallest size does not hold the large loads. One of the largest size holds them, and its memory all the
//! time; what it would hold is computed. The automatic one holds them too, stays within its bounds, and holds less.

use std::fmt::Write;
use std::time::Duration;

use tidevm_abi::{Answer, Command};
use tidevm_machine::{Config, ConsoleMode, HotplugConfig, Size};
use tidevm_session::Ended;
use tidevm_sizer::{Pace, Status, Wish};

use super::{Experiment, Finding, Halt, Lab, Number, Record, Side, Value, how_it_ended};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "auto",
    about: "Does a machine that is sized automatically hold loads that swing tenfold, with less memory?",
    run,
};

/// The trace is made from it.
const SEED: u64 = 1;
const SWINGS: u32 = 4;
/// Small loads, in MiB. Large ones are ten times as large.
const SMALL: std::ops::RangeInclusive<u64> = 1..=2;
/// For memory to go after a load.
const REST: Duration = Duration::from_secs(3);

const WISH: Wish = Wish { min: Size::mib(128), max: Size::mib(256), headroom: 10 };
const PACE: Pace =
    Pace { calm: Duration::from_secs(1), step: Duration::from_millis(100), longest: Duration::from_secs(30) };

/// The machine: of its boot memory about 5 MiB are left.
fn machine() -> Config {
    Config {
        memory: WISH.min,
        hotplug: vec![HotplugConfig::new(Size::mib(128))],
        cmdline: Some("percpu_buf=115M".to_owned()),
        console: ConsoleMode::Off,
        ..Config::default()
    }
}

/// Small loads, each with a large one after it. A load that does not fit is held in part, so that the others follow.
fn script() -> String {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut script = String::new();
    for swing in 0..SWINGS {
        let small = random.u64(SMALL);
        for (size, name) in [(small, "small"), (10 * small, "large")] {
            let name = format!("{name}{swing}");
            // Writing to a text does not fail.
            let _ = write!(script, "hog up to {size}M movable as {name}\nrelease {name}\n");
        }
        let _ = writeln!(script, "sleep {}ms", REST.as_millis());
    }
    script
}

fn run(lab: &mut dyn Lab) -> Result<Vec<Side>, Halt> {
    let script = script();
    let fixed = lab.session("auto, a fixed size", machine(), &script)?;
    let sized = lab.sized("auto, sized automatically", machine(), (WISH, PACE), &script)?;
    Ok(vec![fixed_side(&fixed), sized_side(&sized.0, sized.1.as_ref())])
}

/// The loads of a session, and how many of them the guest held whole.
fn loads(record: &Record) -> (u64, u64) {
    let hogs = record.steps.iter().filter_map(|step| match &step.command {
        Command::Hog(hog) => Some((hog.size, step.answer)),
        _ => None,
    });
    hogs.fold((0, 0), |(all, held), (size, answer)| {
        let whole = matches!(answer, Some(Answer::Hogged { pages }) if pages == size.pages());
        (all + 1, held + u64::from(whole))
    })
}

pub(super) fn fixed_side(record: &Record) -> Side {
    let (all, held) = loads(record);
    let finding = if all > 0 && held < all { Finding::Failure } else { Finding::Neither };
    let what = match finding {
        Finding::Failure => format!("{} holds {held} of {all} loads", WISH.min),
        _ => how_it_ended(record),
    };
    let time = record.steps.iter().map(|step| step.took).sum::<Duration>();
    let seconds = u64::try_from(u128::from(WISH.min.0) * time.as_millis() / 1000).unwrap_or(u64::MAX);
    Side { on: false, setting: "a fixed size", finding, what, numbers: numbers(record, seconds, time, None) }
}

pub(super) fn sized_side(record: &Record, status: Option<&Status>) -> Side {
    let (all, held) = loads(record);
    let side =
        |finding, what, numbers| Side { on: true, setting: "sized automatically", finding, what, numbers };
    let Some(status) = status else {
        return side(Finding::Neither, how_it_ended(record), numbers(record, 0, Duration::ZERO, None));
    };
    let (least, most) = status.range;
    let within = WISH.min <= least && most <= WISH.max;
    let fixed = fixed_seconds(status.time);
    let moved = status.counts.grows > 0 && status.counts.shrinks > 0 && status.counts.holds == 0;
    let gave_up = status.pressure.map_or(0, |pressure| pressure.gave_up);
    let done = record.summary.ended == Ended::Done && (all, gave_up) == (held, 0);
    let (finding, what) = if done && within && moved && status.byte_seconds < fixed {
        let saved = 100 - status.byte_seconds * 100 / fixed.max(1);
        (
            Finding::Success,
            format!("{all} loads are held in {least} to {most}, with {saved} % less than {}", WISH.max),
        )
    } else {
        (Finding::Neither, format!("{held} of {all} loads in {least} to {most}: {}", how_it_ended(record)))
    };
    side(finding, what, numbers(record, status.byte_seconds, status.time, Some(status)))
}

/// What a machine of the largest size holds in `time`, in bytes times seconds.
fn fixed_seconds(time: Duration) -> u64 {
    u64::try_from(u128::from(WISH.max.0) * time.as_millis() / 1000).unwrap_or(u64::MAX)
}

fn numbers(record: &Record, byte_seconds: u64, time: Duration, status: Option<&Status>) -> Vec<Number> {
    let (all, held) = loads(record);
    let none = || Value::Missing("it is not sized".to_owned());
    let counted = |count: fn(&Status) -> u64| status.map_or_else(none, |status| Value::Count(count(status)));
    let longest = status.and_then(|status| status.pressure);
    let longest =
        longest.map_or_else(none, |pressure| Value::Time(Duration::from_micros(pressure.longest_micros)));
    vec![
        Number::charted("MiB times seconds", Value::Count(byte_seconds >> 20)),
        Number::charted("the same of a machine of the largest size", Value::Count(fixed_seconds(time) >> 20)),
        Number::new("time", Value::Time(time)),
        Number::new("loads", Value::Count(all)),
        Number::new("loads that were held", Value::Count(held)),
        Number::new(
            "allocations that waited",
            counted(|status| status.pressure.map_or(0, |pressure| pressure.waited)),
        ),
        Number::new("longest wait", longest),
        Number::new("times larger", counted(|status| status.counts.grows)),
        Number::new("times smaller", counted(|status| status.counts.shrinks)),
        Number::new("questions to the guest", counted(|status| status.counts.questions)),
    ]
}
