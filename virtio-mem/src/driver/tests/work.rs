//! The work of the driver: the runs that it looks at. It follows the number of runs and of steps, not the size of the
//! region.

use super::*;

/// Most runs that a step looks at when there are few.
const OF_A_STEP: u64 = 8;
/// Most binary searches of a step.
const SEARCHES: u64 = 6;

impl Guest {
    fn visited(&self) -> u64 {
        let region = &self.driver.region;
        [&region.online, &region.strays, &region.parked, &region.holes, &self.driver.scraps]
            .iter()
            .map(|set| set.visited.get())
            .sum()
    }

    fn capacities(&self) -> Vec<(usize, usize)> {
        let region = &self.driver.region;
        [&region.online, &region.strays, &region.parked, &region.holes]
            .iter()
            .map(|set| set.capacities())
            .collect()
    }

    /// Runs until the driver is idle, of which it may take `most` steps. Returns the steps, and how many runs were looked at.
    fn work(&mut self, most: u32, mut outcome: impl FnMut(Action) -> Option<Outcome>) -> (u64, u64) {
        let before = self.visited();
        for steps in 0..most {
            if let Action::Idle(_) = self.step(&mut outcome) {
                return (steps.into(), self.visited() - before);
            }
        }
        panic!("not idle after {most} steps");
    }
}

#[test]
fn a_region_without_holes_costs_a_few_looks_a_step() {
    for gib in [16, 256, 16 << 10] {
        let mut guest = Guest::new(gib << 30, BLOCK);
        guest.resize(gib << 10);
        let (steps, visited) = guest.work(300, |_| None);
        assert!(visited <= OF_A_STEP * steps, "{gib} GiB up: {visited} in {steps}");
        guest.resize(0);
        let (steps, visited) = guest.work(5000, |_| None);
        assert!(
            steps <= 2 + 2 * gib.div_ceil(8) && visited <= OF_A_STEP * steps,
            "{gib} GiB down: {visited} in {steps}"
        );
    }
}

/// One device block comes and goes, at the end of what is plugged and in a hole: the same work in each region, however large.
#[test]
fn a_single_device_block_costs_the_same_in_every_region() {
    let work = |gib: u64| -> Vec<u64> {
        let mut guest = Guest::new(gib << 30, BLOCK);
        let half = gib << 9;
        guest.resize(half);
        guest.work(300, |_| None);
        let mut looks = Vec::new();
        let mut change = |guest: &mut Guest, mib, outcome: fn(Action) -> Option<Outcome>| {
            guest.resize(mib);
            let (steps, visited) = guest.work(10, outcome);
            assert!(visited <= 20 * OF_A_STEP, "{gib} GiB to {mib} MiB: {visited} in {steps}");
            looks.extend([steps, visited]);
        };
        let in_the_middle = |action| match action {
            Action::OfflineDeviceBlocks { addr: at, .. } if at >= addr(0) && (at / BLOCK) % 64 == 61 => None,
            action => unmovable(action),
        };
        change(&mut guest, half + 2, |_| None);
        change(&mut guest, half, |_| None);
        change(&mut guest, half - 2, in_the_middle);
        change(&mut guest, half, |_| None);
        // A device that gives another number, and a driver that looks into it by what it believes.
        guest.told = Some((half + 2) * MIB);
        let boundary = half * MIB / BLOCK;
        guest.driver.config_changed();
        let (steps, visited) = guest.work(300, telling_runs(boundary));
        let requests = (gib << 30) / BLOCK / u64::from(u16::MAX) + 2;
        assert!(steps <= 2 + requests && visited <= 2 * OF_A_STEP * steps, "{visited} in {steps}");
        looks
    };
    assert_eq!(work(16), work(16 << 10));
}

/// The answers of a device on which the first `plugged` device blocks are plugged, without counting them.
fn telling_runs(plugged: u64) -> impl Fn(Action) -> Option<Outcome> {
    move |action| {
        let Action::Send(Request { kind: RequestKind::State, addr: at, nb_blocks }) = action else {
            return None;
        };
        let (first, end) = ((at - ADDR) / BLOCK, (at - ADDR) / BLOCK + u64::from(nb_blocks));
        Some(Outcome::Response(Response::with_state(match plugged {
            _ if end <= plugged => BlockState::Plugged,
            _ if first >= plugged => BlockState::Unplugged,
            _ => BlockState::Mixed,
        })))
    }
}

/// Every second device block has a page that cannot be moved. A pass then has as many steps as there are device blocks.
#[test]
fn a_pass_over_many_runs_moves_each_once() {
    let pinned = |action| match action {
        Action::OfflineDeviceBlocks { addr: at, .. } if (at - ADDR) / BLOCK % 2 == 1 => None,
        action => unmovable(action),
    };
    for gib in [1, 8, 32] {
        let mut guest = Guest::new(gib << 30, BLOCK);
        guest.resize(gib << 10);
        guest.run(|_| None);
        guest.resize(0);
        let blocks = gib << 9;
        let (steps, visited) = guest.work(2 * blocks as u32, pinned);
        let runs = guest.driver.region.online.len() as u64;
        // A memory block begins with its memmap, which does not go.
        assert_eq!(runs, blocks / 2);
        assert!(visited <= SEARCHES * steps * u64::from(runs.ilog2()), "{gib} GiB: {visited} in {steps}");
        // The next pass finds nothing that goes.
        guest.driver.retry();
        let (steps, visited) = guest.work(2 * blocks as u32, unmovable);
        assert!(
            visited <= SEARCHES * steps * u64::from(runs.ilog2()),
            "{gib} GiB again: {visited} in {steps}"
        );
        // A target that no memory block fits is not looked for in each step.
        guest.resize((gib << 9) - 20);
        let (steps, visited) = guest.work(2 * blocks as u32, unmovable);
        assert!(
            visited <= SEARCHES * steps * u64::from(runs.ilog2()),
            "{gib} GiB, a bit: {visited} in {steps}"
        );
    }
}

/// What the device or the guest has done must be recorded, so the driver makes room for that before it asks for it.
#[test]
fn no_outcome_takes_memory_to_record() {
    let odd = |action| match action {
        Action::OfflineDeviceBlocks { addr: at, .. } if (at - ADDR) / BLOCK % 2 == 1 => None,
        action => unmovable(action),
    };
    let mut guest = Guest::new(1 << 30, BLOCK);
    for (mib, outcome) in [(1000, None), (0, Some(odd)), (1024, None), (0, Some(odd)), (0, None)] {
        guest.resize(mib);
        for _ in 0..2000 {
            if let Action::Idle(_) = guest.driver.next() {
                break;
            }
            let before = guest.capacities();
            guest.step(|action| outcome.and_then(|outcome| outcome(action)));
            assert_eq!(guest.capacities(), before);
        }
        assert!(matches!(guest.driver.next(), Action::Idle(_)));
    }
    assert_eq!(guest.plugged(), 0);
}
