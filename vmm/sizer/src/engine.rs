//! When the guest is asked how much memory it has left, and what is done about its answers.
//!
//! A guest at rest is told the levels at which there is something to decide, and the answer to that is the sample. The next
//! sample is taken when the guest passes a level, when its region is at rest again after a target, or when the policy wants
//! another look. While memory comes or goes, what is available says little, because pages that are isolated or not yet
//! online count as used; then only allocations that wait are a reason.
//!
//! Other kernels are not asked and do not report. Their samples are the statistics of a virtio-balloon device, as often as the
//! device asks for them. Such a guest is at rest some time after it has arrived, or when it has not moved for long.
//!
//! Invariants: at most one question is open. Two questions are at least [`GAP`] apart, whatever the guest says. A target is
//! set only after the last one that the engine knows of, so it never replaces a target of somebody else.

use std::time::{Duration, Instant};

use tidevm_abi::{Pressure, ResizeState, Size, Watch};
use tidevm_autosize::{Band, Bounds, Decision, Pace, Policy, Sample, Why};
use tidevm_machine::{MemStatus, State};

use crate::ledger::Ledger;
use crate::status::{Counts, Status};
use crate::target::{REGION, Target};

/// Least time from one question to the next.
const GAP: Duration = Duration::from_millis(10);

/// How long after its arrival another kernel has put its memory online.
const SETTLE: Duration = Duration::from_millis(500);

/// How long another kernel may be on its way without a move before it counts as blocked.
const STUCK: Duration = Duration::from_secs(5);

/// How long an allocation of a workload waits for memory.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A question to the guest.
#[derive(Clone, Copy, Debug)]
struct Question {
    id: u32,
    /// The guest was at rest.
    at_rest: bool,
}

/// What a look at the guest is for: it is worth another one when this changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scene {
    targets: u64,
    plugged: Size,
    at_rest: bool,
}

/// Sizes one VM.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    began: Instant,
    /// The number of the last target that it set or stepped back for.
    known: u64,
    question: Option<Question>,
    /// The scene of the last question.
    scene: Option<Scene>,
    /// [`State::pressures`] at the last question.
    told: u64,
    /// The last statistics of the balloon that were taken.
    updates: u64,
    /// Of another kernel: its target and what was plugged, since when.
    moved: (u64, Size, Duration),
    /// [`State::resets`] that it knows of.
    resets: u64,
    /// When the last question was asked, and when the next one is due in any case.
    asked: Option<Duration>,
    due: Option<Duration>,
    /// The guest was told to watch something.
    watching: bool,
    /// It sizes nothing any more.
    off: bool,
    last: Option<Pressure>,
    why: Option<Why>,
    counts: Counts,
    ledger: Ledger,
}

impl Engine {
    /// Sizes `target` within `bounds` from now on. What it has requested is the first target.
    pub fn new(bounds: Bounds, pace: Pace, target: &impl Target) -> Self {
        let state = target.state();
        let requested = state.mem.get(REGION).map_or(Size(0), |mem| mem.requested);
        let mut engine = Self {
            policy: Policy::new(bounds, pace, total(&bounds, requested)),
            began: target.now(),
            known: state.mem.get(REGION).map_or(0, |mem| mem.targets),
            question: None,
            scene: None,
            told: state.pressures,
            updates: 0,
            moved: (u64::MAX, Size(0), Duration::ZERO),
            resets: state.resets,
            asked: None,
            due: None,
            watching: false,
            off: false,
            last: None,
            why: None,
            counts: Counts::default(),
            ledger: Ledger::default(),
        };
        engine.enter(&state, Duration::ZERO);
        engine
    }

    /// Other bounds from now on, and no hold. After [`Engine::end`] it begins anew.
    pub fn set_bounds(&mut self, bounds: Bounds, pace: Pace, target: &impl Target) {
        if self.off {
            // An answer that is still to come is none to a question of the new one.
            let question = self.question.map(|question| Question { at_rest: false, ..question });
            *self = Self { question, watching: self.watching, ..Self::new(bounds, pace, target) };
        }
        self.policy.set_bounds(bounds);
        self.release(target);
    }

    /// Whoever sets targets hands control back.
    pub fn release(&mut self, target: &impl Target) {
        self.notice(&target.state());
        self.policy.release();
        // So that the guest is asked at once.
        self.scene = None;
    }

    /// The present target stays until [`Engine::release`].
    pub fn hold(&mut self, target: &impl Target) {
        self.notice(&target.state());
        if !self.policy.held() {
            self.counts.holds += 1;
            self.policy.hold(self.policy.target());
        }
    }

    /// How the VM is sized, if it is.
    pub fn status(&mut self, target: &impl Target) -> Option<Status> {
        if self.off {
            return None;
        }
        let state = target.state();
        self.notice(&state);
        self.enter(&state, target.now() - self.began);
        let bounds = self.policy.bounds();
        Some(Status {
            bounds,
            held: self.policy.held(),
            target: self.policy.target(),
            why: self.why.map(Why::as_str),
            size: size(&bounds, &state),
            range: self.ledger.range().unwrap_or_default(),
            pressure: self.last,
            counts: self.counts,
            time: self.ledger.time(),
            byte_seconds: self.ledger.byte_seconds(),
        })
    }

    /// Does what is due. Returns when to call again if nothing happens until then; `None`: there is no need to.
    pub fn turn(&mut self, target: &impl Target) -> Option<Duration> {
        let (state, now) = (target.state(), target.now() - self.began);
        self.enter(&state, now);
        self.notice(&state);
        if state.paused {
            // The clock stands still too, so no time to wait for comes.
            return None;
        }
        let mem = state.mem.get(REGION)?;
        if !target.reports() {
            self.take_statistics(target, &state, mem, now);
            return None;
        }
        self.take_answer(target, mem, now);
        if self.question.is_some() {
            return None;
        }
        if self.off || self.policy.held() {
            self.look_away(target);
            return None;
        }
        let state = target.state();
        let mem = state.mem.get(REGION)?;
        let at_rest = at_rest(mem);
        let wait = self.wait(&state, mem, at_rest, now)?;
        if wait.is_zero() {
            self.ask(target, &state, mem, at_rest, now);
            return None;
        }
        Some(wait)
    }

    /// Enters the present size into the ledger.
    fn enter(&mut self, state: &State, now: Duration) {
        self.ledger.enter(now, size(&self.policy.bounds(), state));
    }

    /// Steps back if somebody else has set a target.
    fn notice(&mut self, state: &State) {
        if self.resets != state.resets {
            // The guest that was asked is gone, and so is what it watched.
            (self.resets, self.scene, self.last, self.watching) = (state.resets, None, None, false);
        }
        if let Some(mem) = state.mem.get(REGION).filter(|mem| mem.targets != self.known) {
            self.known = mem.targets;
            self.counts.holds += 1;
            self.policy.hold(total(&self.policy.bounds(), mem.requested));
        }
    }

    /// Takes the answer to the question, if it came, and decides.
    fn take_answer(&mut self, target: &impl Target, mem: &MemStatus, now: Duration) {
        let Some(Question { id, at_rest: asked_at_rest }) = self.question else { return };
        let Some(answer) = target.answer(id) else { return };
        self.question = None;
        let Some(pressure) = answer else {
            self.scene = None;
            return;
        };
        let blocked = mem.stopped(mem.requested).is_some_and(|state| state != ResizeState::Reached);
        self.take_sample(target, mem, pressure, asked_at_rest && at_rest(mem), blocked, now);
    }

    /// Takes the statistics of another kernel, if there are new ones, and decides.
    fn take_statistics(&mut self, target: &impl Target, state: &State, mem: &MemStatus, now: Duration) {
        if (self.moved.0, self.moved.1) != (mem.targets, mem.plugged) {
            self.moved = (mem.targets, mem.plugged, now);
        }
        let Some(balloon) = state.balloon.filter(|balloon| balloon.updates != self.updates) else { return };
        self.updates = balloon.updates;
        let Some(stats) = balloon.stats else { return };
        let Some(available) = stats.available.or(stats.free) else { return };
        let waited = stats.alloc_stalls.unwrap_or(0);
        let failed = waited.saturating_add(stats.oom_kills.unwrap_or(0));
        let pressure = Pressure { available: Size(available), waited, failed, ..Pressure::default() };
        let still = now.saturating_sub(self.moved.2);
        let stuck = mem.plugged != mem.requested && still >= STUCK;
        let at_rest = mem.driver && (mem.arrived(mem.requested) && still >= SETTLE || stuck);
        self.counts.questions += 1;
        if !self.policy.held() {
            self.take_sample(target, mem, pressure, at_rest, stuck, now);
        }
    }

    /// Decides what follows from what the guest says.
    fn take_sample(
        &mut self,
        target: &impl Target,
        mem: &MemStatus,
        pressure: Pressure,
        at_rest: bool,
        blocked: bool,
        now: Duration,
    ) {
        let failed_before = self.last.replace(pressure).map(|last| last.failed);
        let failed = failed_before.is_some_and(|before| before != pressure.failed);
        let lacks = pressure.waiting > 0 || failed;
        self.counts.pressures += u64::from(lacks);
        let size = total(&self.policy.bounds(), mem.plugged);
        let shrinking = size > self.policy.target();
        if self.off || !(at_rest || shrinking && lacks) {
            return;
        }
        let pressed = lacks || pressure.available == Size(0);
        let sample = Sample { at: now, size, available: pressure.available, pressed, blocked };
        let before = self.policy.target();
        match self.policy.decide(sample) {
            Decision::Keep => self.due = self.policy.next_look(now),
            Decision::To(size, why) => self.set_target(target, before, size, why),
        }
    }

    fn set_target(&mut self, target: &impl Target, before: Size, size: Size, why: Why) {
        let requested = size.saturating_sub(self.policy.bounds().base());
        match target.resize_after(requested, self.known) {
            Ok(Some(number)) => {
                self.known = number;
                self.why = Some(why);
                let count = if size > before { &mut self.counts.grows } else { &mut self.counts.shrinks };
                *count += 1;
                log::debug!("sized automatically: {size}, because of {}", why.as_str());
            }
            // Somebody else was first.
            Ok(None) => self.notice(&target.state()),
            // The bounds are those of the region.
            Err(error) => log::warn!("sized automatically: {size} is refused: {error}"),
        }
    }

    /// How long to wait before the guest is asked; `None`: until something happens.
    fn wait(&self, state: &State, mem: &MemStatus, at_rest: bool, now: Duration) -> Option<Duration> {
        let news = self.scene != Some(scene(mem, at_rest)) || state.pressures != self.told;
        let due = if news && (at_rest || self.shrinks(mem)) {
            now
        } else if at_rest {
            self.due?
        } else {
            return None;
        };
        let due = self.asked.map_or(due, |asked| due.max(asked + GAP));
        Some(due.saturating_sub(now))
    }

    fn shrinks(&self, mem: &MemStatus) -> bool {
        total(&self.policy.bounds(), mem.plugged) > self.policy.target()
    }

    /// Asks the guest, and tells it what to watch.
    fn ask(&mut self, target: &impl Target, state: &State, mem: &MemStatus, at_rest: bool, now: Duration) {
        let bounds = self.policy.bounds();
        let size = total(&bounds, mem.plugged);
        let Band { below, above } =
            if at_rest { self.policy.band(size) } else { Band { below: Size(0), above: None } };
        let can_grow = size < bounds.max() || self.policy.target() < bounds.max();
        let patience = if can_grow { PATIENCE } else { Duration::ZERO };
        let patience_millis = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        let Some(id) = target.watch(Watch { below, above, patience_millis, most: bounds.max() }) else {
            return;
        };
        self.counts.questions += 1;
        self.question = Some(Question { id, at_rest });
        self.scene = Some(scene(mem, at_rest));
        (self.told, self.asked, self.due, self.watching) = (state.pressures, Some(now), None, true);
    }

    /// Has the guest watch nothing. Its answer says nothing either.
    fn look_away(&mut self, target: &impl Target) {
        if self.watching
            && let Some(id) = target.watch(Watch::NOTHING)
        {
            self.question = Some(Question { id, at_rest: false });
            self.watching = false;
        }
    }

    /// Sizes nothing any more. The next turns tell the guest.
    pub fn end(&mut self) {
        self.off = true;
    }

    /// Whether there may be something to do when the VM changes.
    pub fn is_on(&self) -> bool {
        !self.off || self.question.is_some() || self.watching
    }
}

/// Boot memory and `hotplug`.
fn total(bounds: &Bounds, hotplug: Size) -> Size {
    Size(bounds.base().0.saturating_add(hotplug.0))
}

fn size(bounds: &Bounds, state: &State) -> Size {
    total(bounds, state.mem.get(REGION).map_or(Size(0), |mem| mem.plugged))
}

/// Whether the guest has settled for its target, or said why not.
fn at_rest(mem: &MemStatus) -> bool {
    mem.stopped(mem.requested).is_some()
}

fn scene(mem: &MemStatus, at_rest: bool) -> Scene {
    Scene { targets: mem.targets, plugged: mem.plugged, at_rest }
}

#[cfg(test)]
mod tests;
