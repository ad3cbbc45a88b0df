//! The policy of the driver, action by action, against outcomes that each test chooses. This file has the runs
//! without failures; the files in `tests/` have failures of the device and of the guest, large memory
//! blocks, actions on many memory blocks, devices of other shapes, searches by STATE, requests that go together, and the work
//! that a step costs.

mod device;
mod flight;
mod guest;
mod large;
mod pauses;
mod ranges;
mod search;
mod shapes;
mod work;

use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::wire::{BlockState, Response, ResponseType};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const MEMORY_BLOCK: u64 = 128 * MIB;
const ADDR: u64 = 4 << 30;

const ACK: Outcome = Outcome::Response(Response::new(ResponseType::Ack));
const NACK: Outcome = Outcome::Response(Response::new(ResponseType::Nack));
const BUSY: Outcome = Outcome::Response(Response::new(ResponseType::Busy));
const ERROR: Outcome = Outcome::Response(Response::new(ResponseType::Error));

/// A guest: a driver and the configuration space that it reads.
struct Guest {
    driver: Driver,
    config: Config,
    /// The plugged size that the device gives, if it is not what the driver believes.
    told: Option<u64>,
    generation: u32,
}

impl Guest {
    fn new(region_size: u64, memmap_size: u64) -> Guest {
        let config = Config {
            block_size: BLOCK,
            node_id: 0,
            addr: ADDR,
            region_size,
            usable_region_size: 0,
            plugged_size: 0,
            requested_size: 0,
        };
        let memory_block_size = if memmap_size > BLOCK { memmap_size * 64 } else { MEMORY_BLOCK };
        let driver = DriverConfig::new(memory_block_size, BLOCK).with_memmap_size(memmap_size);
        Guest { driver: Driver::new(driver, config, 0).unwrap(), config, told: None, generation: 0 }
    }

    /// A guest of 8 GiB with `plugged` MiB plugged and in use.
    fn with(plugged: u64) -> Guest {
        let mut guest = Guest::new(8 << 30, BLOCK);
        guest.resize(plugged);
        assert_eq!(guest.run(|_| None).1, Idle::Reached);
        guest
    }

    fn resize(&mut self, mib: u64) {
        self.config.requested_size = mib * MIB;
        self.generation += 1;
        let usable = (mib + 256) * MIB;
        self.config.usable_region_size =
            self.config.usable_region_size.max(usable.min(self.config.region_size));
        self.driver.config_changed();
    }

    /// Completes the next action with `outcome`, or with success where `outcome` returns `None`.
    fn step(&mut self, outcome: impl FnOnce(Action) -> Option<Outcome>) -> Action {
        let action = self.driver.next();
        if let Action::Idle(_) = action {
            return action;
        }
        assert_eq!(self.driver.next(), action, "the same until it is completed");
        let outcome = outcome(action).unwrap_or(match action {
            Action::ReadConfig => {
                let plugged_size = self.told.unwrap_or(self.driver.plugged_size());
                Outcome::Config(Config { plugged_size, ..self.config }, self.generation)
            }
            Action::Send(_) => ACK,
            _ => Outcome::Done,
        });
        let rooms = self.driver.sets().map(Runs::room);
        self.driver.complete(outcome);
        let grown = self.driver.sets().map(Runs::room).into_iter().zip(rooms).any(|(now, then)| now > then);
        assert!(!grown, "memory was reserved before {action:?}");
        assert!(self.driver.sets().map(Runs::room).into_iter().all(|room| room >= self.driver.room));
        action
    }

    /// Takes steps that succeed up to and including `last`.
    fn step_until(&mut self, last: Action) {
        let mut step = || self.step(|_| None);
        let actions: Vec<_> =
            core::iter::repeat_with(&mut step).take(300).take_while(|&action| action != last).collect();
        assert!(actions.len() < 300, "{last:?} is not among {actions:?}");
    }

    /// Runs until the driver is idle. Returns the actions other than reads of the configuration.
    fn run(&mut self, mut outcome: impl FnMut(Action) -> Option<Outcome>) -> (Vec<Action>, Idle) {
        let mut actions = Vec::new();
        for _ in 0..10_000 {
            match self.step(&mut outcome) {
                Action::Idle(idle) => return (actions, idle),
                Action::ReadConfig => {}
                action => actions.push(action),
            }
        }
        panic!("not idle after {actions:?}");
    }

    fn plugged(&self) -> u64 {
        self.driver.plugged_size() / MIB
    }
}

fn addr(mib: u64) -> u64 {
    ADDR + mib * MIB
}

fn plug(mib: u64, nb_blocks: u16) -> Action {
    Action::Send(Request { kind: RequestKind::Plug, addr: addr(mib), nb_blocks })
}

fn unplug(mib: u64, nb_blocks: u16) -> Action {
    Action::Send(Request { kind: RequestKind::Unplug, addr: addr(mib), nb_blocks })
}

fn state(mib: u64, nb_blocks: u16) -> Action {
    Action::Send(Request { kind: RequestKind::State, addr: addr(mib), nb_blocks })
}

fn add(mib: u64, blocks: u64) -> Action {
    Action::AddMemoryBlocks { addr: addr(mib), size: blocks * BLOCK, fresh: true }
}

/// The same for a memory block whose reserve was used before, or that has no reserve.
fn add_used(mib: u64, blocks: u64) -> Action {
    Action::AddMemoryBlocks { addr: addr(mib), size: blocks * BLOCK, fresh: false }
}

fn online(mib: u64, blocks: u64) -> Action {
    Action::OnlineDeviceBlocks { addr: addr(mib), size: blocks * BLOCK }
}

fn offline(mib: u64) -> Action {
    Action::OfflineDeviceBlocks { addr: addr(mib), size: BLOCK }
}

/// One memory block.
fn remove(mib: u64) -> Action {
    remove_all(mib, MEMORY_BLOCK / BLOCK)
}

fn remove_all(mib: u64, blocks: u64) -> Action {
    Action::RemoveMemoryBlocks { addr: addr(mib), size: blocks * BLOCK }
}

/// The outcome of an action of which `mib` MiB were carried out.
fn part(mib: u64, failed: Option<IdleReason>) -> Outcome {
    Outcome::Part { done: mib * MIB, failed }
}

fn retry(after_ms: u32, reason: IdleReason) -> Idle {
    Idle::Retry { after_ms, reason }
}

fn unmovable(action: Action) -> Option<Outcome> {
    let frees = matches!(action, Action::OfflineDeviceBlocks { .. } | Action::RemoveMemoryBlocks { .. });
    frees.then_some(Outcome::Failed(IdleReason::Unmovable))
}

fn no_memory(action: Action) -> Option<Outcome> {
    matches!(action, Action::AddMemoryBlocks { .. }).then_some(Outcome::Failed(IdleReason::NoMemory))
}

/// The answers to STATE of a device on which the device blocks for which `is_plugged` holds are plugged.
fn telling(is_plugged: impl Fn(u64) -> bool) -> impl Fn(Action) -> Option<Outcome> {
    move |action| {
        let Action::Send(Request { kind: RequestKind::State, addr: at, nb_blocks }) = action else {
            return None;
        };
        let first = (at - ADDR) / BLOCK;
        let plugged = (first..first + u64::from(nb_blocks)).filter(|&block| is_plugged(block)).count();
        Some(Outcome::Response(Response::with_state(match plugged {
            0 => BlockState::Unplugged,
            plugged if plugged == usize::from(nb_blocks) => BlockState::Plugged,
            _ => BlockState::Mixed,
        })))
    }
}

#[test]
fn grows_by_one_request_and_shrinks_from_the_top() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    assert_eq!(guest.driver.next(), Action::Idle(Idle::Reached));
    guest.resize(384);
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions, [plug(0, 192), add(0, 192)]);
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 384));

    guest.resize(128);
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions, [remove_all(128, 128), unplug(128, 128)]);
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 128));
}

#[test]
fn a_partial_memory_block_starts_with_its_memmap_and_ends_with_it() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(130);
    assert_eq!(guest.run(|_| None).0, [plug(0, 65), add(0, 64), add(128, 1)]);
    guest.resize(140);
    assert_eq!(guest.run(|_| None).0, [plug(130, 5), online(130, 5)]);
    guest.resize(134);
    assert_eq!(guest.run(|_| None).0, [offline(138), offline(136), offline(134), unplug(134, 3)]);
    guest.resize(130);
    assert_eq!(guest.run(|_| None).0, [offline(132), offline(130), unplug(130, 2)]);
    guest.resize(128);
    assert_eq!(guest.run(|_| None).0, [remove(128), unplug(128, 1)]);
}

#[test]
fn holes_are_filled_lowest_first_and_before_new_memory_blocks() {
    let mut guest = Guest::with(256);
    guest.resize(128);
    // Only the device blocks at 10, 12, 20 and 200 MiB can go offline.
    let loose = |action| match action {
        Action::OfflineDeviceBlocks { addr: at, .. }
            if [addr(10), addr(12), addr(20), addr(200)].contains(&at) =>
        {
            None
        }
        action => unmovable(action),
    };
    let (actions, idle) = guest.run(loose);
    let unplugged: Vec<_> = actions.into_iter().filter(|action| matches!(action, Action::Send(_))).collect();
    assert_eq!(unplugged, [unplug(200, 1), unplug(20, 1), unplug(10, 2)]);
    assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::Unmovable), 248));

    guest.resize(384);
    let (actions, _) = guest.run(|_| None);
    let mut expected = vec![plug(10, 2), online(10, 2), plug(20, 1), online(20, 1), plug(200, 1)];
    expected.extend([online(200, 1), plug(256, 64), add(256, 64)]);
    assert_eq!(actions, expected);
}

#[test]
fn a_request_for_more_than_it_can_name_ends_with_a_whole_memory_block() {
    let mut guest = Guest::new(256 << 30, BLOCK);
    guest.resize(256 << 10);
    let (actions, idle) = guest.run(|_| None);
    let sent: Vec<_> = actions.into_iter().filter(|action| matches!(action, Action::Send(_))).collect();
    assert_eq!(sent, [plug(0, 65472), plug(65472 * 2, 65472), plug(65472 * 4, 128)]);
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 256 << 10));
}

#[test]
fn a_target_that_moves_turns_blocks_around() {
    // The target falls while device blocks are on their way in.
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(512);
    guest.step_until(plug(0, 256));
    assert_eq!(guest.step(|_| Some(part(128, None))), add(0, 256));
    guest.resize(192);
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions, [unplug(192, 160), add(128, 32)]);
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 192));

    // The target rises while device blocks are on their way out.
    guest.resize(0);
    guest.step_until(remove(128));
    guest.resize(192);
    assert_eq!(guest.run(|_| None), (vec![add_used(128, 32)], Idle::Reached));
    guest.resize(176);
    guest.step_until(offline(190));
    guest.resize(192);
    assert_eq!(guest.run(|_| None), (vec![online(190, 1)], Idle::Reached));

    // The target falls further: the whole memory block goes, including its device blocks that are offline already.
    guest.resize(176);
    guest.step_until(offline(190));
    guest.resize(128);
    assert_eq!(guest.run(|_| None), (vec![unplug(190, 1), remove(128), unplug(128, 31)], Idle::Reached));
}

#[test]
fn a_failure_that_a_new_target_may_have_caused_is_not_held_against_a_block() {
    let mut guest = Guest::with(256);
    guest.resize(192);
    guest.step(|_| None);
    assert_eq!(guest.driver.next(), offline(254));
    guest.resize(250);
    guest.driver.complete(Outcome::Failed(IdleReason::Unmovable));
    assert_eq!(guest.driver.next(), Action::ReadConfig);
    let (actions, _) = guest.run(|_| None);
    assert_eq!(actions, [offline(254), offline(252), offline(250), unplug(250, 3)]);
}

#[test]
fn without_a_memmap_inside_the_last_device_block_takes_the_memory_block_along() {
    let mut guest = Guest::new(1 << 30, 0);
    guest.resize(6);
    assert_eq!(guest.run(|_| None).0, [plug(0, 3), add_used(0, 3)]);
    guest.resize(4);
    assert_eq!(guest.run(|_| None).0, [offline(4), unplug(4, 1)]);
    guest.resize(0);
    let mut removals = 0;
    let first_removal = |action| {
        removals += u32::from(action == remove(0));
        (action == remove(0) && removals == 1).then_some(Outcome::Failed(IdleReason::NoRoom))
    };
    assert_eq!(
        guest.run(first_removal),
        (vec![remove(0), offline(2), remove(0), unplug(0, 2)], Idle::Reached)
    );
    // The last device block does not go by itself, so no memory block stays added with nothing plugged.
    guest.resize(6);
    guest.run(|_| None);
    guest.resize(0);
    let no_removal = |action| (action == remove(0)).then_some(Outcome::Failed(IdleReason::NoRoom));
    let (actions, idle) = guest.run(no_removal);
    assert_eq!(actions, [remove(0), offline(4), offline(2), remove(0), unplug(2, 2)]);
    assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::NoRoom), 2));
    // With a page that cannot be moved above it, it goes as any other.
    guest.resize(4);
    guest.run(|_| None);
    guest.resize(0);
    let loose = |action| if action == offline(0) { None } else { unmovable(action) };
    assert_eq!(guest.run(loose).0, [remove(0), offline(2), offline(0), unplug(0, 1)]);
}

#[test]
fn a_full_usable_region_blocks() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(512);
    guest.config.usable_region_size = 130 * MIB;
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions, [plug(0, 65), add(0, 64), add(128, 1)]);
    assert_eq!((idle, guest.plugged()), (Idle::Blocked(IdleReason::NoRoom), 130));
    guest.config.usable_region_size = 512 * MIB;
    guest.driver.config_changed();
    assert_eq!(guest.run(|_| None).1, Idle::Reached);
}

#[test]
#[should_panic(expected = "Done does not complete ReadConfig")]
fn an_outcome_of_another_action_is_a_bug_of_the_caller() {
    let mut guest = Guest::new(1 << 30, BLOCK);
    guest.driver.config_changed();
    guest.step(|_| Some(Outcome::Done));
}

/// A target that is set while an action is under way is read after the action. Until then the driver speaks of the
/// target before, even if both have the same size.
#[test]
fn the_driver_names_the_generation_of_the_target_that_it_read() {
    let mut guest = Guest::with(256);
    let first = guest.driver.generation();
    assert_eq!(first, guest.generation);
    guest.resize(0);
    assert_eq!(guest.step(|_| None), Action::ReadConfig);
    let shrinking = guest.driver.next();
    assert!(matches!(shrinking, Action::RemoveMemoryBlocks { .. }), "{shrinking:?}");
    guest.resize(256);
    assert_eq!((guest.driver.generation(), guest.generation), (first + 1, first + 2));
    assert_eq!(guest.step(|_| None), shrinking);
    assert_eq!((guest.driver.requested_size(), guest.driver.generation()), (0, first + 1));
    assert_eq!(guest.run(|_| None).1, Idle::Reached);
    assert_eq!((guest.driver.generation(), guest.plugged()), (first + 2, 256));
    // The same size again is read all the same.
    guest.resize(256);
    assert_eq!(guest.run(|_| None), (vec![], Idle::Reached));
    assert_eq!(guest.driver.generation(), first + 3);
}
