//! Steps that reset the machine. The played VM resets 5 ms after it is told to; its driver is bound 400 ms after that,
//! and its first report comes after 500 ms.

use super::super::fake::Lost;
use super::*;
use crate::script::{Statement, Step};

#[test]
fn a_reset_waits_until_the_guest_is_up_and_what_lived_in_it_is_gone() {
    let ran = good(
        "plug 1G\nhog 4K movable as a\nchurn 1 thread for 60s as c\nreset\nexpect resets == 1\n\
         expect plugged == 1G within 5s\nhog 8K movable as a\nverify a\nchurn 1 thread for 1s as c\nwait c",
    );
    assert_eq!(ran.summary.ended, Ended::Done);
    assert_eq!((ran.note(3), ran.steps[3].took), (None, Duration::from_millis(505)));
    let device = ran.steps[3].sample.devices[0];
    assert_eq!((device.plugged, device.requested), (Size(0), Size::gib(1)));
    assert!(ran.steps[3].sample.guest.is_some());
    assert_eq!(ran.note(7), Some("2 pages intact"), "the name is that of the new workload");
    // No other step says that there was a reset, and nothing awaits the churn of before.
    assert!((4..ran.steps.len()).all(|step| ran.note(step) != Some("the guest was reset")));
    assert_eq!((ran.summary.resets, ran.steps.len()), (1, 10));
    assert!(ran.summary.total < Duration::from_secs(10), "{:?}", ran.summary.total);
}

#[test]
fn a_reset_that_is_late_says_for_what_it_waited() {
    let late = [
        (None, "reset within 4ms", "the reset of the machine: not within 4ms"),
        (None, "reset within 405ms", "the first report of the guest after the reset: not within 405ms"),
        (Some(Lost::Report), "reset", "the first report of the guest after the reset: not within 68s"),
        (Some(Lost::Driver), "reset", "the driver of hotplug device 0 after the reset: not within 68s"),
    ];
    for (loses, script, why) in late {
        let ran = session(Nature { loses, ..Nature::default() }, &format!("{script}\ncheck"));
        assert_eq!((ran.reason(0), ran.steps.len(), ran.status()), (why.to_owned(), 1, 1));
        assert_eq!(ran.looks(), [1], "{why}");
        assert!(ran.summary.total <= Duration::from_secs(71), "no second wait: {:?}", ran.summary.total);
    }
}

#[test]
fn a_reset_of_another_kernel_is_over_when_its_driver_is_there() {
    let foreign = || Nature { foreign: true, ..Nature::default() };
    let ran = session(foreign(), "plug 1G\nreset\nexpect plugged == 1G within 5s");
    assert_eq!((ran.status(), ran.steps[1].took), (0, Duration::from_millis(405)), "{:?}", ran.steps);
    let ran = session(Nature { driverless: true, ..foreign() }, "reset");
    assert_eq!(
        (ran.status(), ran.steps[0].took),
        (0, Duration::from_millis(5)),
        "there was no driver before"
    );
}

#[test]
fn a_reset_of_the_guest_beside_that_of_the_script_is_told() {
    let fake = FakeVm::new(Nature::default());
    // 200 ms after that of the script.
    fake.after(Duration::from_millis(1605), Event::Reset);
    let ran = session_on(fake, "sleep 1s\nreset\ncheck");
    assert_eq!((ran.note(1), ran.summary.resets), (Some("the guest was reset"), 2));
    assert_eq!(ran.steps[1].took, Duration::from_millis(705));
    assert_eq!(ran.summary.ended, Ended::Done);
}

/// The guest's own reset comes 2 ms after the script asked, 3 ms before the reset of the script.
#[test]
fn a_reset_of_the_guest_is_not_taken_for_that_of_the_script() {
    let fake = || {
        let fake = FakeVm::new(Nature::default());
        fake.after(Duration::from_millis(1402), Event::Reset);
        fake
    };
    let ran = session_on(fake(), "sleep 1s\nreset\ncheck");
    assert_eq!(ran.steps[1].took, Duration::from_millis(505), "the guest is up after the second reset");
    assert_eq!((ran.note(1), ran.summary.resets), (Some("the guest was reset"), 2));
    let ran = session_on(fake(), "sleep 1s\nreset within 4ms\ncheck");
    assert_eq!(ran.reason(1), "the reset of the machine: not within 4ms; the guest was reset");
    // A machine that is up as soon as it is reset.
    let fake = FakeVm::new(Nature { foreign: true, driverless: true, ..Nature::default() });
    fake.after(Duration::from_millis(1002), Event::Reset);
    let ran = session_on(fake, "sleep 1s\nreset");
    assert_eq!((ran.steps[1].took, ran.note(1)), (Duration::from_millis(5), Some("the guest was reset")));
}

#[test]
fn a_machine_that_cannot_be_reset_refuses_and_keeps_its_workloads() {
    let nature = Nature { unresettable: true, ..Nature::default() };
    let mut script = Script::parse("test", "hog 4K movable as a\nverify a").unwrap();
    script.body.insert(1, reset());
    let ran = session_of(FakeVm::new(nature), &script);
    assert!(ran.reason(1).starts_with("refused: the machine was not made to be reset"), "{}", ran.reason(1));
    assert_eq!((ran.note(2), ran.status()), (Some("1 page intact"), 1));
}

#[test]
fn a_signal_ends_the_wait_for_a_guest_that_is_reset() {
    let fake = FakeVm::new(Nature::default());
    fake.after(Duration::from_millis(600), Event::Signal(15));
    assert_eq!(session_on(fake, "reset").summary.ended, Ended::Signal { signal: 15 });
}

/// The check of names finds this before anything runs, so that the script is made by hand.
#[test]
fn a_name_from_before_a_reset_is_no_handle_of_the_guest() {
    for (text, name) in [
        ("hog 4K movable as a\nverify a", "a"),
        ("hog 4K movable as a\nrelease a", "a"),
        ("churn 1 thread for 5s as c\nwait c", "c"),
        ("churn 1 thread for 5s as c\nrelease c", "c"),
    ] {
        let mut script = Script::parse("test", text).unwrap();
        script.body.insert(1, reset());
        let ran = session_of(FakeVm::new(Nature::default()), &script);
        let reason = ran.reason(2);
        assert!(reason.starts_with(&format!("`{name}` ")), "{text}: {reason}");
        assert_eq!(ran.status(), 1);
    }
}

fn reset() -> Statement {
    Statement::Step(Step { line: 9, column: 1, command: "reset".parse().unwrap() })
}
