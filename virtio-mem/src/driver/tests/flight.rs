//! Requests that are under way together.

use super::*;

impl Guest {
    /// The next request and all that can be sent beside it.
    fn requests(&mut self) -> Vec<Request> {
        let Action::Send(first) = self.driver.next() else { panic!("no request") };
        let others = core::iter::from_fn(|| self.driver.next_request());
        [first].into_iter().chain(others).collect()
    }
}

/// A guest with 128 MiB of which every second device block is to go: its UNPLUGs are due.
fn checkerboard() -> Guest {
    let mut guest = Guest::with(128);
    guest.resize(0);
    let odd = |action| match action {
        Action::OfflineDeviceBlocks { addr: at, .. } if (at - ADDR) / BLOCK % 2 == 1 => None,
        action => unmovable(action),
    };
    while guest.step(odd) != offline(2) {}
    guest
}

fn action(request: &Request) -> Action {
    Action::Send(*request)
}

#[test]
fn unplugs_of_a_checkerboard_go_together() {
    let mut guest = checkerboard();
    let requests = guest.requests();
    let expected: Vec<_> = (0..32).rev().map(|pair| unplug(pair * 4 + 2, 1)).collect();
    assert_eq!(requests.iter().map(action).collect::<Vec<_>>(), expected);
    assert_eq!(guest.driver.next_request(), None);
    // The answers come in another order.
    for (nr, request) in requests.iter().enumerate().rev() {
        assert_eq!(guest.plugged(), 128 - 2 * (31 - nr as u64));
        guest.driver.complete_request(*request, ACK);
    }
    assert_eq!((guest.run(unmovable).1, guest.plugged()), (retry(100, IdleReason::Unmovable), 64));
}

#[test]
fn each_answer_is_for_its_own_request() {
    let mut guest = checkerboard();
    let requests = guest.requests();
    let outcomes = [ACK, BUSY, ERROR, Outcome::NoResponse, NACK, Outcome::Failed(IdleReason::NoMemory)];
    for (nr, request) in requests.iter().enumerate() {
        guest.driver.complete_request(*request, *outcomes.get(nr).unwrap_or(&ACK));
    }
    // Two are in doubt, and three were refused.
    assert_eq!(guest.plugged(), 128 - 2 * 27);
    assert_eq!(guest.driver.device_errors(), 2);
    assert_eq!(guest.run(|_| None), (vec![], retry(100, IdleReason::HostBusy)));
    guest.driver.retry();
    let (asked, _) = guest.run(telling(|_| false));
    let is_state =
        |action: &&Action| matches!(action, Action::Send(Request { kind: RequestKind::State, .. }));
    assert_eq!(asked.iter().filter(is_state).count(), 2);
    guest.driver.retry();
    let again = guest.run(unmovable).0;
    let sent: Vec<_> = again.into_iter().filter(|action| matches!(action, Action::Send(_))).collect();
    assert_eq!(sent, [unplug(122, 1), unplug(110, 1), unplug(106, 1)]);
    assert_eq!(guest.plugged(), 64);
}

#[test]
fn no_more_is_sent_after_a_refusal_or_a_notification() {
    for stop in [true, false] {
        let mut guest = checkerboard();
        guest.driver.next();
        let second = guest.driver.next_request().expect("a second request");
        if stop {
            guest.driver.complete_request(second, BUSY);
        } else {
            guest.driver.config_changed();
        }
        assert_eq!(guest.driver.next_request(), None);
        assert_eq!(guest.driver.next(), unplug(126, 1), "the other is still under way");
    }
}

#[test]
fn together_they_unplug_no_more_than_what_has_to_go() {
    let mut guest = checkerboard();
    guest.resize(118);
    assert_eq!(guest.step(|_| None), Action::ReadConfig);
    let requests = guest.requests();
    assert_eq!(requests.len(), 5);
    requests.into_iter().for_each(|request| guest.driver.complete_request(request, ACK));
    // The others come back.
    assert_eq!(guest.run(|_| None).1, Idle::Reached);
    assert_eq!(guest.plugged(), 118);
}

/// The part of a memory block with its memmap waits for the answers about the others.
#[test]
fn a_memmap_is_unplugged_after_the_rest_of_its_memory_block() {
    let mut guest = Guest::with(256);
    guest.resize(0);
    let in_the_middle = |action| match action {
        Action::RemoveMemoryBlocks { .. } => None,
        action => unmovable(action),
    };
    guest.step_until(remove_all(0, 128));
    // A hole that another request has made.
    guest.driver.region.unplug(BlockRange::new(74, 1));
    let requests = guest.requests();
    let expected = [unplug(150, 53), unplug(130, 9), unplug(0, 64)];
    assert_eq!(requests.iter().map(action).collect::<Vec<_>>(), expected);
    for request in requests {
        guest.driver.complete_request(request, ACK);
    }
    assert_eq!(guest.run(in_the_middle), (vec![unplug(128, 1)], Idle::Reached));
}

/// A checkerboard whose holes are to be filled, and the first requests for that.
fn holes_to_fill() -> (Guest, Vec<Request>) {
    let mut guest = checkerboard();
    let requests = guest.requests();
    requests.into_iter().for_each(|request| guest.driver.complete_request(request, ACK));
    guest.run(unmovable);
    guest.resize(84);
    guest.step(|_| None);
    let requests = guest.requests();
    (guest, requests)
}

#[test]
fn holes_are_filled_together_and_no_further_than_the_target() {
    let (mut guest, requests) = holes_to_fill();
    let expected: Vec<_> = (0..10).map(|pair| plug(pair * 4 + 2, 1)).collect();
    assert_eq!(requests.iter().map(action).collect::<Vec<_>>(), expected);
    requests.into_iter().for_each(|request| guest.driver.complete_request(request, ACK));
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions, (0..10).map(|pair| online(pair * 4 + 2, 1)).collect::<Vec<_>>());
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 84));
}

/// A target that moves below requests under way is one surprise and not several.
#[test]
fn refusals_of_requests_that_were_sent_together_count_once() {
    let (mut guest, requests) = holes_to_fill();
    requests.into_iter().for_each(|request| guest.driver.complete_request(request, NACK));
    assert_eq!(guest.step(|_| None), Action::ReadConfig);
    assert_eq!(guest.driver.next(), plug(2, 1), "at once");
}

#[test]
#[should_panic(expected = "is not among")]
fn an_answer_to_a_request_that_was_not_sent_is_a_bug_of_the_caller() {
    let mut guest = checkerboard();
    guest.driver.next();
    let other = Request { kind: RequestKind::Unplug, addr: ADDR, nb_blocks: 1 };
    guest.driver.complete_request(other, ACK);
}
