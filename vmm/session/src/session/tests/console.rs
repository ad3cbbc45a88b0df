//! What the guest says on its console: texts that steps wait for, alarms of its kernel, floods; and the time for all of it.

use std::time::Duration;

use tidevm_machine::WaitError;

use super::super::fake::{Event, FakeVm, Nature};
use super::super::{Ended, StepFailure};
use super::{Ran, session_on};

fn foreign() -> FakeVm {
    FakeVm::new(Nature { foreign: true, ..Nature::default() })
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A kernel that says `lines`, one after another, one a second.
fn saying(lines: &[&'static str]) -> FakeVm {
    let fake = foreign();
    for (line, at) in lines.iter().zip(1..) {
        fake.after(seconds(at), Event::Say(line));
    }
    fake
}

fn ran(lines: &[&'static str], script: &str) -> Ran {
    session_on(saying(lines), script)
}

#[test]
fn a_step_waits_for_a_line_and_quotes_it() {
    let ran = ran(
        &["Linux version 6.1\n", "virtio_mem: at 4 GiB\n", "login: "],
        "expect console contains \"version\" within 30s\n\
         expect console matches /at \\d+ [GM]iB$/ within 30s\n\
         expect console contains \"login:\" within 30s",
    );
    assert_eq!(ran.status(), 0, "{:?}", ran.steps);
    assert_eq!(ran.note(0), Some("`Linux version 6.1`"));
    assert_eq!(ran.note(1), Some("`virtio_mem: at 4 GiB`"));
    assert_eq!(ran.note(2), Some("`login:`"), "a prompt has no end of line");
    let took: Vec<_> = ran.steps.iter().map(|step| step.took.as_secs()).collect();
    assert_eq!(took, [1, 1, 1], "it goes on with the line");
}

#[test]
fn what_was_found_is_found_once() {
    let again = "repeat 2 {\n expect console contains \"plugged\" within 5s\n}";
    let two = ran(&["plugged\n", "plugged\n"], again);
    assert_eq!(two.status(), 0);
    let one = ran(&["plugged plug\n", "done\n"], again);
    assert_eq!(one.status(), 1);
    assert_eq!(
        one.reason(1),
        "not within 5s: no new line of the console contains \"plugged\"; the last is `done`"
    );
    let same =
        ran(&["a: 1, b: 2\n"], "expect console matches /a: \\d/ within 5s\nexpect console matches /b: \\d/");
    assert_eq!(same.status(), 0, "behind it on the same line");
}

#[test]
fn without_a_time_it_looks_once() {
    let ran = ran(&["late\n"], "expect console contains \"late\"");
    assert_eq!(ran.reason(0), "no new line of the console contains \"late\"; nothing else is there");
    assert_eq!(ran.steps[0].took, Duration::ZERO);
}

#[test]
fn the_last_words_of_a_guest_are_heard() {
    let fake = foreign();
    fake.after(seconds(1), Event::Say("halted"));
    fake.after(seconds(1), Event::PowerOff);
    let ran = session_on(fake, "expect console contains \"halted\" within 30s");
    assert_eq!(ran.note(0), Some("`halted`"));
    let fake = foreign();
    fake.after(seconds(1), Event::PowerOff);
    let ran = session_on(fake, "expect console contains \"halted\" within 30s");
    assert_eq!(ran.failure(0), &StepFailure::Ended(WaitError::PoweredOff));
}

#[test]
fn an_absent_text_is_looked_for_everywhere() {
    let script = |text: &str| format!("expect console contains \"up\" within 9s\nexpect no console {text}");
    let lines = ["segfault at 0\n", "up\n", "tail"];
    let found = ran(&lines, &script("matches /^seg/"));
    assert_eq!(found.reason(1), "the console has `segfault at 0`", "before what was found, too");
    assert_eq!(ran(&lines, &script("contains \"oops\"")).status(), 0);
    let late = ran(&lines, "sleep 5s\nexpect no console contains \"tail\"");
    assert_eq!(late.reason(1), "the console has `tail`", "also in a line without an end");
}

#[test]
fn a_flood_is_said() {
    let fake = saying(&["one\n", "two\n", "three\n"]);
    fake.after(Duration::from_millis(2500), Event::Forget(6));
    let ran =
        session_on(fake, "sleep 5s\nexpect console contains \"three\"\nexpect no console contains \"one\"");
    let note = ran.note(1).unwrap_or_default();
    assert!(note.starts_with("`three`; 6 bytes before that were not looked at"), "{note}");
    assert_eq!(ran.failure(2), &StepFailure::ConsoleLost(6));
    assert!(ran.reason(2).contains("the last 1 MiB are kept"), "{}", ran.reason(2));
}

#[test]
fn a_line_without_an_end_is_looked_at_in_parts() {
    const LONG: &str =
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    let fake = foreign();
    for at in 1..30 {
        fake.after(Duration::from_millis(10 * at), Event::Say(LONG));
    }
    fake.after(seconds(1), Event::Say("end"));
    let ran = session_on(fake, "expect console contains \"end\" within 9s");
    let note = ran.note(0).unwrap_or_default();
    assert!(note.ends_with("x...`") && note.chars().count() == 205, "{note}");
}

#[test]
fn a_reset_begins_the_console_anew() {
    let fake = saying(&["up\n", "end\n"]);
    fake.after(seconds(20), Event::Say("up again\n"));
    let ran = session_on(fake, "sleep 5s\nreset\nexpect console contains \"up\" within 30s");
    assert_eq!(ran.note(2), Some("`up again`"), "{:?}", ran.steps);
}

#[test]
fn an_alarm_fails_the_step_in_which_it_comes() {
    let fake = FakeVm::new(Nature::default());
    fake.after(seconds(1), Event::Alarm("BUG: one"));
    fake.after(seconds(3), Event::Alarm("WARNING: two"));
    let ran = session_on(fake, "sleep 2s\nfails resize 100G because \"does not fit\"\nsleep 2s\ncheck");
    assert_eq!((ran.status(), ran.summary.failed), (1, 2), "the session goes on");
    assert_eq!(ran.reason(0), "the guest's kernel is in trouble: `BUG: one`");
    assert_eq!(ran.reason(2), "the guest's kernel is in trouble: `WARNING: two`");
    assert!(ran.steps[1].is_done() && ran.steps[3].is_done());
}

#[test]
fn an_alarm_beside_a_failure_is_told_with_it() {
    let fake = FakeVm::new(Nature { stuck: true, ..Nature::default() });
    fake.after(seconds(2), Event::Alarm("BUG: one"));
    let ran = session_on(fake, "plug 1G within 5s\nplug 1G within 5s");
    let reason = ran.reason(0);
    assert!(reason.starts_with("not within 5s: ") && reason.ends_with("in trouble: `BUG: one`"), "{reason}");
    assert_eq!(ran.looks(), [1, 1], "the vCPUs are looked at all the same");
}

#[test]
fn an_alarm_fails_what_was_to_fail() {
    let fake = FakeVm::new(Nature::default());
    fake.after(Duration::ZERO, Event::Alarm("BUG: one"));
    let ran = session_on(fake, "fails resize 100G because \"does not fit\"");
    assert!(ran.reason(0).contains("BUG: one"));
}

#[test]
fn an_alarm_behind_the_last_step_fails_the_session() {
    let fake = FakeVm::new(Nature::default());
    fake.after(Duration::from_millis(100), Event::Alarm("WARNING: at boot"));
    let ran = session_on(fake, "# nothing");
    let reason = "the guest's kernel is in trouble: `WARNING: at boot`".to_owned();
    assert_eq!(ran.summary.ended, Ended::Failed { reason: Some(reason) });
}

#[test]
fn steps_belong_to_the_last_name() {
    let ran =
        session_on(FakeVm::new(Nature::default()), "check\nstep \"grow\"\nplug 1G\nstep \"check\"\ncheck");
    let names: Vec<_> = ran.steps.iter().map(|step| step.name.as_deref()).collect();
    assert_eq!(names, [None, Some("grow"), Some("grow"), Some("check"), Some("check")]);
    assert_eq!(ran.status(), 0);
}

#[test]
fn the_boot_of_another_kernel_is_over_with_its_drivers() {
    let ran = session_on(foreign(), "wait boot\nplug 1G");
    assert_eq!((ran.status(), ran.steps[0].took.as_secs()), (0, 3));
    let ran = session_on(FakeVm::new(Nature::default()), "wait boot within 0s");
    assert_eq!(ran.status(), 0, "of its own guest, a session has waited for it");
    let driverless = FakeVm::new(Nature { foreign: true, driverless: true, ..Nature::default() });
    let ran = session_on(driverless, "wait boot within 10s\nsleep 1s");
    assert_eq!(ran.reason(0), "the driver of hotplug device 0: not within 10s");
    assert_eq!(ran.steps.len(), 1);
}

#[test]
fn the_time_for_all_of_it_ends_every_wait() {
    for script in [
        "sleep 1m",
        "plug 1G",
        "expect plugged == 2G within 2m",
        "expect console contains \"x\" within 2m",
        "wait c",
    ] {
        let fake = FakeVm::new(Nature { stuck: true, ..Nature::default() });
        fake.limit(seconds(20));
        let ran = session_on(fake, &format!("churn 1 thread for 1m as c\n{script}\ncheck"));
        let Ended::TimedOut { reason } = &ran.summary.ended else {
            panic!("{script}: {:?}", ran.summary.ended)
        };
        assert!(reason.starts_with("the time of 20s is over; it waited for "), "{reason}");
        assert_eq!((ran.status(), ran.steps.len(), ran.summary.total), (124, 2, seconds(20)), "{script}");
        assert_eq!(ran.looks(), [0, 1], "what the vCPUs did");
    }
    let fake = FakeVm::new(Nature { mute: true, ..Nature::default() });
    fake.limit(seconds(20));
    let ran = session_on(fake, "check");
    assert_eq!((ran.status(), ran.summary.vcpus.len()), (124, 1), "the boot, too");
}
