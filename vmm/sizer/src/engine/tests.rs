//! The engine on a fake machine: its guest is at rest, on its way, or short of memory when a test says so.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidevm_abi::{Pressure, Resize, ResizeState, Size, Watch};
use tidevm_autosize::{Bounds, Pace};
use tidevm_machine::{BalloonStats, BalloonStatus, MemStatus, Ready, ResizeError, State};

use super::{Engine, GAP, PATIENCE};
use crate::target::Target;

const BASE: Size = Size::mib(256);
const PACE: Pace =
    Pace { calm: Duration::from_secs(10), step: Duration::from_secs(1), longest: Duration::from_secs(300) };

fn bounds(max: Size) -> Bounds {
    Bounds::new((BASE, max), 10, BASE, Size::gib(8), Size::mib(2)).unwrap()
}

/// A machine with a guest that answers at once, and reaches its target when it is told to.
struct Fake {
    start: Instant,
    now: Cell<Duration>,
    state: RefCell<State>,
    used: Cell<Size>,
    /// What the next answers say beside what is available.
    lacks: Cell<Pressure>,
    watches: RefCell<Vec<Watch>>,
    answers: RefCell<BTreeMap<u32, Option<Pressure>>>,
    silent: Cell<bool>,
    /// It is another kernel, which gives statistics.
    other: Cell<bool>,
    targets: RefCell<Vec<Size>>,
}

impl Fake {
    fn new() -> Self {
        let mem = MemStatus {
            region: 1 << 32,
            region_size: Size::gib(8),
            block_size: Size::mib(2),
            driver: true,
            ..MemStatus::default()
        };
        let ready = Some(Ready { cpus: 1, mem_devices: 1, after: Duration::ZERO });
        let fake = Self {
            start: Instant::now(),
            now: Cell::default(),
            state: RefCell::new(State { ready, mem: vec![mem], ..State::default() }),
            used: Cell::new(Size::mib(100)),
            lacks: Cell::default(),
            watches: RefCell::default(),
            answers: RefCell::default(),
            silent: Cell::default(),
            other: Cell::default(),
            targets: RefCell::default(),
        };
        fake.arrive();
        fake
    }

    fn mem<T>(&self, change: impl FnOnce(&mut MemStatus) -> T) -> T {
        change(&mut self.state.borrow_mut().mem[0])
    }

    /// The driver reports `state`, with `plugged`.
    fn report(&self, plugged: Size, state: ResizeState) {
        self.mem(|mem| {
            mem.plugged = plugged;
            let (region, requested, generation) = (mem.region, mem.requested, mem.generation);
            mem.seen = Some(mem.generation);
            mem.report = Some(Resize { region, plugged, requested, generation, state });
        });
    }

    /// The guest is at its target.
    fn arrive(&self) {
        let requested = self.mem(|mem| mem.requested);
        self.report(requested, ResizeState::Reached);
    }

    /// Somebody sets a target.
    fn set_target(&self, size: Size) -> u64 {
        self.targets.borrow_mut().push(size);
        self.mem(|mem| {
            (mem.requested, mem.targets, mem.generation) = (size, mem.targets + 1, mem.generation + 1);
            mem.targets
        })
    }

    /// The guest passes a level.
    fn tell(&self) {
        self.state.borrow_mut().pressures += 1;
    }

    /// What is available of its memory.
    fn available(&self) -> Size {
        Size(BASE.0 + self.mem(|mem| mem.plugged).0).saturating_sub(self.used.get())
    }

    /// Another kernel gives statistics.
    fn give_statistics(&self) {
        let (at, available) = (self.now(), Some(self.available().0));
        let alloc_stalls = Some(self.lacks.get().waited);
        let stats = Some(BalloonStats { available, alloc_stalls, ..BalloonStats::none(at) });
        let mut state = self.state.borrow_mut();
        let updates = state.balloon.map_or(1, |balloon| balloon.updates + 1);
        state.balloon =
            Some(BalloonStatus { driver: true, statistics: true, updates, stats, reporting: false });
    }

    fn pass(&self, time: Duration) {
        self.now.set(self.now.get() + time);
    }

    fn last_watch(&self) -> Watch {
        *self.watches.borrow().last().expect("a question")
    }

    fn last_target(&self) -> Option<Size> {
        self.targets.borrow().last().copied()
    }
}

impl Target for Fake {
    fn now(&self) -> Instant {
        self.start + self.now.get()
    }

    fn state(&self) -> State {
        self.state.borrow().clone()
    }

    fn reports(&self) -> bool {
        !self.other.get()
    }

    fn watch(&self, watch: Watch) -> Option<u32> {
        if self.state.borrow().paused {
            return None;
        }
        self.watches.borrow_mut().push(watch);
        let id = u32::try_from(self.watches.borrow().len()).unwrap();
        let available = self.available();
        self.answers.borrow_mut().insert(id, Some(Pressure { available, ..self.lacks.get() }));
        Some(id)
    }

    fn answer(&self, id: u32) -> Option<Option<Pressure>> {
        if self.silent.get() { None } else { self.answers.borrow_mut().remove(&id) }
    }

    fn resize_after(&self, size: Size, after: u64) -> Result<Option<u64>, ResizeError> {
        Ok((self.mem(|mem| mem.targets) == after).then(|| self.set_target(size)))
    }
}

/// Turns as the thread does until there is nothing to do for `GAP`, and returns when there is something again.
fn settle(engine: &mut Engine, fake: &Fake) -> Option<Duration> {
    for _ in 0..20 {
        let due = engine.turn(fake);
        let asked = engine.question.is_some() && !fake.silent.get();
        match due {
            Some(due) if due <= GAP => fake.pass(due),
            None if asked => {}
            due => return due,
        }
    }
    panic!("it never settles: {engine:?}");
}

fn sized(fake: &Fake) -> Engine {
    let mut engine = Engine::new(bounds(Size::gib(8)), PACE, fake);
    assert_eq!(settle(&mut engine, fake), None);
    engine
}

#[test]
fn a_guest_whose_memory_stays_within_the_band_is_asked_once() {
    let fake = Fake::new();
    let mut engine = sized(&fake);
    for _ in 0..100 {
        fake.pass(Duration::from_secs(60));
        assert_eq!(engine.turn(&fake), None);
    }
    assert_eq!((fake.watches.borrow().len(), fake.last_target()), (1, None));
    let watch = fake.last_watch();
    // 10 % of what 256 MiB have room for.
    assert!(watch.below > Size::mib(23) && watch.below < Size::mib(24), "{watch:?}");
    assert_eq!((watch.above, watch.most), (None, Size::gib(8)));
    assert_eq!(u128::from(watch.patience_millis), PATIENCE.as_millis());
}

#[test]
fn a_guest_that_passes_a_level_grows_at_once_and_is_told_new_levels_when_it_is_there() {
    let fake = Fake::new();
    let mut engine = sized(&fake);
    fake.used.set(Size::mib(250));
    fake.pass(Duration::from_secs(5));
    fake.tell();
    assert_eq!(settle(&mut engine, &fake), None);
    assert_eq!(fake.last_target(), Some(Size::mib(20)), "276M in all");
    // On its way it is not asked, even if it speaks up: what is available says little.
    fake.report(Size::mib(10), ResizeState::Reached);
    fake.tell();
    assert_eq!(settle(&mut engine, &fake), None);
    assert_eq!(fake.watches.borrow().len(), 2);
    fake.arrive();
    assert_eq!(settle(&mut engine, &fake), None);
    assert_eq!((fake.watches.borrow().len(), fake.targets.borrow().len()), (3, 1));
    let watch = fake.last_watch();
    assert!(watch.below > Size::mib(24) && watch.above > Some(Size::mib(40)), "{watch:?}");
    let status = engine.status(&fake).unwrap();
    assert_eq!((status.counts.grows, status.counts.shrinks, status.why), (1, 0, Some("headroom")));
}

#[test]
fn a_guest_that_waits_for_memory_grows_by_half_and_not_beyond_the_bounds() {
    let fake = Fake::new();
    let mut engine = Engine::new(bounds(Size::mib(512)), PACE, &fake);
    let mut sizes = Vec::new();
    fake.lacks.set(Pressure { waiting: 1, waited: 1, failed: 1, ..Pressure::default() });
    for _ in 0..5 {
        settle(&mut engine, &fake);
        sizes.push((BASE.0 + fake.last_target().unwrap().0) >> 20);
        fake.arrive();
        fake.tell();
    }
    assert_eq!(sizes, [384, 512, 512, 512, 512]);
    let watch = fake.last_watch();
    assert_eq!((watch.below, watch.patience_millis), (Size(0), 0), "nothing to wait for");
    assert_eq!(engine.status(&fake).unwrap().why, Some("pressure"));
}

/// A guest that speaks up without end is asked every 10 ms.
#[test]
fn questions_keep_their_distance() {
    let fake = Fake::new();
    let mut engine = sized(&fake);
    for _ in 0..1000 {
        fake.pass(Duration::from_millis(1));
        fake.tell();
        engine.turn(&fake);
    }
    let questions = fake.watches.borrow().len();
    assert!((90..=101).contains(&questions), "{questions}");
}

#[test]
fn memory_goes_in_steps_after_a_calm_time() {
    let fake = Fake::new();
    fake.set_target(Size::gib(1));
    fake.arrive();
    fake.targets.borrow_mut().clear();
    let mut engine = Engine::new(bounds(Size::gib(8)), PACE, &fake);
    let mut at = Vec::new();
    for _ in 0..100 {
        let due = settle(&mut engine, &fake);
        if fake.targets.borrow().len() > at.len() {
            at.push(fake.now.get());
            // While memory goes, the isolated part of it counts as used.
            fake.used.set(Size::mib(1000));
            assert_eq!(settle(&mut engine, &fake), None);
            fake.used.set(Size::mib(100));
            fake.arrive();
            continue;
        }
        let Some(due) = due else { break };
        fake.pass(due);
    }
    // A difference of less than a sixteenth is no reason.
    assert!(fake.last_target() <= Some(Size::mib(16)), "{:?}", fake.targets.borrow());
    assert!(at[0] >= PACE.calm, "{at:?}");
    assert!(at.windows(2).all(|pair| pair[1] - pair[0] >= PACE.step), "{at:?}");
    assert!(at.len() > 8, "an eighth at a time: {at:?}");
    assert_eq!(engine.status(&fake).unwrap().counts.grows, 0);
    // It is as small as it may be, and no look is due.
    assert_eq!(settle(&mut engine, &fake), None);
}

/// On the way down an allocation finds no memory: the way is over.
#[test]
fn a_guest_that_waits_while_it_shrinks_grows_at_once() {
    let fake = Fake::new();
    fake.set_target(Size::gib(1));
    fake.arrive();
    let mut engine = Engine::new(bounds(Size::gib(8)), PACE, &fake);
    while fake.last_target() == Some(Size::gib(1)) {
        let Some(due) = settle(&mut engine, &fake) else { break };
        fake.pass(due);
    }
    settle(&mut engine, &fake);
    let shrunk = fake.last_target().unwrap();
    assert!(shrunk < Size::gib(1));
    assert!(fake.last_watch().patience_millis > 0, "an allocation waits meanwhile");
    fake.lacks.set(Pressure { waiting: 1, waited: 1, failed: 1, ..Pressure::default() });
    fake.tell();
    settle(&mut engine, &fake);
    assert!(fake.last_target().unwrap() > Size::gib(1), "{:?}", fake.targets.borrow());
}

#[test]
fn a_target_of_somebody_else_is_left_alone_until_it_is_released() {
    let fake = Fake::new();
    let mut engine = sized(&fake);
    fake.set_target(Size::gib(2));
    fake.arrive();
    fake.lacks.set(Pressure { waiting: 1, failed: 1, ..Pressure::default() });
    for _ in 0..50 {
        fake.tell();
        fake.pass(Duration::from_secs(1));
        settle(&mut engine, &fake);
    }
    assert_eq!(*fake.targets.borrow(), [Size::gib(2)]);
    assert_eq!(fake.last_watch(), Watch::NOTHING, "the guest waits for nothing");
    let status = engine.status(&fake).unwrap();
    assert_eq!((status.held, status.target, status.counts.holds), (true, Size::mib(2304), 1));
    fake.lacks.set(Pressure { failed: 1, ..Pressure::default() });
    engine.release(&fake);
    assert!(!engine.status(&fake).unwrap().held);
    assert_ne!(settle(&mut engine, &fake), None, "there is a surplus to look at");
}

/// Another client sets a target between the answer of the guest and the decision.
#[test]
fn a_target_that_comes_first_is_not_replaced() {
    struct Late<'f>(&'f Fake);
    impl Target for Late<'_> {
        fn now(&self) -> Instant {
            self.0.now()
        }
        fn state(&self) -> State {
            self.0.state()
        }
        fn reports(&self) -> bool {
            true
        }
        fn watch(&self, watch: Watch) -> Option<u32> {
            self.0.watch(watch)
        }
        fn answer(&self, id: u32) -> Option<Option<Pressure>> {
            self.0.answer(id)
        }
        fn resize_after(&self, size: Size, after: u64) -> Result<Option<u64>, ResizeError> {
            self.0.set_target(Size::mib(64));
            self.0.resize_after(size, after)
        }
    }
    let fake = Fake::new();
    fake.used.set(Size::mib(250));
    let mut engine = Engine::new(bounds(Size::gib(8)), PACE, &fake);
    assert_eq!((engine.turn(&Late(&fake)), engine.turn(&Late(&fake))), (None, None));
    assert_eq!(*fake.targets.borrow(), [Size::mib(64)]);
    let status = engine.status(&fake).unwrap();
    assert_eq!((status.held, status.counts.grows), (true, 0));
}

#[test]
fn a_guest_that_cannot_give_memory_back_keeps_it() {
    let fake = Fake::new();
    fake.set_target(Size::gib(1));
    fake.arrive();
    let mut engine = Engine::new(bounds(Size::gib(8)), PACE, &fake);
    let stuck = ResizeState::Unmovable { pages: 1, first: [None; 4] };
    while fake.last_target() == Some(Size::gib(1)) {
        let Some(due) = settle(&mut engine, &fake) else { break };
        fake.pass(due);
    }
    fake.report(Size::gib(1), stuck);
    let due = settle(&mut engine, &fake);
    assert_eq!(fake.last_target(), Some(Size::gib(1)), "{:?}", fake.targets.borrow());
    assert_eq!(engine.status(&fake).unwrap().why, Some("blocked"));
    assert_eq!(due, None);
    fake.arrive();
    assert!(settle(&mut engine, &fake).is_some(), "it is asked again later");
}

#[test]
fn a_guest_that_is_reset_is_asked_anew_and_one_that_stands_still_is_not() {
    let fake = Fake::new();
    let mut engine = sized(&fake);
    fake.state.borrow_mut().resets += 1;
    assert_eq!(settle(&mut engine, &fake), None);
    assert_eq!(fake.watches.borrow().len(), 2);
    fake.state.borrow_mut().paused = true;
    fake.tell();
    fake.pass(Duration::from_secs(1));
    engine.turn(&fake);
    assert_eq!(fake.watches.borrow().len(), 2);
    fake.state.borrow_mut().paused = false;
    settle(&mut engine, &fake);
    assert_eq!(fake.watches.borrow().len(), 3);
}

/// The clock stands still with the guest, so a time to wait for would not come.
#[test]
fn a_guest_that_stands_still_is_not_waited_for() {
    let fake = Fake::new();
    fake.set_target(Size::gib(1));
    fake.arrive();
    let mut engine = Engine::new(bounds(Size::gib(8)), PACE, &fake);
    assert!(settle(&mut engine, &fake).is_some(), "it is asked again when it was calm for long");
    fake.state.borrow_mut().paused = true;
    assert_eq!(engine.turn(&fake), None);
    fake.state.borrow_mut().paused = false;
    assert!(engine.turn(&fake).is_some());
}

#[test]
fn a_guest_that_stood_still_at_the_end_is_told_later() {
    let fake = Fake::new();
    let mut engine = sized(&fake);
    fake.state.borrow_mut().paused = true;
    engine.end();
    assert_eq!(engine.turn(&fake), None);
    assert!(engine.is_on() && fake.last_watch() != Watch::NOTHING);
    fake.state.borrow_mut().paused = false;
    assert_eq!(settle(&mut engine, &fake), None);
    assert_eq!((fake.last_watch(), engine.is_on()), (Watch::NOTHING, false));
}

/// A guest that does not answer is not asked again, and its target stays.
#[test]
fn a_silent_guest_costs_one_question() {
    let fake = Fake::new();
    fake.silent.set(true);
    let mut engine = Engine::new(bounds(Size::gib(8)), PACE, &fake);
    for _ in 0..100 {
        fake.pass(Duration::from_secs(1));
        fake.tell();
        assert_eq!(engine.turn(&fake), None);
    }
    assert_eq!((fake.watches.borrow().len(), fake.last_target()), (1, None));
}

/// The guest watches nothing any more, and a question that is open then is not left behind.
#[test]
fn an_engine_that_ends_has_the_guest_watch_nothing_and_can_begin_anew() {
    let fake = Fake::new();
    let mut engine = sized(&fake);
    engine.end();
    assert!(engine.status(&fake).is_none());
    assert_eq!(settle(&mut engine, &fake), None);
    assert_eq!((fake.last_watch(), engine.is_on()), (Watch::NOTHING, false));
    assert!(fake.answers.borrow().is_empty(), "the answer was taken");
    fake.used.set(Size::mib(250));
    fake.tell();
    settle(&mut engine, &fake);
    assert_eq!(fake.last_target(), None);
    // A target of before is no hold.
    fake.set_target(Size::mib(2));
    fake.arrive();
    engine.set_bounds(bounds(Size::gib(1)), PACE, &fake);
    settle(&mut engine, &fake);
    let status = engine.status(&fake).unwrap();
    assert_eq!((status.held, status.counts.holds, status.target), (false, 0, Size::mib(276)));
}

/// Gives statistics every 250 ms for `time`, with a turn after each.
fn look_on(engine: &mut Engine, fake: &Fake, time: Duration) {
    const PERIOD: Duration = Duration::from_millis(250);
    for _ in 0..time.as_millis() / PERIOD.as_millis() {
        fake.pass(PERIOD);
        fake.give_statistics();
        assert_eq!(engine.turn(fake), None);
    }
}

/// Statistics from before its memory is online say that it uses what it does not have yet.
#[test]
fn another_kernel_is_sized_by_its_statistics_when_it_is_at_rest() {
    const SECOND: Duration = Duration::from_secs(1);
    let fake = Fake::new();
    fake.other.set(true);
    fake.used.set(Size::mib(250));
    let mut engine = Engine::new(bounds(Size::gib(8)), PACE, &fake);
    look_on(&mut engine, &fake, Duration::from_millis(500));
    assert_eq!(fake.last_target(), None, "it has just arrived");
    look_on(&mut engine, &fake, SECOND);
    assert_eq!(*fake.targets.borrow(), [Size::mib(20)]);
    // All of the new memory is plugged and none of it is online.
    fake.arrive();
    fake.used.set(Size::mib(270));
    look_on(&mut engine, &fake, Duration::from_millis(500));
    fake.used.set(Size::mib(250));
    look_on(&mut engine, &fake, SECOND);
    assert_eq!(*fake.targets.borrow(), [Size::mib(20)]);
    // Its allocations stall.
    fake.lacks.set(Pressure { waited: 1, ..Pressure::default() });
    look_on(&mut engine, &fake, SECOND);
    assert_eq!(fake.last_target(), Some(Size::mib(158)), "half of 276M more");
    fake.arrive();
    look_on(&mut engine, &fake, SECOND);
    // The load ends.
    fake.used.set(Size::mib(100));
    for _ in 0..30 {
        look_on(&mut engine, &fake, SECOND);
        fake.arrive();
    }
    assert!(fake.last_target() <= Some(Size::mib(16)), "{:?}", fake.targets.borrow());
    let status = engine.status(&fake).unwrap();
    assert_eq!((status.counts.pressures, status.held, status.counts.grows), (1, false, 2));
    assert!(fake.watches.borrow().is_empty(), "it takes no questions");
}

/// It does not say why it goes no further.
#[test]
fn another_kernel_that_does_not_move_keeps_its_memory() {
    let fake = Fake::new();
    fake.other.set(true);
    fake.set_target(Size::gib(1));
    fake.arrive();
    let mut engine = Engine::new(bounds(Size::gib(8)), PACE, &fake);
    look_on(&mut engine, &fake, PACE.calm + Duration::from_secs(2));
    assert!(fake.last_target() < Some(Size::gib(1)));
    look_on(&mut engine, &fake, Duration::from_secs(6));
    assert_eq!(fake.last_target(), Some(Size::gib(1)));
    assert_eq!(engine.status(&fake).unwrap().why, Some("blocked"));
}
