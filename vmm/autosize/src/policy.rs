//! When memory comes, and when it goes.
//!
//! | the guest | the target |
//! | --- | --- |
//! | uses so much that the headroom is gone | grows at once to the used memory and its headroom |
//! | lacks memory (failed or waiting allocations, free memory below the high watermark) | grows at once by half of its size, each time that the last growth has arrived and did not help |
//! | has used less for [`Pace::calm`] | shrinks to the most that it wanted in that time, at most an eighth per [`Pace::step`] |
//! | cannot give memory back | stays where it is, and is asked again after a time that doubles up to [`Pace::longest`] |
//!
//! A difference of less than a sixteenth of the target, or of two blocks, is no reason to shrink.
//!
//! Samples may be far apart: [`Policy::band`] says how much memory has to be available before another look is worth it, and
//! [`Policy::next_look`] when it is in any case. After more than a [`Pace::step`] without
//! a sample, what the guest wanted at the last one counts until now.

use std::collections::VecDeque;
use std::time::Duration;

use tidevm_abi::Size;

use crate::Bounds;

/// How slowly memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long a guest has to use less before memory goes.
    pub calm: Duration,
    /// Time between two steps down.
    pub step: Duration,
    /// Longest time after which a guest that could not give memory back is asked again. The first is [`Pace::calm`].
    pub longest: Duration,
}

impl Pace {
    /// The pace of real loads.
    pub const DEFAULT: Self = Self {
        calm: Duration::from_secs(10),
        step: Duration::from_secs(1),
        longest: Duration::from_secs(300),
    };
}

/// The available memory at which the policy has nothing to do, of a guest at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// Below this it grows.
    pub below: Size,
    /// From this on it may shrink; `None` if it is as small as it may be.
    pub above: Option<Size>,
}

/// A look at a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, on a clock that does not go back.
    pub at: Duration,
    /// Memory that the guest has: boot memory and what is plugged.
    pub size: Size,
    /// The part of it that can be allocated without taking it from somebody (Linux `MemAvailable`; free pages of a
    /// guest without page cache).
    pub available: Size,
    /// Allocations failed or waited since the sample before, or free memory is below the high watermark.
    pub pressed: bool,
    /// The guest stopped on its way down: pages that cannot move, no room for them, a host that is busy.
    pub blocked: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Keep,
    /// Set this target.
    To(Size, Why),
}

/// Why a target changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The used memory and its headroom do not fit.
    Headroom,
    /// The guest lacks memory.
    Pressure,
    /// The guest has used less for a while.
    Calm,
    /// The guest cannot give back what it was asked for.
    Blocked,
    /// The target lay outside the bounds.
    Bounds,
}

impl Why {
    /// As a word of events and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Headroom => "headroom",
            Self::Pressure => "pressure",
            Self::Calm => "calm",
            Self::Blocked => "blocked",
            Self::Bounds => "bounds",
        }
    }
}

/// Sizes one VM.
#[derive(Clone, Debug)]
pub struct Policy {
    bounds: Bounds,
    pace: Pace,
    target: Size,
    held: bool,
    /// What the guest wanted within [`Pace::calm`], without those that a later and larger want hides: sizes fall from front
    /// to back.
    wants: VecDeque<(Duration, Size)>,
    /// What it wanted at the last sample, and when that was.
    last: Option<(Duration, Size)>,
    /// The first sample since control was handed over.
    began: Option<Duration>,
    /// No step down before.
    next_step: Duration,
    /// A step down is under way.
    stepping: bool,
    /// The wait after the next step down that is blocked.
    back_off: Duration,
}

impl Policy {
    /// For a VM whose target is `target` now, as a total.
    #[must_use]
    pub const fn new(bounds: Bounds, pace: Pace, target: Size) -> Self {
        Self {
            bounds,
            pace,
            target,
            held: false,
            wants: VecDeque::new(),
            last: None,
            began: None,
            next_step: Duration::ZERO,
            stepping: false,
            back_off: pace.calm,
        }
    }

    /// The target, as a total.
    #[must_use]
    pub const fn target(&self) -> Size {
        self.target
    }

    /// The bounds.
    #[must_use]
    pub const fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Whether a user's target is in force.
    #[must_use]
    pub const fn held(&self) -> bool {
        self.held
    }

    /// A user gave a target, as a total, which may lie outside the bounds. It stays until [`Policy::release`].
    pub fn hold(&mut self, target: Size) {
        self.held = true;
        self.target = target;
    }

    /// The user hands control back. What the guest wanted meanwhile counts. It is known anew before memory goes.
    pub fn release(&mut self) {
        self.held = false;
        self.began = None;
    }

    /// Other bounds from now on. They do not end a hold.
    pub const fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// The available memory of a guest at rest with `size` of memory at which there is nothing to decide.
    #[must_use]
    pub fn band(&self, size: Size) -> Band {
        let available = |used: Size| size.saturating_sub(used);
        // It cannot grow further, or is so large that any use fits.
        let below = if self.target >= self.bounds.max() {
            Some(Size(0))
        } else {
            self.bounds.most_used(self.target).map(available)
        };
        let above = (self.target > self.bounds.min()).then(|| {
            let slack = self.slack();
            // Less than the slack of surplus is left when one byte more is used.
            let most = self.bounds.at_most(self.target.saturating_sub(slack));
            let surplus = self.target.saturating_sub(most) >= slack;
            surplus.then(|| self.bounds.most_used(most)).flatten().map(available)
        });
        Band { below: below.unwrap_or(size), above: above.flatten() }
    }

    /// When to take the next sample although the available memory is within [`Policy::band`]; `None`: there is no need to.
    #[must_use]
    pub fn next_look(&self, now: Duration) -> Option<Duration> {
        let surplus = self.target.saturating_sub(self.last?.1);
        if self.held || surplus < self.slack() {
            return None;
        }
        // What the guest wants long before the next step does not matter.
        let early = self.next_step.saturating_sub(self.pace.calm);
        Some(early.max(now.saturating_add(self.pace.step)))
    }

    /// A smaller difference is no reason to shrink.
    fn slack(&self) -> Size {
        Size((self.target.0 / 16).max(2 * self.bounds.block().0))
    }

    /// Takes a sample, which is not older than the sample before, and decides.
    pub fn decide(&mut self, sample: Sample) -> Decision {
        let used = sample.size.saturating_sub(sample.available);
        let mut want = self.bounds.size_for(used);
        let mut why = Why::Headroom;
        // A growth under way may be enough.
        if sample.pressed && sample.size >= self.target {
            let more = sample.size.0.saturating_add((sample.size.0 / 2).max(self.bounds.block().0));
            let more = self.bounds.at_least(Size(more));
            if more > want {
                (want, why) = (more, Why::Pressure);
            }
        }
        self.remember(sample.at, want);
        if self.held {
            return Decision::Keep;
        }
        let within = self.bounds.at_least(self.target);
        if within != self.target {
            return self.to(within.max(want), Why::Bounds);
        }
        if want > self.target {
            return self.to(want, why);
        }
        if sample.blocked && sample.size > self.target {
            return self.give_up(sample);
        }
        if self.stepping && sample.size <= self.target {
            (self.stepping, self.back_off) = (false, self.pace.calm);
        }
        self.shrink(sample)
    }

    /// Keeps `want` as long as it is one of the largest of the last [`Pace::calm`]. After a long time without samples the
    /// want before may have lasted until now.
    fn remember(&mut self, at: Duration, want: Size) {
        self.began.get_or_insert(at);
        if let Some((then, last)) = self.last.replace((at, want))
            && at.saturating_sub(then) > self.pace.step
        {
            self.insert(at, last);
        }
        self.insert(at, want);
        let calm = self.pace.calm;
        while self.wants.front().is_some_and(|&(then, _)| at.saturating_sub(then) > calm) {
            self.wants.pop_front();
        }
    }

    fn insert(&mut self, at: Duration, want: Size) {
        while self.wants.back().is_some_and(|&(_, smaller)| smaller <= want) {
            self.wants.pop_back();
        }
        self.wants.push_back((at, want));
    }

    /// Takes the present size for the target, so that the guest stops trying.
    fn give_up(&mut self, sample: Sample) -> Decision {
        self.next_step = sample.at.saturating_add(self.back_off);
        self.back_off = (self.back_off * 2).min(self.pace.longest);
        self.stepping = false;
        self.to(self.bounds.at_least(sample.size), Why::Blocked)
    }

    fn shrink(&mut self, sample: Sample) -> Decision {
        let known = self.began.is_some_and(|began| sample.at.saturating_sub(began) >= self.pace.calm);
        let most = self.wants.front().map_or(self.target, |&(_, want)| want);
        let surplus = self.target.saturating_sub(most);
        // A step that is under way has to arrive first.
        let arrived = sample.size <= self.target;
        if !known || !arrived || surplus < self.slack() || sample.at < self.next_step {
            return Decision::Keep;
        }
        let step = surplus.0.min((self.target.0 / 8).max(self.bounds.block().0));
        let target = self.bounds.at_least(self.target.saturating_sub(Size(step)));
        self.next_step = sample.at.saturating_add(self.pace.step);
        self.stepping = true;
        self.to(target, Why::Calm)
    }

    fn to(&mut self, target: Size, why: Why) -> Decision {
        if std::mem::replace(&mut self.target, target) == target {
            return Decision::Keep;
        }
        Decision::To(target, why)
    }
}

#[cfg(test)]
mod tests;
