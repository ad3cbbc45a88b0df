//! Simulated guests with swinging, correlated loads on the memory of one host: fixed sizes against automatic ones.
//!
//! A host has as much memory as a number of guests need with fixed sizes, each its most of the day. The question is
//! how many more fit when the policy of `--auto` sizes them, and what they wait for. There is no VM: see
//! [`tidevm_autosize::fleet`].

use tidevm_abi::Size;
use tidevm_autosize::fleet::{DAY, Outcome, TOLERANCE, host_for, largest};

use super::{Experiment, Finding, Halt, Lab, Number, Side, Value};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "fleet",
    about: "Do more guests fit on a host when each has the memory that it needs now?",
    run,
};

/// Guests that fit with fixed sizes, by host. The third host is the one that is judged.
const FLEETS: [u32; 4] = [10, 100, 1000, 10_000];
const JUDGED: usize = 2;
/// A host's guests with automatic sizes and with fixed ones are at least as 5 to 4, or the policy is no use.
const WORTH: (u64, u64) = (5, 4);

fn run(_: &mut dyn Lab) -> Result<Vec<Side>, Halt> {
    let mut found = Vec::new();
    // What a small host shows is a guess for the next one.
    let mut likely = 12;
    for fixed in FLEETS {
        let best = largest(fixed, likely);
        likely = best.guests.saturating_mul(10);
        found.push(best);
    }
    Ok(sides(&found, host_for(FLEETS[JUDGED])))
}

/// `found` are the largest fleets, by host; `host` is the memory of the host that is judged.
pub(super) fn sides(found: &[Outcome], host: Size) -> Vec<Side> {
    let judged = &found[JUDGED];
    // With fixed sizes the guests that fit never wait.
    let fixed = Outcome { guests: FLEETS[JUDGED], most: host, average: host, ..Outcome::default() };
    let worth = u64::from(judged.guests) * WORTH.1 >= u64::from(fixed.guests) * WORTH.0;
    let tolerable = judged.millionths(judged.waited_for_host) <= TOLERANCE;
    let off = Side {
        on: false,
        setting: "fixed sizes",
        finding: Finding::Failure,
        what: format!(
            "each guest has 10 % more than the most that it needs in a day: {} fit into {host}",
            fixed.guests
        ),
        numbers: numbers(&FLEETS, &fixed),
    };
    let guests: Vec<u32> = found.iter().map(|outcome| outcome.guests).collect();
    let on = Side {
        on: true,
        setting: "automatic sizes",
        finding: if worth && tolerable { Finding::Success } else { Finding::Neither },
        what: sentence(judged, host),
        numbers: numbers(&guests, judged),
    };
    vec![off, on]
}

fn sentence(judged: &Outcome, host: Size) -> String {
    format!(
        "{} fit into {host}, and wait for the host for {} millionths of their time; {TOLERANCE} are tolerated",
        judged.guests,
        judged.millionths(judged.waited_for_host)
    )
}

fn numbers(guests: &[u32], judged: &Outcome) -> Vec<Number> {
    let mut numbers: Vec<Number> = FLEETS
        .iter()
        .zip(guests)
        .map(|(fixed, &guests)| {
            Number::charted(format!("guests on a host for {fixed}"), Value::Count(u64::from(guests)))
        })
        .collect();
    let millionths = |guest_seconds| Value::Count(judged.millionths(guest_seconds));
    numbers.extend([
        Number::new("waited for the host, millionths", millionths(judged.waited_for_host)),
        Number::new("waited for a step, millionths", millionths(judged.waited_for_step)),
        Number::new("all guests at most", Value::Size(judged.most)),
        Number::new("all guests on average", Value::Size(judged.average)),
        Number::new(
            "targets per guest and hour",
            Value::Count((judged.targets * 3600) / (u64::from(judged.guests) * u64::from(DAY))),
        ),
    ]);
    numbers
}
