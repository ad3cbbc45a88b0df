//! A fleet: simulated guests with swinging, correlated loads on the memory of one host, sized by a policy each.
//!
//! Each guest is a load over time and a [`Policy`]. A target takes effect one [`TICK`] later, as far as the host has
//! memory left. A guest whose load does not fit into its memory waits. It waits for the host when the host refused it
//! memory, and otherwise for the next step of its policy.
//!
//! Everything follows from the number of a guest: two runs are the same run, and a guest has the same load in every
//! fleet.

mod load;

use std::time::Duration;

use tidevm_abi::Size;

use self::load::{Load, Swing};
use crate::{Bounds, Decision, Pace, Policy, Sample};

/// Time between two samples, and from a target to its memory. A real VM is faster.
pub const TICK: Duration = Duration::from_secs(1);

/// Simulated time: one period of the swing that the guests share.
pub const DAY: u32 = 3600;

/// Share of the guests' time, in millionths, that may wait for the host in a fleet that fits.
pub const TOLERANCE: u64 = 1000;

const MIN: Size = Size::mib(256);
const MAX: Size = Size::gib(4);
const BLOCK: Size = Size::mib(2);
const HEADROOM: u8 = 10;

/// What a fleet did in a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Its guests.
    pub guests: u32,
    /// Guests and seconds in which a guest waited because the host had no more memory.
    pub waited_for_host: u64,
    /// Guests and seconds in which a guest waited because its memory had not grown yet.
    pub waited_for_step: u64,
    /// The most that all guests had together.
    pub most: Size,
    /// What all guests had together, on average over the day.
    pub average: Size,
    /// Targets that were set.
    pub targets: u64,
}

impl Outcome {
    /// `guest_seconds` in millionths of all guests and seconds.
    #[must_use]
    pub fn millionths(&self, guest_seconds: u64) -> u64 {
        (guest_seconds * 1_000_000).checked_div(u64::from(self.guests) * u64::from(DAY)).unwrap_or(0)
    }

    fn fits(&self) -> bool {
        self.millionths(self.waited_for_host) <= TOLERANCE
    }
}

fn bounds() -> Bounds {
    Bounds::new((MIN, MAX), HEADROOM, MIN, MAX.saturating_sub(MIN), BLOCK).expect("the bounds are constants")
}

/// The size that a guest gets for good when sizes are fixed: the most of its day, with the headroom.
fn fixed_size(number: u32, swing: &Swing) -> Size {
    let mut load = Load::new(number);
    let most = (0..DAY).map(|second| load.at(second, swing)).max().unwrap_or_default();
    bounds().size_for(most)
}

/// The memory of a host on which the first `guests` guests fit with fixed sizes.
#[must_use]
pub fn host_for(guests: u32) -> Size {
    let swing = Swing::of_a_day();
    (0..guests).map(|number| fixed_size(number, &swing)).sum()
}

struct Guest {
    load: Load,
    policy: Policy,
    size: Size,
    /// It asked for more than the host had.
    refused: bool,
    pressed: bool,
}

impl Guest {
    fn new(number: u32, swing: &Swing) -> Self {
        let mut load = Load::new(number);
        let size = bounds().size_for(load.at(0, swing));
        Self {
            load,
            policy: Policy::new(bounds(), Pace::DEFAULT, size),
            size,
            refused: false,
            pressed: false,
        }
    }

    /// One second. `free` is the host's memory that no guest has.
    fn tick(&mut self, second: u32, swing: &Swing, free: &mut Size, outcome: &mut Outcome) {
        self.take(free);
        let wanted = self.load.at(second, swing);
        self.pressed = wanted > self.size;
        if self.pressed {
            let waited =
                if self.refused { &mut outcome.waited_for_host } else { &mut outcome.waited_for_step };
            *waited += 1;
        }
        let sample = Sample {
            at: TICK * second,
            size: self.size,
            available: self.size.saturating_sub(wanted),
            pressed: self.pressed,
            blocked: false,
        };
        outcome.targets += u64::from(self.policy.decide(sample) != Decision::Keep);
    }

    /// Takes from the host, or gives back, what the target of the second before asks for.
    fn take(&mut self, free: &mut Size) {
        let target = self.policy.target();
        let whole = Size(free.0 / BLOCK.0 * BLOCK.0);
        let size = target.min(Size(self.size.0.saturating_add(whole.0)));
        self.refused = size < target;
        *free = Size(free.0 + self.size.0 - size.0);
        self.size = size;
    }
}

/// A day of `guests` guests on a host with `host` of memory. Guests that do not even fit at its beginning begin with
/// less than they need.
#[must_use]
pub fn day(guests: u32, host: Size) -> Outcome {
    let swing = Swing::of_a_day();
    let mut outcome = Outcome { guests, ..Outcome::default() };
    let mut free = host;
    let mut fleet: Vec<Guest> = (0..guests).map(|number| Guest::new(number, &swing)).collect();
    for guest in &mut fleet {
        guest.size = guest.size.min(free);
        free = free.saturating_sub(guest.size);
    }
    let mut total = 0_u128;
    for second in 0..DAY {
        // Another guest is the first to ask in each second.
        let first = second as usize % fleet.len().max(1);
        let (later, earlier) = fleet.split_at_mut(first);
        for guest in earlier.iter_mut().chain(later) {
            guest.tick(second, &swing, &mut free, &mut outcome);
        }
        let held = host.saturating_sub(free);
        outcome.most = outcome.most.max(held);
        total += u128::from(held.0);
    }
    outcome.average = Size(u64::try_from(total / u128::from(DAY)).unwrap_or(u64::MAX));
    outcome
}

/// The largest fleet that fits on the host where `fixed` guests of fixed sizes fit, to one in a hundred. `likely`
/// is a guess that saves time.
#[must_use]
pub fn largest(fixed: u32, likely: u32) -> Outcome {
    let host = host_for(fixed);
    let mut best = day(fixed, host);
    // The first fleet known not to fit.
    let mut above = None;
    let mut next = likely.max(fixed + 1);
    while above.is_none_or(|above| above - best.guests > (best.guests / 100).max(1)) {
        let outcome = day(next, host);
        if outcome.fits() {
            best = outcome;
        } else {
            above = Some(next);
        }
        next = match above {
            Some(above) => best.guests.midpoint(above),
            None => best.guests + best.guests / 50 + 1,
        };
    }
    best
}

#[cfg(test)]
mod tests;
