//! The policy step by step, and its invariants under random guests.

use std::time::Duration;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use tidevm_abi::Size;

use super::{Decision, Pace, Policy, Sample, Why};
use crate::Bounds;

const TICK: Duration = Duration::from_millis(250);
const CALM: Duration = Pace::DEFAULT.calm;
const STEP: Duration = Pace::DEFAULT.step;
const LONGEST: Duration = Pace::DEFAULT.longest;

fn policy() -> Policy {
    let sizes = (Size::mib(256), Size::gib(8));
    let bounds = Bounds::new(sizes, 10, Size::mib(256), Size::gib(8), Size::mib(2)).unwrap();
    Policy::new(bounds, Pace::DEFAULT, Size::mib(256))
}

/// A guest that gets and gives back memory at once.
struct Guest {
    policy: Policy,
    now: Duration,
    size: Size,
    pressed: bool,
    /// Below this size it gives nothing back.
    pinned: Size,
}

impl Guest {
    fn new() -> Self {
        let policy = policy();
        let (size, pinned) = (policy.target(), Size(0));
        Self { policy, now: Duration::ZERO, size, pressed: false, pinned }
    }

    /// A guest that has used `used` for long.
    fn using(used: Size) -> Self {
        let mut guest = Self::new();
        guest.size = guest.policy.bounds().size_for(used);
        guest.policy = Policy::new(guest.policy.bounds(), Pace::DEFAULT, guest.size);
        assert_eq!(guest.uses_for(used, CALM * 2), []);
        guest
    }

    fn uses(&mut self, used: Size) -> Decision {
        let blocked = self.size > self.policy.target();
        let available = self.size.saturating_sub(used);
        let (at, size, pressed) = (self.now, self.size, self.pressed || used > self.size);
        let decision = self.policy.decide(Sample { at, size, available, pressed, blocked });
        self.size = self.policy.target().max(self.pinned);
        self.now += TICK;
        decision
    }

    /// The changes while it uses `used` for `time`.
    fn uses_for(&mut self, used: Size, time: Duration) -> Vec<(Duration, Size, Why)> {
        let (start, mut changes) = (self.now, Vec::new());
        while self.now < start + time {
            let at = self.now - start;
            if let Decision::To(target, why) = self.uses(used) {
                changes.push((at, target, why));
            }
        }
        changes
    }
}

#[test]
fn memory_comes_at_once() {
    let mut guest = Guest::new();
    assert_eq!(guest.uses(Size::mib(100)), Decision::Keep);
    assert_eq!(guest.uses(Size::mib(250)), Decision::To(Size::mib(276), Why::Headroom));
    assert_eq!(guest.uses(Size::mib(250)), Decision::Keep);
    // The guest can use no more than it has.
    let changes = guest.uses_for(Size::gib(8), TICK * 20);
    assert!(changes.iter().all(|&(.., why)| why == Why::Pressure), "{changes:?}");
    assert_eq!(
        changes.iter().map(|&(at, ..)| at).collect::<Vec<_>>(),
        (0..9).map(|tick| TICK * tick).collect::<Vec<_>>()
    );
    assert_eq!(guest.size, Size::gib(8));
}

#[test]
fn a_guest_that_lacks_memory_gets_half_more_when_the_last_growth_has_arrived() {
    let mut guest = Guest::new();
    guest.pressed = true;
    assert_eq!(guest.uses(Size::mib(100)), Decision::To(Size::mib(384), Why::Pressure));
    guest.size = Size::mib(300);
    assert_eq!(guest.uses(Size::mib(100)), Decision::Keep, "it is under way");
    guest.size = Size::mib(384);
    assert_eq!(guest.uses(Size::mib(100)), Decision::To(Size::mib(576), Why::Pressure));
    guest.pressed = false;
    assert_eq!(guest.uses(Size::mib(100)), Decision::Keep);
}

#[test]
fn memory_goes_slowly_after_a_calm_time() {
    let mut guest = Guest::using(Size::mib(1000));
    let changes = guest.uses_for(Size::mib(400), CALM * 2);
    assert!(changes.iter().all(|&(.., why)| why == Why::Calm), "{changes:?}");
    assert!(changes[0].0 >= CALM - TICK, "{changes:?}");
    assert_eq!(changes[0].1, Size::mib(964), "an eighth less, in blocks");
    for pair in changes.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= STEP, "{pair:?}");
        assert!(pair[1].1 < pair[0].1, "{pair:?}");
        assert!(pair[1].1.0 >= pair[0].1.0 - pair[0].1.0 / 8, "{pair:?}");
    }
    assert_eq!(guest.size, Size::mib(440));
}

#[test]
fn a_load_that_swings_faster_than_the_calm_time_keeps_its_memory() {
    let mut guest = Guest::using(Size::mib(1000));
    for _ in 0..20 {
        assert_eq!(guest.uses_for(Size::mib(300), CALM - TICK * 2), []);
        assert_eq!(guest.uses(Size::mib(1000)), Decision::Keep);
    }
}

#[test]
fn small_differences_are_no_reason_to_shrink() {
    let mut guest = Guest::using(Size::mib(1000));
    assert_eq!(guest.uses_for(Size::mib(940), CALM * 3), []);
    assert_ne!(guest.uses_for(Size::mib(930), CALM * 3), []);
}

#[test]
fn a_new_policy_does_not_shrink_before_it_knows_the_guest() {
    let mut guest = Guest::new();
    guest.policy = Policy::new(guest.policy.bounds(), Pace::DEFAULT, Size::gib(4));
    guest.size = Size::gib(4);
    assert_eq!(guest.uses_for(Size::mib(100), CALM), []);
    assert_ne!(guest.uses(Size::mib(100)), Decision::Keep);
}

#[test]
fn a_guest_that_cannot_give_memory_back_is_asked_again_ever_later() {
    let mut guest = Guest::using(Size::mib(1000));
    guest.pinned = guest.policy.target();
    let changes = guest.uses_for(Size::mib(300), Duration::from_secs(3000));
    let asked: Vec<_> = changes.iter().filter(|&&(.., why)| why == Why::Calm).map(|&(at, ..)| at).collect();
    let waits: Vec<_> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(waits[..6], [10, 20, 40, 80, 160, LONGEST.as_secs()]);
    // Each time its target becomes what it has, so that it stops trying.
    for pair in changes.chunks(2) {
        assert!(
            matches!(pair, [(.., Why::Calm), (_, target, Why::Blocked)] if *target == guest.pinned),
            "{pair:?}"
        );
    }
    guest.pinned = Size(0);
    guest.uses_for(Size::mib(300), LONGEST + CALM * 2);
    assert!(guest.size < Size::mib(360), "{}", guest.size);
    // It is forgotten that it was blocked.
    guest.uses_for(Size::mib(1000), CALM * 10);
    guest.pinned = guest.policy.target();
    let changes = guest.uses_for(Size::mib(300), CALM * 4);
    let asked: Vec<_> = changes.iter().filter(|&&(.., why)| why == Why::Calm).map(|&(at, ..)| at).collect();
    assert!(asked[1] - asked[0] <= CALM + TICK, "{asked:?}");
}

#[test]
fn a_users_target_is_left_alone() {
    let mut guest = Guest::new();
    guest.policy.hold(Size::gib(16));
    guest.size = Size::gib(16);
    assert_eq!(guest.uses_for(Size::mib(100), CALM * 3), []);
    guest.pressed = true;
    assert_eq!(guest.uses_for(Size::gib(16), CALM * 3), []);
    guest.pressed = false;
    guest.uses_for(Size::mib(100), CALM * 2);
    guest.policy.release();
    assert_eq!(guest.uses(Size::mib(100)), Decision::To(Size::gib(8), Why::Bounds));
}

proptest! {
    #[test]
    fn a_target_is_within_the_bounds_and_made_of_blocks(
        base in 1_u64..1 << 40, min in 0_u64..1 << 40, span in 0_u64..1 << 42, block in 1_u64..1 << 32,
        headroom in 0_u8..=100,
        samples in proptest::collection::vec((0_u64..1 << 36, any::<u64>(), any::<u64>(), any::<bool>(), any::<bool>()), 1..80),
    ) {
        let (min, span) = (min / block * block, span / block * block);
        let sizes = (Size(base + min), Size(base + min + span));
        let region = Size(min + span);
        let Ok(bounds) = Bounds::new(sizes, headroom, Size(base), region, Size(block)) else { return Ok(()) };
        let mut policy = Policy::new(bounds, Pace::DEFAULT, bounds.min());
        let mut at = Duration::ZERO;
        for (step, size, available, pressed, blocked) in samples {
            at += Duration::from_nanos(step);
            let before = policy.target();
            let sample = Sample { at, size: Size(size), available: Size(available), pressed, blocked };
            let decision = policy.decide(sample);
            let target = policy.target();
            prop_assert_eq!(decision != Decision::Keep && target == before, false, "a change that is none");
            prop_assert!(bounds.min() <= target && target <= bounds.max(), "{:?} {:?}", target, bounds);
            prop_assert!((target.0 - base).is_multiple_of(block), "{:?} {:?}", target, bounds);
            // It has always the headroom that the bounds allow, and forgets what is long ago.
            prop_assert!(target >= bounds.size_for(Size(size.saturating_sub(available))));
            prop_assert!(policy.wants.len() <= 160);
        }
    }
}

/// A guest is looked at only when its available memory leaves the band, or when the policy says so. It is sized as one that is
/// looked at all the time, but for a look that comes later.
#[test]
fn a_guest_within_the_band_needs_no_look() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut guest = Guest::using(Size::mib(random.u64(200..2000)));
        let (size, target) = (guest.size, guest.policy.target());
        let band = guest.policy.band(size);
        assert_eq!(guest.policy.next_look(guest.now), None, "it is at rest");
        let look = |policy: &Policy, available: Size| {
            let (mut policy, sample) =
                (policy.clone(), Sample { at: guest.now, size, available, ..Sample::default() });
            let decision = policy.decide(sample);
            (decision, policy.next_look(guest.now))
        };
        assert!(band.below > Size(0), "it can grow: {band:?}");
        assert_eq!(look(&guest.policy, band.below), (Decision::Keep, None), "{band:?} {target}");
        let short = look(&guest.policy, Size(band.below.0 - 1));
        assert!(matches!(short, (Decision::To(to, Why::Headroom), _) if to > target), "{band:?} {short:?}");
        if let Some(above) = band.above {
            assert_eq!(look(&guest.policy, Size(above.0 - 1)), (Decision::Keep, None), "{band:?} {target}");
            let plenty = look(&guest.policy, above);
            assert_eq!(plenty, (Decision::Keep, Some(guest.now + STEP)), "{band:?} {target}");
        }
        guest.uses(Size(0));
    }
    let smallest = policy();
    assert_eq!(smallest.band(smallest.target()).above, None, "it cannot shrink");
    let largest = Policy::new(smallest.bounds(), Pace::DEFAULT, Size::gib(8));
    assert_eq!(largest.band(Size::gib(8)).below, Size(0), "it cannot grow");
}

/// Nobody has looked for an hour: the guest may have used its memory until just now.
#[test]
fn a_load_that_ends_after_a_long_time_without_looks_is_waited_out_as_any_other() {
    let mut guest = Guest::using(Size::mib(1000));
    guest.now += Duration::from_secs(3600);
    let changes = guest.uses_for(Size::mib(100), CALM * 2);
    assert!(changes[0].0 >= CALM - TICK, "{changes:?}");
}

/// A guest that is asked again in five minutes is not looked at before the last ten seconds of them.
#[test]
fn a_guest_that_cannot_give_memory_back_is_hardly_looked_at() {
    let mut guest = Guest::using(Size::mib(1000));
    guest.pinned = guest.policy.target();
    guest.uses_for(Size::mib(300), Duration::from_secs(1000));
    let next = guest.policy.next_look(guest.now).expect("a surplus");
    assert!(next >= guest.policy.next_step - CALM && next > guest.now + STEP, "{next:?} at {:?}", guest.now);
    guest.policy.hold(Size::gib(1));
    assert_eq!(guest.policy.next_look(guest.now), None);
}
