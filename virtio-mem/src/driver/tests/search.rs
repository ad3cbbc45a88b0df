//! Searches: what the driver finds out by STATE about a plugged size that it does not believe, and about memory that was
//! plugged before it existed.

use super::*;

/// A guest whose driver finds `plugged` MiB plugged, of which `requested` MiB are requested.
fn heir(plugged: u64, requested: u64) -> Guest {
    let mut guest = Guest::new(8 << 30, BLOCK);
    (guest.config.plugged_size, guest.config.requested_size) = (plugged * MIB, requested * MIB);
    guest.config.usable_region_size = 4 << 30;
    let driver = DriverConfig::new(MEMORY_BLOCK, BLOCK).with_memmap_size(BLOCK);
    guest.driver = Driver::new(driver, guest.config, 0).unwrap();
    guest
}

fn is_question(action: &Action) -> bool {
    matches!(action, Action::Send(Request { kind: RequestKind::State, .. }))
}

/// The actions that are no questions, and the number of questions.
fn without_questions(actions: Vec<Action>) -> (Vec<Action>, usize) {
    let all = actions.len();
    let others: Vec<_> = actions.into_iter().filter(|action| !is_question(action)).collect();
    let questions = all - others.len();
    (others, questions)
}

const UNPLUG_ALL: Action = Action::Send(Request { kind: RequestKind::UnplugAll, addr: 0, nb_blocks: 0 });

#[test]
fn a_plugged_size_that_is_not_believed_makes_the_driver_ask() {
    let mut guest = Guest::with(256);
    guest.told = Some(320 * MIB);
    guest.driver.config_changed();
    let plugged = |block| block < 128 || (160..192).contains(&block);
    guest.step(|_| None);
    guest.told = None;
    // One question for what is as believed, and two for each half of the rest.
    assert_eq!(guest.step(telling(plugged)), state(0, 128));
    assert_eq!(guest.step(telling(plugged)), state(256, 128));
    assert_eq!(guest.step(telling(plugged)), state(256, 64));
    assert_eq!(guest.step(telling(plugged)), state(256, 32));
    assert_eq!(guest.step(telling(plugged)), state(320, 32));
    assert_eq!(guest.step(telling(plugged)), state(384, 64));
    assert_eq!(guest.plugged(), 320);
    assert_eq!(guest.run(|_| None), (vec![unplug(320, 32)], Idle::Reached));
    assert_eq!((guest.driver.mismatches(), guest.driver.device_errors()), (1, 0));
    guest.driver.config_changed();
    assert_eq!(guest.run(|_| None), (vec![], Idle::Reached));
}

/// Less is plugged than the driver believes: what it does not use is gone.
#[test]
fn what_is_not_plugged_is_plugged_anew() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(256);
    guest.step_until(plug(0, 128));
    guest.driver.config_changed();
    guest.told = Some(128 * MIB);
    guest.step(|_| None);
    guest.told = None;
    let (actions, idle) = guest.run(telling(|block| block < 64));
    let (actions, _) = without_questions(actions);
    assert_eq!(actions, [add_used(0, 64), plug(128, 64), add(128, 64)]);
    assert_eq!((idle, guest.driver.mismatches()), (Idle::Reached, 1));
}

/// A device whose number is wrong and whose states are right is not asked for ever.
#[test]
fn a_number_that_stays_wrong_is_looked_into_once() {
    let mut guest = Guest::with(256);
    let truth = |block| block < 128;
    for (told, mismatches) in [(Some(258), 1), (Some(258), 1), (Some(260), 2), (None, 3), (None, 3)] {
        guest.told = told.map(|mib: u64| mib * MIB);
        guest.driver.config_changed();
        let (actions, idle) = guest.run(telling(truth));
        assert!(actions.iter().all(is_question), "{actions:?}");
        assert_eq!((idle, guest.driver.mismatches()), (Idle::Reached, mismatches), "{told:?}");
    }
    assert_eq!(guest.driver.device_errors(), 0);
}

/// The guest uses memory that the device has taken away. The driver cannot help it, and counts.
#[test]
fn memory_in_use_that_is_gone_is_an_error_of_the_device() {
    let mut guest = Guest::with(256);
    guest.told = Some(128 * MIB);
    guest.driver.config_changed();
    let (actions, idle) = guest.run(telling(|block| block < 64));
    assert!(actions.iter().all(is_question), "{actions:?}");
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 256));
    assert!(guest.driver.device_errors() > 0);
    // The difference is known now.
    guest.driver.config_changed();
    assert_eq!(guest.run(|_| None), (vec![], Idle::Reached));
}

#[test]
fn memory_that_was_plugged_before_is_put_to_use() {
    let mut guest = heir(300, 300);
    assert_eq!(guest.plugged(), 300, "what the device says, until all is found");
    let (actions, idle) = guest.run(telling(|block| block < 150));
    let (actions, questions) = without_questions(actions);
    assert_eq!(actions, [add_used(0, 128), add_used(256, 22)]);
    assert!(questions <= 2 * 11, "{questions} questions for one border in 2048 device blocks");
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 300));
    assert_eq!((guest.driver.mismatches(), guest.driver.device_errors()), (0, 0));
}

#[test]
fn what_is_not_requested_of_it_is_unplugged() {
    let mut guest = heir(300, 128);
    let (actions, idle) = guest.run(telling(|block| block < 150));
    assert_eq!(without_questions(actions).0, [unplug(128, 86), add_used(0, 64)]);
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 128));
    let mut guest = heir(300, 0);
    assert_eq!(guest.run(|_| None), (vec![UNPLUG_ALL], Idle::Reached));
}

/// The second memory block has no memmap, and the third has all.
#[test]
fn a_memory_block_of_another_kernel_without_a_memmap_goes() {
    let mut guest = heir(2 * (64 + 10 + 64), 2 * (64 + 10 + 64));
    let plugged = |block| block < 64 || (70..80).contains(&block) || (128..192).contains(&block);
    let (actions, idle) = guest.run(telling(plugged));
    let (actions, _) = without_questions(actions);
    assert_eq!(actions, [add_used(0, 64), unplug(140, 10), add_used(256, 64), plug(128, 10), add(128, 10)]);
    assert_eq!(idle, Idle::Reached);
}

#[test]
fn a_device_that_does_not_tell_is_emptied() {
    let mut guest = heir(300, 300);
    let (actions, idle) = guest.run(|action| is_question(&action).then_some(ERROR));
    assert_eq!((actions.len(), idle), (1, retry(100, IdleReason::DeviceError)));
    guest.driver.retry();
    guest.config.plugged_size = 0;
    guest.told = Some(300 * MIB);
    assert_eq!(guest.step(|_| None), Action::ReadConfig);
    assert_eq!(guest.step(|_| None), UNPLUG_ALL);
    guest.told = None;
    assert_eq!(guest.run(|_| None), (vec![plug(0, 150), add(0, 128), add(256, 22)], Idle::Reached));
}

/// Device blocks of 1 MiB, of which the guest can use pairs.
#[test]
fn halves_of_what_the_guest_can_use_are_unplugged() {
    let mut guest = heir(0, 0);
    guest.config.block_size = MIB;
    (guest.config.plugged_size, guest.config.requested_size) = (7 * MIB, 6 * MIB);
    let driver = DriverConfig::new(MEMORY_BLOCK, BLOCK).with_memmap_size(BLOCK);
    guest.driver = Driver::new(driver, guest.config, 0).unwrap();
    // The pairs 0 and 1, and three halves.
    let plugged = |block| block < 4 || [5, 8, 11].contains(&block);
    let told = move |action| match action {
        Action::Send(Request { kind: RequestKind::State, addr: at, nb_blocks }) => {
            let first = (at - ADDR) / MIB;
            let count = (first..first + u64::from(nb_blocks)).filter(|&block| plugged(block)).count();
            Some(Outcome::Response(Response::with_state(match count {
                0 => BlockState::Unplugged,
                count if count == usize::from(nb_blocks) => BlockState::Plugged,
                _ => BlockState::Mixed,
            })))
        }
        _ => None,
    };
    let (actions, idle) = guest.run(told);
    let (actions, _) = without_questions(actions);
    let single = |block| unplug(block, 1);
    let expected = [single(11), single(8), single(5), add_used(0, 2), plug(4, 2), online(4, 1)];
    assert_eq!((&actions[..], idle), (&expected[..], Idle::Reached));
    assert_eq!((guest.plugged(), guest.driver.device_errors()), (6, 0));
}

/// A driver that gives the device up has nothing in use, and unplugs nothing. If it stays, all comes back.
#[test]
fn a_driver_that_is_detached_unplugs_nothing() {
    let mut guest = Guest::with(300);
    guest.driver.detach();
    let (actions, idle) = guest.run(|_| None);
    assert_eq!((actions, idle), (vec![remove(256), remove_all(0, 128)], Idle::Detached));
    assert_eq!(guest.plugged(), 300);
    guest.driver.retry();
    assert_eq!(guest.driver.next(), Action::Idle(Idle::Detached));
    guest.driver.attach();
    assert_eq!(guest.run(|_| None), (vec![add_used(0, 128), add_used(256, 22)], Idle::Reached));
    guest.driver.detach();
    assert_eq!(guest.run(unmovable).1, retry(100, IdleReason::Unmovable));
    guest.driver.attach();
    assert_eq!(guest.run(|_| None), (vec![], Idle::Reached));
}
