//! Guests that do not answer: the look at their vCPUs, and how long a session waits for them.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::session::{ANSWER_DEADLINE, POWER_OFF_DEADLINE, RESIZE_DEADLINE};

/// The time until a guest is ready, which is part of the summary's total.
const READY: Duration = Duration::from_millis(400);

/// Its answer to `check` comes never.
#[test]
fn a_guest_that_stops_answering_is_looked_at() {
    let fake = FakeVm::new(Nature { ignores: |op| matches!(op, Op::Check), ..Nature::default() });
    let ran = session_on(fake, "check\nstats");
    assert_eq!((ran.reason(0).as_str(), ran.looks()), ("the guest's answer: not within 1m", vec![1]));
    assert_eq!((ran.status(), ran.summary.vcpus.len()), (1, 0), "the step has told");
    // A kernel without an agent, whose driver never comes.
    let nature = Nature { foreign: true, driverless: true, ..Nature::default() };
    let ran = session(nature, "resize 2M within 1s");
    assert_eq!((ran.status(), ran.looks()), (1, vec![1]));
    let ran = session(Nature { driverless: true, ..Nature::default() }, "resize 2M within 1s");
    assert_eq!((ran.status(), ran.looks()), (1, vec![0]), "it is up, and has no driver");
}

#[test]
fn a_guest_that_leaves_a_call_unanswered_costs_one_wait() {
    let fake = FakeVm::new(Nature { ignores: |op| matches!(op, Op::Check), ..Nature::default() });
    let ran = session_on(fake, "check\nstats");
    assert_eq!((ran.summary.total, ran.end_limit), (READY + ANSWER_DEADLINE, Duration::ZERO));
    assert_eq!((ran.steps.len(), ran.steps[0].sample.guest), (1, None), "it is not asked for its counters");
    let ran = session(Nature { mute: true, ..Nature::default() }, "check");
    assert_eq!(ran.end_limit, Duration::ZERO);
    // A failure that tells nothing of silence.
    let ran = good("expect plugged == 1G");
    assert_eq!((ran.end_limit, ran.steps[0].sample.guest.is_some()), (POWER_OFF_DEADLINE, true));
}

/// After the boot, the guest neither drives its device nor answers.
#[test]
fn a_guest_that_was_silent_for_a_resize_gets_only_the_rest_of_the_time_for_its_counters() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let seconds = Duration::from_secs;
    for (script, resize, counters) in [
        ("plug 1G\nstats", RESIZE_DEADLINE + seconds(5), POWER_OFF_DEADLINE),
        ("plug 1G within 55s\nstats", seconds(55), POWER_OFF_DEADLINE),
        ("plug 1G within 15s\nstats", seconds(15), seconds(45)),
        ("plug 1G within 0s\nstats", seconds(0), ANSWER_DEADLINE),
    ] {
        CALLS.store(0, Ordering::Relaxed);
        let ignores = |op: &Op| matches!(op, Op::Stats) && CALLS.fetch_add(1, Ordering::Relaxed) > 0;
        let ran = session(Nature { stuck: true, ignores, ..Nature::default() }, script);
        assert_eq!(ran.steps[0].took, resize, "{script}");
        assert_eq!(ran.summary.total, READY + resize + counters, "{script}");
        assert_eq!((ran.steps.len(), ran.looks(), ran.end_limit), (1, vec![1], Duration::ZERO), "{script}");
        assert!(matches!(ran.failure(0), StepFailure::Stopped(_)), "what the script asked for comes first");
    }
    // Its agent answers: the session goes on.
    let ran = session(Nature { stuck: true, slow: true, ..Nature::default() }, "plug 1G\nstats");
    assert_eq!((ran.steps.len(), ran.end_limit), (2, POWER_OFF_DEADLINE));
}
