//! Waits for the guest: what ends a wait, and what an end or a reset does to the others.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Report, Resize, ResizeState, Size};

use super::{MemStatus, SharedState, State, WaitError, lock};
use crate::clock;
use crate::death::{Death, DeathKind};

const SOON: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_secs(20);

fn shared() -> SharedState {
    SharedState::new(Instant::now(), vec![MemStatus { region: 4 << 30, ..MemStatus::default() }])
}

#[test]
fn a_wait_ends_by_the_awaited_change() {
    let shared = Arc::new(shared());
    let changer = Arc::clone(&shared);
    let thread = thread::spawn(move || changer.change(|state| state.mem[0].plugged = Size(5)));
    let plugged =
        shared.wait(LATE, "memory", |state| (state.mem[0].plugged > Size(0)).then_some(state.mem[0].plugged));
    assert_eq!(plugged, Ok(Size(5)));
    thread.join().unwrap();
}

/// Threads hand a number on. A thread that no change wakes looks again only at the end of its nap, and then the
/// threads do not get there before the deadline. A change that wakes one waiter wakes the wrong one most of the time.
#[test]
fn each_change_wakes_every_waiter() {
    const THREADS: u64 = 8;
    const END: u64 = 400;
    let shared = Arc::new(shared());
    let threads = (0..THREADS).map(|me| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let deadline = clock::now() + LATE;
            loop {
                let limit = deadline.saturating_duration_since(clock::now());
                let turn = |state: &State| {
                    let now = state.stray_accesses;
                    (now >= END || now % THREADS == me).then_some(now)
                };
                if shared.wait(limit, "this thread's turn", turn)? >= END {
                    return Ok::<_, WaitError>(());
                }
                shared.change(|state| state.stray_accesses += 1);
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        assert_eq!(thread.join().unwrap(), Ok(()));
    }
}

/// The time until a guest is up counts from its own start.
#[test]
fn a_reset_starts_the_clock_of_the_guest_anew() {
    let hour = Duration::from_secs(3600);
    let shared = SharedState::new(clock::now() - hour, vec![]);
    let ready = || {
        shared.report(Report::Ready { cpus: 1, mem_devices: 0 });
        shared.snapshot().ready.expect("the guest is up").after
    };
    assert!(ready() >= hour);
    shared.restart(Vec::new);
    assert!(ready() < hour);
}

#[test]
fn a_wait_that_is_too_long_names_the_awaited_event() {
    let error = shared().wait(SOON, "2G plugged", |_| None::<()>).unwrap_err();
    assert_eq!(error, WaitError::Deadline { what: "2G plugged".to_owned(), after: SOON });
    assert_eq!(error.to_string(), "2G plugged: not within 20ms");
}

/// The awaited event has precedence. Otherwise the gravest reason why it will not come is returned.
#[test]
fn an_end_ends_every_wait() {
    let shared = shared();
    let never = |shared: &SharedState| shared.wait(LATE, "nothing", |_| None::<()>).unwrap_err();
    shared.change(|state| state.signal = Some(2));
    assert_eq!(never(&shared), WaitError::Signal(2));
    assert!(!shared.wait_for_end(SOON, 0), "a signal is not the end");
    let death = Death { kind: DeathKind::TripleFault, text: "rip".to_owned() };
    shared.change(|state| state.died(death.clone()));
    assert_eq!(never(&shared), WaitError::Died(death));
    assert_eq!(shared.wait(SOON, "the end", |state| state.ended().then_some(())), Ok(()));
    assert!(shared.wait_for_end(LATE, 0));
}

#[test]
fn the_first_end_counts() {
    let shared = shared();
    let died = |text: &str| Death { kind: DeathKind::TripleFault, text: text.to_owned() };
    shared.change(|state| state.died(died("first")));
    shared.change(State::power_off);
    shared.change(|state| state.died(died("second")));
    let state = shared.snapshot();
    assert_eq!((state.powered_off, state.death), (false, Some(died("first"))));
    let shared = self::shared();
    shared.change(State::power_off);
    shared.change(|state| state.died(Death { kind: DeathKind::VmmPanic, text: String::new() }));
    assert_eq!(shared.snapshot().death, None);
    assert_eq!(shared.wait(LATE, "nothing", |_| None::<()>), Err(WaitError::PoweredOff));
}

/// A guest cannot make the state grow: answers are kept only for calls that were made.
#[test]
fn answers_need_calls() {
    let shared = shared();
    let done = |id| Report::Done { id, answer: Answer::Done };
    shared.expect_answer(1);
    (0..1000).for_each(|id| shared.report(done(id)));
    let kept = || lock(&shared.inner).answers.len();
    assert_eq!((kept(), shared.snapshot().bad_records), (1, 999));
    assert_eq!(shared.take_answer(1, SOON, "the answer"), Ok(Answer::Done));
    assert!(shared.take_answer(1, Duration::ZERO, "the answer").is_err());
    // The answer to a call that was given up comes too late.
    shared.expect_answer(2);
    assert!(shared.take_answer(2, Duration::ZERO, "the answer").is_err());
    shared.report(done(2));
    assert_eq!((kept(), shared.snapshot().bad_records), (0, 1000));
}

/// The guest that would answer is gone, so no thread may go on waiting.
#[test]
fn a_reset_ends_every_wait_for_an_answer() {
    let shared = shared();
    shared.report(Report::Ready { cpus: 1, mem_devices: 1 });
    [1, 3].into_iter().for_each(|id| shared.expect_answer(id));
    shared.report(Report::Done { id: 3, answer: Answer::Done });
    shared.restart(|| vec![MemStatus::default()]);
    assert_eq!((shared.snapshot().ready, shared.snapshot().resets), (None, 1));
    assert_eq!(shared.take_answer(1, LATE, "the answer"), Err(WaitError::Reset));
    assert_eq!(shared.take_answer(3, LATE, "the answer"), Ok(Answer::Done), "it came before");
    // A call that was never made was not lost by the reset.
    assert!(matches!(shared.take_answer(1, SOON, "the answer"), Err(WaitError::Deadline { .. })));
    assert!(shared.wait_for_end(LATE, 0), "a reset ends this wait too");
    // The guest is up again, and its answers to later calls arrive.
    shared.report(Report::Ready { cpus: 2, mem_devices: 1 });
    assert_eq!(shared.snapshot().ready.map(|ready| ready.cpus), Some(2));
    shared.expect_answer(2);
    shared.report(Report::Done { id: 2, answer: Answer::Done });
    assert_eq!(shared.take_answer(2, SOON, "the answer"), Ok(Answer::Done));
}

#[test]
fn resize_reports_belong_to_a_region() {
    let shared = shared();
    let state = ResizeState::HostBusy;
    let resize = |region| Resize { region, plugged: Size(1), requested: Size(2), generation: 3, state };
    shared.report(Report::Resize(resize(4 << 30)));
    shared.report(Report::Resize(resize(5 << 30)));
    let state = shared.snapshot();
    assert_eq!((state.mem[0].report, state.bad_records), (Some(resize(4 << 30)), 1));
}

/// A target of the same size as an earlier one is another target. What the driver said of the earlier one says
/// nothing of the new one.
#[test]
fn a_report_answers_only_the_generation_of_its_target() {
    let reached = |generation| Resize {
        region: 4 << 30,
        plugged: Size(8),
        requested: Size(8),
        generation,
        state: ResizeState::Reached,
    };
    for current in [5, 0, u32::MAX] {
        let at = |generation| MemStatus {
            requested: Size(8),
            plugged: Size(8),
            generation: current,
            seen: Some(generation),
            report: Some(reached(generation)),
            ..MemStatus::default()
        };
        for later in [0, 1, 1000] {
            let mem = at(current.wrapping_add(later));
            assert_eq!((mem.stopped(Size(8)), mem.arrived(Size(8))), (Some(ResizeState::Reached), true));
            assert_eq!((mem.stopped(Size(4)), mem.arrived(Size(4))), (None, false), "another target");
            let moving = MemStatus { plugged: Size(6), ..mem };
            assert_eq!(
                (moving.stopped(Size(8)), moving.arrived(Size(8))),
                (None, false),
                "something moved since"
            );
        }
        // A driver that claims something else than the device shows, or speaks of another target.
        let with = |plugged, requested, state| {
            let report = Resize { plugged, requested, state, ..reached(current) };
            MemStatus { report: Some(report), ..at(current) }
        };
        let busy = ResizeState::HostBusy;
        assert_eq!(with(Size(8), Size(8), busy).stopped(Size(8)), Some(busy));
        assert_eq!(
            (with(Size(8), Size(4), busy).stopped(Size(8)), with(Size(8), Size(4), busy).answer(Size(8))),
            (None, None),
            "of another target"
        );
        assert_eq!(with(Size(6), Size(8), busy).stopped(Size(8)), None, "something moved since");
        let elsewhere = MemStatus { plugged: Size(6), ..with(Size(6), Size(8), ResizeState::Reached) };
        assert_eq!(elsewhere.stopped(Size(8)), None, "it is not there");
        for earlier in [1, 2, 1000] {
            let mem = at(current.wrapping_sub(earlier));
            assert_eq!(
                (mem.stopped(Size(8)), mem.answer(Size(8)), mem.arrived(Size(8))),
                (None, None, false),
                "{earlier}"
            );
        }
        assert!(!MemStatus { seen: None, ..at(current) }.arrived(Size(8)), "no driver has read it");
        let pending = MemStatus { target_pending: true, ..at(current) };
        assert_eq!(
            (pending.stopped(Size(8)), pending.answer(Size(8)), pending.arrived(Size(8))),
            (None, None, false)
        );
    }
}

#[test]
fn a_death_that_the_host_caused_is_told_apart() {
    let refused = [
        DeathKind::TaskLimit,
        DeathKind::ResetFailed { refused: true },
        DeathKind::RunFailed(libc::ENOMEM),
        DeathKind::RunFailed(libc::EMFILE),
    ];
    assert!(refused.iter().all(|kind| kind.is_refusal()), "{refused:?}");
    let own = [
        DeathKind::GuestPanic,
        DeathKind::TripleFault,
        DeathKind::ResetFailed { refused: false },
        DeathKind::RunFailed(libc::EINVAL),
        DeathKind::VmmPanic,
    ];
    assert!(!own.iter().any(|kind| kind.is_refusal()), "{own:?}");
}

#[test]
fn a_subscription_is_raised_by_each_change_and_ends_with_its_value() {
    let shared = shared();
    let (one, other) = (shared.subscribe().unwrap(), shared.subscribe().unwrap());
    assert!(!one.clear(), "nothing has changed yet");
    shared.change(|state| state.mem[0].plugged = Size(5));
    shared.change(|state| state.mem[0].plugged = Size(6));
    assert!(one.clear() && !one.clear(), "changes that no read separates are one event");
    shared.report(Report::Ready { cpus: 1, mem_devices: 1 });
    assert!(one.clear() && other.clear(), "a message of the guest is a change too");
    drop(one);
    shared.change(|state| state.powered_off = true);
    assert!(other.clear());
    assert_eq!(lock(&shared.subscriptions).len(), 1, "a subscription that has ended is forgotten");
}

#[test]
fn no_limit_passes_while_the_guest_stands_still() {
    let shared = shared();
    let (start, real) = (shared.now(), Instant::now());
    shared.set_paused(true);
    let pause = Instant::now();
    thread::sleep(SOON);
    let (still, slept) = (shared.now(), pause.elapsed());
    assert_eq!(shared.now(), still, "the clock stands still");
    shared.set_paused(true);
    shared.set_paused(false);
    let passed = shared.now() - start;
    assert!(
        passed + slept <= real.elapsed(),
        "{passed:?} passed, beside {slept:?} in which the guest stood still"
    );
    shared.wait(SOON, "nothing", |_| None::<()>).unwrap_err();
    assert!(shared.now() - start >= passed + SOON, "it goes on");
}

/// A reset of the guest's own raises the count alone, so that it is not taken for the one that was asked for.
#[test]
fn a_reset_carries_out_the_requests_before_it() {
    let shared = SharedState::new(clock::now(), Vec::new());
    let seen = || (shared.snapshot().resets, shared.snapshot().reset_request, shared.wants_reset());
    shared.restart(Vec::new);
    assert_eq!(seen(), (1, 0, false), "the guest's own");
    assert_eq!(shared.want_reset(), 1);
    assert_eq!(seen(), (1, 0, true));
    shared.restart(Vec::new);
    shared.restart(Vec::new);
    assert_eq!(seen(), (3, 1, false));
    assert_eq!((shared.want_reset(), shared.want_reset()), (2, 3));
    shared.restart(Vec::new);
    assert_eq!(seen(), (4, 3, false), "requests before a reset are one");
}

/// A wait has its own limit, and the time of all waits. The end of a machine does not wait for less because of that.
#[test]
fn the_time_of_all_waits_ends_each() {
    let limited = |limit| SharedState::new(clock::now(), Vec::new()).limited(Some(limit));
    let nothing = |_: &State| None::<()>;
    let shared = limited(SOON);
    let over = Err(WaitError::TimedOut { what: "memory".to_owned(), limit: SOON });
    assert_eq!(shared.wait(LATE, "memory", nothing), over);
    assert_eq!(shared.wait(Duration::ZERO, "memory", nothing), over, "every later wait, too");
    assert_eq!(shared.wait(LATE, "memory", |_| Some(())), Ok(()), "what is there is there");
    shared.expect_answer(1);
    let answer = Err(WaitError::TimedOut { what: "an answer".to_owned(), limit: SOON });
    assert_eq!(shared.take_answer(1, LATE, "an answer"), answer);
    let start = clock::now();
    assert!(!shared.wait_for_end(SOON, 0) && clock::now() - start >= SOON);
    let late = Err(WaitError::Deadline { what: "memory".to_owned(), after: SOON });
    assert_eq!(limited(LATE).wait(SOON, "memory", nothing), late);
    shared.change(|state| state.signal = Some(15));
    assert_eq!(shared.wait(LATE, "memory", nothing), Err(WaitError::Signal(15)), "the first reason");
}
