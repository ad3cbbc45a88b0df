//! Failures of the guest: no memory, or pages that cannot be moved.

use super::*;

#[test]
fn what_could_not_be_added_goes_back() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(1024);
    let third = |action| match action {
        action if action == add(0, 512) => Some(part(256, Some(IdleReason::NoMemory))),
        action if action == add(256, 64) => Some(Outcome::Failed(IdleReason::NoMemory)),
        _ => None,
    };
    let (actions, idle) = guest.run(third);
    assert_eq!(actions, [plug(0, 512), add(0, 512), unplug(256, 384)]);
    assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::NoMemory), 256));

    guest.driver.retry();
    let (actions, idle) = guest.run(third);
    assert_eq!(
        actions,
        [plug(256, 64), add(256, 64), unplug(256, 64)],
        "no more than shows whether it works"
    );
    assert_eq!(idle, retry(200, IdleReason::NoMemory));

    guest.driver.retry();
    assert_eq!(guest.run(|_| None).1, Idle::Reached);
}

#[test]
fn what_could_not_be_onlined_goes_back() {
    let mut guest = Guest::with(2);
    guest.resize(10);
    let failing = |action| {
        matches!(action, Action::OnlineDeviceBlocks { .. }).then_some(Outcome::Failed(IdleReason::NoMemory))
    };
    let (actions, idle) = guest.run(failing);
    assert_eq!(actions, [plug(2, 4), online(2, 4), unplug(2, 4)]);
    assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::NoMemory), 2));
}

#[test]
fn what_cannot_be_unplugged_is_not_sent_again_before_the_pause_is_over() {
    let mut guest = Guest::with(128);
    guest.resize(0);
    let busy = |action| matches!(action, Action::Send(_)).then_some(BUSY);
    assert_eq!(guest.run(busy), (vec![remove(0), unplug(0, 64)], retry(100, IdleReason::HostBusy)));
    guest.driver.retry();
    assert_eq!(guest.run(busy), (vec![unplug(0, 64)], retry(200, IdleReason::HostBusy)));
    guest.driver.config_changed();
    assert_eq!(guest.run(|_| None), (vec![unplug(0, 64)], Idle::Reached));
}

#[test]
fn what_is_busy_is_skipped_and_the_memmap_left_alone() {
    let mut guest = Guest::with(128);
    guest.resize(0);
    let one_page = |action| match action {
        Action::OfflineDeviceBlocks { addr: at, .. } if at != addr(64) => None,
        action => unmovable(action),
    };
    let (actions, idle) = guest.run(one_page);
    assert_eq!(actions[0], remove(0));
    assert!(!actions.contains(&offline(0)), "the memmap goes with the whole only");
    assert_eq!(actions[64..], [unplug(66, 31), unplug(2, 31)]);
    assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::Unmovable), 4));

    guest.driver.retry();
    assert_eq!(guest.run(|_| None).0, [remove(0), unplug(64, 1), unplug(0, 1)]);
}

/// A notification without a new target begins a new pass too. A failure of the pass before, which comes in after
/// the notification, is none of the new pass.
#[test]
fn a_failure_from_before_a_notification_does_not_count_after_it() {
    // A device block that could not go offline, and a memory block that could not be removed.
    for (mib, step) in [(192, offline(254)), (128, remove(128))] {
        let mut guest = Guest::with(256);
        guest.resize(mib);
        guest.step(|_| None);
        assert_eq!(guest.driver.next(), step);
        guest.driver.config_changed();
        guest.driver.complete(Outcome::Failed(IdleReason::Unmovable));
        assert_eq!(guest.driver.next(), Action::ReadConfig);
        let (actions, idle) = guest.run(|_| None);
        assert_eq!((actions[0], idle), (step, Idle::Reached), "it is tried again");
    }
    // A memory block that could not be added.
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(128);
    guest.step_until(plug(0, 64));
    assert_eq!(guest.driver.next(), add(0, 64));
    guest.driver.config_changed();
    guest.driver.complete(Outcome::Failed(IdleReason::NoMemory));
    assert_eq!(guest.run(|_| None), (vec![add_used(0, 64)], Idle::Reached));
    // A request that the host could not carry out.
    guest.resize(256);
    assert_eq!(guest.step(|_| None), Action::ReadConfig);
    assert_eq!(guest.driver.next(), plug(128, 64));
    guest.driver.config_changed();
    guest.driver.complete(BUSY);
    let (actions, idle) = guest.run(|_| None);
    assert_eq!((actions[0], idle), (plug(128, 32), Idle::Reached), "at once, and for less");
}

/// The same for a success: a device block that went offline after the notification does not say how far the new pass is.
#[test]
fn a_new_pass_begins_at_the_top_whatever_the_last_action_did() {
    let mut guest = Guest::with(128);
    guest.resize(120);
    guest.step(|_| None);
    assert_eq!(guest.step(unmovable), offline(126));
    assert_eq!(guest.driver.next(), offline(124));
    guest.driver.config_changed();
    guest.driver.complete(Outcome::Done);
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions[..2], [unplug(124, 1), offline(126)]);
    assert_eq!(idle, Idle::Reached);
}

/// Unless something of it has gone since, another try would fail for the same reason.
#[test]
fn a_memory_block_of_its_memmap_alone_is_tried_once_in_a_pass() {
    let mut guest = Guest::with(130);
    guest.resize(0);
    let (actions, _) = guest.run(unmovable);
    assert_eq!(actions[..3], [remove(128), remove(0), offline(126)]);
    assert_eq!(actions.len(), 2 + 63);
}

/// What a pass has been through is not what comes online afterwards.
#[test]
fn what_comes_online_anew_may_go_again_in_the_same_pass() {
    let mut guest = Guest::with(256);
    let region = &mut guest.driver.region;
    (region.removed_from, region.offline_from) = (64, 10);
    region.remove(BlockRange::new(0, 64));
    region.add(BlockRange::new(0, 64));
    assert_eq!((region.removed_from, region.offline_from), (64, 64));
    region.gain(BlockRange::new(100, 1));
    assert_eq!((region.removed_from, region.offline_from), (101, 101));
}

#[test]
fn a_memory_block_that_only_holds_its_memmap_gets_another_try() {
    let mut guest = Guest::with(128);
    guest.resize(0);
    let mut removals = 0;
    let (actions, idle) = guest.run(|action| {
        removals += u32::from(action == remove(0));
        (action == remove(0) && removals == 1).then_some(Outcome::Failed(IdleReason::NoRoom))
    });
    assert_eq!(actions[1], offline(126));
    assert_eq!(actions[64..], [remove(0), unplug(0, 64)]);
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 0));
}

#[test]
fn pauses_double_and_end_where_the_guest_will_notice() {
    let mut guest = Guest::with(128);
    guest.resize(64);
    let mut idles = Vec::new();
    for _ in 0..9 {
        idles.push(guest.run(unmovable).1);
        assert_eq!(guest.driver.next(), Action::Idle(idles[idles.len() - 1]), "the same again");
        guest.driver.retry();
    }
    let pauses =
        [100, 200, 400, 800, 1600, 3200, 5000].map(|after_ms| retry(after_ms, IdleReason::Unmovable));
    assert_eq!(idles[..7], pauses);
    assert_eq!(idles[7..], [Idle::Blocked(IdleReason::Unmovable); 2]);

    // Memory is freed during an action that fails: the failure may be out of date.
    guest.step(unmovable);
    guest.driver.retry();
    assert_eq!(guest.run(unmovable).1, retry(5000, IdleReason::Unmovable));
    guest.driver.retry();
    assert_eq!(guest.run(unmovable).1, Idle::Blocked(IdleReason::Unmovable));

    // After a gain the next pause is short.
    guest.driver.retry();
    let one = |action| if action == offline(100) { None } else { unmovable(action) };
    assert_eq!(guest.run(one).1, retry(100, IdleReason::Unmovable));
}

#[test]
fn growing_again_after_no_memory_is_bounded() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(128);
    for _ in 0..7 {
        assert!(matches!(guest.run(no_memory).1, Idle::Retry { reason: IdleReason::NoMemory, .. }));
        guest.driver.retry();
    }
    assert_eq!(guest.run(no_memory).1, Idle::Blocked(IdleReason::NoMemory), "a PLUG alone gains nothing");
}
