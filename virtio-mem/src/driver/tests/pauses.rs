//! What makes the next pause the first again, and what a new pass or a new target begins anew. Each test has one gain
//! alone: where several follow each other, one hides that another is missing.

use super::*;

fn busy(action: Action) -> Option<Outcome> {
    matches!(action, Action::Send(_)).then_some(BUSY)
}

impl Guest {
    /// Runs with `outcome` until the next pause is the fourth.
    fn pause_three_times(&mut self, mut outcome: impl FnMut(Action) -> Option<Outcome>) {
        for after_ms in [100, 200, 400] {
            let (_, idle) = self.run(&mut outcome);
            assert!(matches!(idle, Idle::Retry { after_ms: now, .. } if now == after_ms), "{idle:?}");
            self.driver.retry();
        }
    }
}

/// A guest whose driver finds 64 MiB plugged, which belong to an earlier kernel, and nothing requested.
fn after_another_kernel() -> Guest {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.config.plugged_size = 64 * MIB;
    guest.config.usable_region_size = 384 * MIB;
    let driver = DriverConfig::new(MEMORY_BLOCK, BLOCK).with_memmap_size(BLOCK);
    guest.driver = Driver::new(driver, guest.config, 0).unwrap();
    guest
}

const UNPLUG_ALL: Action = Action::Send(Request { kind: RequestKind::UnplugAll, addr: 0, nb_blocks: 0 });

#[test]
fn memory_that_is_added_ends_the_long_pauses() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(256);
    guest.pause_three_times(no_memory);
    let (actions, idle) = guest.run(|action| if action == add(0, 64) { None } else { no_memory(action) });
    assert_eq!(actions[..2], [plug(0, 64), add(0, 64)], "{actions:?}");
    assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::NoMemory), 128));
}

#[test]
fn a_device_block_that_comes_online_ends_the_long_pauses() {
    let mut guest = Guest::with(128);
    guest.resize(120);
    let holes = [offline(10), offline(20)];
    guest.run(|action| if holes.contains(&action) { None } else { unmovable(action) });
    guest.resize(128);
    let failing = |action| {
        matches!(action, Action::OnlineDeviceBlocks { .. }).then_some(Outcome::Failed(IdleReason::NoMemory))
    };
    guest.pause_three_times(failing);
    let (actions, idle) = guest.run(|action| if action == online(10, 1) { None } else { failing(action) });
    assert_eq!(actions, [plug(10, 1), online(10, 1), plug(20, 1), online(20, 1), unplug(20, 1)]);
    assert_eq!(idle, retry(100, IdleReason::NoMemory));
}

#[test]
fn a_device_block_that_goes_offline_ends_the_long_pauses() {
    let mut guest = Guest::with(128);
    guest.resize(64);
    guest.pause_three_times(unmovable);
    let one = |action| if action == offline(100) { None } else { unmovable(action).or(busy(action)) };
    assert_eq!(guest.run(one).1, retry(100, IdleReason::HostBusy));
}

#[test]
fn a_memory_block_that_is_removed_ends_the_long_pauses() {
    let mut guest = Guest::with(128);
    guest.resize(0);
    guest.pause_three_times(unmovable);
    assert_eq!(guest.run(busy), (vec![remove(0), unplug(0, 64)], retry(100, IdleReason::HostBusy)));
}

#[test]
fn an_unplug_ends_the_long_pauses() {
    let mut guest = Guest::with(256);
    guest.resize(0);
    let first = |action| if action == remove_all(0, 128) { Some(part(128, None)) } else { busy(action) };
    guest.pause_three_times(first);
    let (actions, idle) = guest.run(unmovable);
    assert_eq!((actions[0], actions[1]), (unplug(128, 64), remove(0)));
    assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::Unmovable), 128));
}

#[test]
fn an_unplug_all_ends_the_long_pauses() {
    let mut guest = after_another_kernel();
    guest.pause_three_times(busy);
    // The configuration that is read after it is not there: the target would end the pauses too.
    let mut is_acked = false;
    let (actions, idle) = guest.run(|action| {
        let unread = Outcome::Failed(IdleReason::DeviceError);
        let outcome = (is_acked && action == Action::ReadConfig).then_some(unread);
        is_acked |= action == UNPLUG_ALL;
        outcome
    });
    assert_eq!((actions, idle), (vec![UNPLUG_ALL], retry(100, IdleReason::DeviceError)));
}

/// The device unplugs and does not answer. That the target is reached shows only in the answer to STATE.
#[test]
fn a_reached_target_ends_the_long_pauses() {
    let mut guest = Guest::with(128);
    guest.resize(0);
    guest.pause_three_times(|action| match action {
        Action::Send(_) if action == state(0, 64) => {
            Some(Outcome::Response(Response::with_state(BlockState::Mixed)))
        }
        Action::Send(Request { kind: RequestKind::Unplug | RequestKind::State, .. }) => {
            Some(Outcome::NoResponse)
        }
        _ => None,
    });
    let unplugged = Outcome::Response(Response::with_state(BlockState::Unplugged));
    let (_, idle) = guest.run(|action| matches!(action, Action::Send(_)).then_some(unplugged));
    assert_eq!((idle, guest.plugged()), (retry(800, IdleReason::DeviceError), 0));
    guest.driver.retry();
    assert_eq!(guest.run(|_| None), (vec![], Idle::Reached));
    guest.driver.config_changed();
    let unread = |action| (action == Action::ReadConfig).then_some(Outcome::Failed(IdleReason::DeviceError));
    assert_eq!(guest.run(unread).1, retry(100, IdleReason::DeviceError));
}

/// The requested size, or the usable size alone.
#[test]
fn a_new_target_ends_the_long_pauses_and_the_small_requests() {
    for larger_region in [false, true] {
        let mut guest = Guest::new(8 << 30, BLOCK);
        guest.resize(4096);
        guest.pause_three_times(busy);
        if larger_region {
            guest.config.usable_region_size += 128 * MIB;
            guest.driver.config_changed();
        } else {
            guest.resize(4000);
        }
        let all = if larger_region { 2048 } else { 2000 };
        assert_eq!(guest.run(busy), (vec![plug(0, all)], retry(100, IdleReason::HostBusy)));
    }
    // A notification without a new target ends neither.
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(4096);
    guest.pause_three_times(busy);
    guest.driver.config_changed();
    assert_eq!(guest.run(busy), (vec![plug(0, 16)], retry(800, IdleReason::HostBusy)));
}

/// Memory that others free is of no use to a driver that has reached its target.
#[test]
fn a_driver_that_is_done_is_not_woken_by_freed_memory() {
    let mut guest = Guest::with(128);
    guest.driver.retry();
    assert_eq!(guest.driver.next(), Action::Idle(Idle::Reached));
}

#[test]
fn the_reason_of_a_pass_is_not_that_of_the_pass_before() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(128);
    assert_eq!(guest.run(no_memory).1, retry(100, IdleReason::NoMemory));
    guest.config.usable_region_size = 0;
    guest.driver.config_changed();
    assert_eq!(guest.run(|_| None), (vec![], Idle::Blocked(IdleReason::NoRoom)));
}

/// NACKs in a row count, not those of one pass.
#[test]
fn a_plug_that_succeeds_ends_the_row_of_nacks() {
    let mut guest = Guest::with(130);
    guest.resize(512);
    let mut nacks = Vec::new();
    let (actions, idle) = guest.run(|action| {
        let first = [plug(130, 63), plug(256, 128)].contains(&action) && !nacks.contains(&action);
        first.then(|| {
            nacks.push(action);
            NACK
        })
    });
    assert_eq!((nacks, idle), (vec![plug(130, 63), plug(256, 128)], Idle::Reached), "{actions:?}");
}

#[test]
fn a_device_that_refuses_unplug_all_is_not_asked_in_a_tight_loop() {
    let mut guest = after_another_kernel();
    let error = |action| (action == UNPLUG_ALL).then_some(ERROR);
    assert_eq!(guest.run(error), (vec![UNPLUG_ALL], retry(100, IdleReason::DeviceError)));
    assert_eq!(guest.driver.device_errors(), 1);
}

/// A guest without room for what has to move notices when memory is freed.
#[test]
fn a_guest_without_room_is_waited_for() {
    let mut guest = Guest::with(128);
    guest.resize(64);
    let no_room = |action| unmovable(action).map(|_| Outcome::Failed(IdleReason::NoRoom));
    for _ in 0..7 {
        assert!(matches!(guest.run(no_room).1, Idle::Retry { reason: IdleReason::NoRoom, .. }));
        guest.driver.retry();
    }
    assert_eq!(guest.run(no_room).1, Idle::Blocked(IdleReason::NoRoom));
}
