//! Failures of the device: it refuses, answers ERROR, or does not answer.

use super::*;

#[test]
fn the_host_is_asked_again_for_ever_and_for_less() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(4096);
    let busy = |action| matches!(action, Action::Send(_)).then_some(BUSY);
    let mut asked = Vec::new();
    let pauses = [100, 200, 400, 800, 1600, 3200].into_iter().chain([5000; 40]);
    for after_ms in pauses {
        let (actions, idle) = guest.run(busy);
        let [Action::Send(Request { nb_blocks, .. })] = actions[..] else { panic!("{actions:?}") };
        asked.push(nb_blocks);
        assert_eq!(idle, retry(after_ms, IdleReason::HostBusy));
        guest.driver.retry();
    }
    assert_eq!(asked[..9], [2048, 64, 32, 16, 8, 4, 2, 1, 1]);
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions[..6], [plug(0, 1), add(0, 1), plug(2, 2), online(2, 2), plug(6, 4), online(6, 4)]);
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 4096));
}

#[test]
fn after_nack_the_configuration_is_read_and_then_there_is_a_pause() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(256);
    guest.step(|_| None);
    assert_eq!(guest.step(|_| Some(NACK)), plug(0, 128));
    guest.config.requested_size = 128 * MIB;
    assert_eq!(guest.step(|_| None), Action::ReadConfig);
    assert_eq!(guest.step(|_| Some(NACK)), plug(0, 64), "the new size, at once");
    assert_eq!(guest.step(|_| None), Action::ReadConfig);
    assert_eq!(guest.step(|_| Some(NACK)), plug(0, 64), "once more, since it is what the device wants");
    assert_eq!(guest.step(|_| None), Action::ReadConfig);
    assert_eq!(guest.step(|_| None), Action::Idle(retry(100, IdleReason::HostBusy)));
}

#[test]
fn after_error_the_driver_finds_out() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(16);
    guest.step(|_| None);
    assert_eq!(guest.step(|_| Some(ERROR)), plug(0, 8));
    assert_eq!(guest.step(|_| None), Action::ReadConfig);
    // Device blocks 0, 1 and 5 are plugged.
    let told = telling(|block| [0, 1, 5].contains(&block));
    let (actions, idle) = guest.run(told);
    assert_eq!(actions[..3], [state(0, 8), state(0, 4), state(0, 2)]);
    assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::DeviceError), 6));
    assert_eq!(guest.driver.device_errors(), 1);

    guest.driver.retry();
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(
        actions,
        [add_used(0, 2), online(10, 1), plug(4, 3), online(4, 3), plug(12, 2), online(12, 2)]
    );
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 16));
}

/// An answer is about the device blocks that were asked for. The rest stays in doubt until its own answer.
#[test]
fn an_answer_settles_only_the_blocks_that_were_asked_for() {
    for (answer, plugged) in [(BlockState::Plugged, 4), (BlockState::Unplugged, 0)] {
        let mut guest = Guest::new(8 << 30, BLOCK);
        guest.resize(16);
        guest.step(|_| None);
        assert_eq!(guest.step(|_| Some(ERROR)), plug(0, 8));
        guest.step(|_| None);
        let mut told = |state| guest.step(|_| Some(Outcome::Response(Response::with_state(state))));
        assert_eq!(told(BlockState::Mixed), state(0, 8));
        assert_eq!(told(BlockState::Mixed), state(0, 4));
        assert_eq!(told(answer), state(0, 2));
        assert_eq!(guest.plugged(), plugged);
        assert_eq!(guest.driver.next(), state(4, 2), "the rest of what was mixed");
    }
    // An UNPLUG that is in doubt: the driver counts its blocks as plugged until it is told otherwise.
    let mut guest = Guest::with(128);
    guest.resize(0);
    guest.step_until(remove(0));
    assert_eq!(guest.step(|_| Some(ERROR)), unplug(0, 64));
    guest.step(|_| None);
    for (state, plugged) in [(BlockState::Mixed, 128), (BlockState::Unplugged, 64)] {
        guest.step(|_| Some(Outcome::Response(Response::with_state(state))));
        assert_eq!(guest.plugged(), plugged);
    }
}

#[test]
fn a_memory_block_without_its_memmap_is_not_added() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(8);
    guest.step(|_| None);
    guest.step(|_| Some(ERROR));
    guest.step(|_| None);
    // All but the first of the four device blocks are plugged.
    let (mixed, plugged) = (BlockState::Mixed, BlockState::Plugged);
    for answer in [mixed, mixed, BlockState::Unplugged, plugged, plugged] {
        guest.step(|_| Some(Outcome::Response(Response::with_state(answer))));
    }
    assert_eq!(guest.plugged(), 6);
    guest.driver.config_changed();
    assert_eq!(guest.run(|_| None), (vec![unplug(2, 3), plug(0, 4), add(0, 4)], Idle::Reached));
}

#[test]
fn an_unanswered_request_is_in_doubt() {
    let mut guest = Guest::with(128);
    guest.resize(0);
    let lost = |action| matches!(action, Action::Send(_)).then_some(Outcome::NoResponse);
    assert_eq!(guest.run(lost), (vec![remove(0), unplug(0, 64)], retry(100, IdleReason::DeviceError)));
    guest.driver.retry();
    assert_eq!(guest.run(lost), (vec![state(0, 64)], retry(200, IdleReason::DeviceError)));
    assert_eq!(guest.driver.device_errors(), 2);
    guest.driver.retry();
    let unplugged = |action| {
        let told = Outcome::Response(Response::with_state(BlockState::Unplugged));
        (action == state(0, 64)).then_some(told)
    };
    assert_eq!(guest.run(unplugged).0, [state(0, 64)]);
    assert_eq!(guest.plugged(), 0);
    guest.driver.retry();
    assert_eq!(guest.run(|_| None), (vec![], Idle::Reached));
}

/// A STATE that is not answered says nothing about the device blocks that it did not name.
#[test]
fn an_unanswered_question_leaves_all_in_doubt() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(16);
    guest.step(|_| None);
    assert_eq!(guest.step(|_| Some(ERROR)), plug(0, 8));
    guest.step(|_| None);
    let told = |state| Some(Outcome::Response(Response::with_state(state)));
    assert_eq!(guest.step(|_| told(BlockState::Mixed)), state(0, 8));
    assert_eq!(guest.step(|_| Some(Outcome::NoResponse)), state(0, 4));
    guest.driver.retry();
    assert_eq!(guest.step(|_| None), Action::Idle(retry(100, IdleReason::DeviceError)));
    guest.driver.retry();
    guest.step(|_| None);
    assert_eq!(guest.step(|_| told(BlockState::Unplugged)), state(0, 4));
    assert_eq!(guest.driver.next(), state(8, 4));
}

#[test]
fn blocks_beyond_the_usable_region_are_not_asked_for() {
    for (usable, asked) in [(64, Some(state(0, 32))), (0, None)] {
        let mut guest = Guest::new(8 << 30, BLOCK);
        guest.resize(128);
        guest.step(|_| None);
        assert_eq!(guest.step(|_| Some(ERROR)), plug(0, 64));
        guest.config.usable_region_size = usable * MIB;
        assert_eq!(guest.step(|_| None), Action::ReadConfig);
        match asked {
            Some(question) => assert_eq!(guest.driver.next(), question),
            None => assert_eq!(guest.driver.next(), Action::Idle(retry(100, IdleReason::DeviceError))),
        }
    }
    // An UNPLUG that is in doubt, of device blocks that cannot be plugged any more, or not all of them.
    for (usable, asked) in [(192, Some(state(128, 32))), (128, None), (64, None)] {
        let mut guest = Guest::with(256);
        guest.resize(128);
        guest.step_until(remove(128));
        assert_eq!(guest.step(|_| Some(ERROR)), unplug(128, 64));
        guest.config.usable_region_size = usable * MIB;
        guest.told = Some(usable * MIB);
        assert_eq!(guest.step(|_| None), Action::ReadConfig);
        assert_eq!(guest.plugged(), usable.max(128));
        let in_doubt = asked.unwrap_or(Action::Idle(retry(100, IdleReason::DeviceError)));
        assert_eq!(guest.driver.next(), in_doubt);
    }
}

/// A device that tells nonsense is not asked the same again and again.
#[test]
fn a_single_block_that_is_mixed_is_an_error_of_the_device() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(4);
    guest.step(|_| None);
    assert_eq!(guest.step(|_| Some(ERROR)), plug(0, 2));
    let mixed = Outcome::Response(Response::with_state(BlockState::Mixed));
    let (actions, idle) = guest.run(|action| matches!(action, Action::Send(_)).then_some(mixed));
    assert_eq!((actions, idle), (vec![state(0, 2), state(0, 1)], retry(100, IdleReason::DeviceError)));
    assert_eq!(guest.driver.device_errors(), 2);
}

/// Two device blocks of the first memory block are in use, one beside them and six of the second are not. The target
/// falls to those that are in use.
#[test]
fn memory_stays_in_use_when_the_strays_are_all_that_has_to_go() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(256);
    guest.step(|_| None);
    assert_eq!(guest.step(|_| Some(ERROR)), plug(0, 128));
    guest.run(telling(|block| [0, 1, 5].contains(&block) || (64..70).contains(&block)));
    assert_eq!(guest.plugged(), 18);
    guest.driver.retry();
    guest.step_until(add_used(0, 2));
    guest.resize(4);
    assert_eq!(guest.run(|_| None), (vec![unplug(128, 6), unplug(10, 1)], Idle::Reached));
}

#[test]
fn a_configuration_that_makes_no_sense_is_read_again_later() {
    let mut guest = Guest::with(128);
    let good = guest.config;
    for bad in [
        Config { addr: good.addr + MEMORY_BLOCK, ..good },
        // All sizes are multiples of both.
        Config { block_size: good.block_size / 2, ..good },
        Config { block_size: good.block_size * 2, ..good },
        Config { region_size: good.region_size + BLOCK, ..good },
        Config { region_size: good.region_size / 2, ..good },
        Config { requested_size: good.region_size + BLOCK, ..good },
        Config { plugged_size: good.usable_region_size + BLOCK, ..good },
    ] {
        guest.driver.config_changed();
        guest.config = bad;
        guest.told = (bad.plugged_size > 0).then_some(bad.plugged_size);
        assert_eq!(guest.run(|_| None), (vec![], retry(100, IdleReason::DeviceError)));
        assert_eq!(guest.driver.requested_size(), 128 * MIB);
        (guest.config, guest.told) = (good, None);
        guest.driver.retry();
        assert_eq!(guest.run(|_| None), (vec![], Idle::Reached));
    }
    guest.driver.config_changed();
    let unread = |action| (action == Action::ReadConfig).then_some(Outcome::Failed(IdleReason::DeviceError));
    assert_eq!(guest.run(unread).1, retry(100, IdleReason::DeviceError));
}
