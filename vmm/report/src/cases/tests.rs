//! Sessions as cases, read back: JUnit by `quick-junit`, TAP by Perl's `TAP::Parser` (`tests/tap.rs`).

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCaseStatus};
use tidevm_events::{End, Event, Line, Outcome, Start, Step};

use super::{MAX_CASES, MAX_FAILURES, Planned, Results};

fn line(event: Event) -> Line {
    Line { event, at_seconds: 0.0, unix_ms: 0 }
}

fn planned(line: usize, command: &str) -> Planned {
    let names = command.strip_prefix("step \"").map(|name| name.trim_end_matches('"').to_owned());
    Planned { line, column: 1, command: command.to_owned(), names }
}

fn step(results: &mut Results, line_number: usize, command: &str, name: Option<&str>, reason: Option<&str>) {
    let step = Step {
        line: line_number,
        column: 1,
        name: name.map(str::to_owned),
        command: command.to_owned(),
        seconds: 0.25,
        ok: reason.is_none(),
        reason: reason.map(str::to_owned),
        ..Step::default()
    };
    results.take(&line(Event::Step(Box::new(step))));
}

fn end(results: &mut Results, status: u8, outcome: Outcome, reason: Option<&str>) {
    let reason = reason.map(str::to_owned);
    let end = End { status, outcome, reason, seconds: 2.0, ..End::default() };
    results.take(&line(Event::End(Box::new(end))));
}

/// A named step that fails once in two rounds, a command that fails, and one that is not reached.
fn sample() -> Results {
    let mut results = Results::new("a <script>");
    results.plan(
        [(1, "check"), (3, "step \"grow # 1\""), (4, "plug 1G"), (5, "step \"shrink\""), (6, "unplug 1G")]
            .map(|(number, text)| planned(number, text)),
    );
    let start =
        Start { date: "2026-12-01T00:00:00Z".to_owned(), host: Some("h".to_owned()), ..Start::default() };
    results.take(&line(Event::Start(Box::new(start))));
    step(&mut results, 1, "check", None, None);
    let grow = Some("grow # 1");
    for reason in [None, Some("blocked by \"a\" & <b>\u{1b}[2J\nsecond line")] {
        step(&mut results, 3, "step \"grow # 1\"", grow, None);
        step(&mut results, 4, "plug 1G", grow, reason);
    }
    end(&mut results, 4, Outcome::Died, Some("the guest panicked\n  | last line"));
    results
}

/// Each case of a document: its name, and what is wrong with it.
fn read(junit: &str) -> Vec<(String, Option<(NonSuccessKind, String)>)> {
    let report = Report::deserialize_from_str(junit).unwrap_or_else(|error| panic!("{error}:\n{junit}"));
    let [suite] = report.test_suites.as_slice() else { panic!("one suite:\n{junit}") };
    assert_eq!((suite.tests, report.tests), (suite.test_cases.len(), suite.test_cases.len()));
    let cases = suite.test_cases.iter().map(|case| {
        let wrong = match &case.status {
            TestCaseStatus::NonSuccess { kind, message, .. } => {
                Some((*kind, message.as_ref().map_or_else(String::new, |text| text.as_str().to_owned())))
            }
            TestCaseStatus::Success { .. } => None,
            TestCaseStatus::Skipped { message, .. } => {
                assert_eq!(message.as_ref().map(|text| text.as_str()), Some("not reached"));
                return (format!("{} (skipped)", case.name.as_str()), None);
            }
        };
        (case.name.as_str().to_owned(), wrong)
    });
    cases.collect()
}

#[test]
fn junit_is_read_back_by_a_library() {
    let junit = sample().junit();
    let cases = read(&junit);
    let names: Vec<&str> = cases.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["1: check", "grow # 1", "shrink (skipped)", "session"]);
    assert_eq!(cases[0].1, None);
    let failure = "line 4: plug 1G: blocked by \"a\" & <b>\u{fffd}[2J".to_owned();
    assert_eq!(cases[1].1, Some((NonSuccessKind::Failure, failure)));
    let death = "died (status 4): the guest panicked".to_owned();
    assert_eq!(cases[3].1, Some((NonSuccessKind::Error, death)));
    let report = Report::deserialize_from_str(&junit).expect("it was read");
    let suite = &report.test_suites[0];
    assert_eq!((suite.failures, suite.errors, suite.name.as_str()), (1, 1, "a <script>"));
    assert_eq!(suite.test_cases[1].time, Some(Duration::from_secs(1)), "of two rounds");
    assert_eq!(suite.timestamp.map(|at| at.to_rfc3339()), Some("2026-12-01T00:00:00+00:00".to_owned()));
}

#[test]
fn tap_has_a_line_for_each_case() {
    let expected = "TAP version 13\n\
        1..4\n\
        ok 1 - 1: check\n\
        not ok 2 - grow \\# 1\n  \
          ---\n  \
          message: \"line 4: plug 1G: blocked by \\\"a\\\" & <b>\u{fffd}[2J\\nsecond line\"\n  \
          severity: fail\n  \
          seconds: 1.000\n  \
          ...\n\
        ok 3 - shrink # SKIP not reached\n\
        not ok 4 - session\n  \
          ---\n  \
          message: \"the guest panicked\\n  | last line\"\n  \
          severity: error\n  \
          seconds: 0.750\n  \
          ...\n";
    assert_eq!(sample().tap(), expected);
}

#[test]
fn a_session_whose_steps_tell_the_failure_has_passed_itself() {
    let mut results = Results::new("s");
    step(&mut results, 1, "check", None, Some("no"));
    end(&mut results, 1, Outcome::Failed, Some("no"));
    let cases = read(&results.junit());
    assert!(cases[0].1.is_some() && cases[1].1.is_none(), "{cases:?}");
    for (outcome, reason) in
        [(Outcome::Failed, Some("the guest did not power off")), (Outcome::NotStarted, None)]
    {
        let mut results = Results::new("s");
        end(&mut results, 2, outcome, reason);
        assert_eq!(read(&results.junit())[0].1.as_ref().map(|(kind, _)| *kind), Some(NonSuccessKind::Error));
    }
}

#[test]
fn a_session_that_was_cut_off_has_no_end() {
    let mut results = Results::new("s");
    step(&mut results, 1, "check", None, None);
    assert!(
        results.tap().ends_with("the session has no end\"\n  severity: error\n  seconds: 0.000\n  ...\n")
    );
}

#[test]
fn what_is_kept_has_a_bound() {
    let mut results = Results::new("s");
    for number in 1..=MAX_CASES + 5 {
        step(&mut results, number, "check", None, None);
    }
    step(&mut results, MAX_CASES + 6, "check", None, Some("no"));
    for _ in 0..2 * MAX_FAILURES {
        step(&mut results, 1, "check", None, Some("bad"));
    }
    end(&mut results, 1, Outcome::Failed, None);
    assert_eq!(results.told().len(), MAX_CASES + 1);
    let tap = results.tap();
    assert!(tap.contains("and 10 more\""), "{}", &tap[..2000]);
    let mut only = Results::new("s");
    (0..=MAX_CASES).for_each(|number| step(&mut only, number + 1, "check", None, None));
    step(&mut only, MAX_CASES + 2, "check", None, Some("no"));
    end(&mut only, 1, Outcome::Failed, None);
    assert!(only.tap().contains("1 of 2 commands failed that are in no case"));
}

#[test]
fn steps_that_the_session_adds_have_their_own_cases() {
    let mut results = Results::new("s");
    step(&mut results, 0, "wait a", None, None);
    step(&mut results, 0, "wait b", None, Some("no"));
    end(&mut results, 1, Outcome::Failed, None);
    let names: Vec<_> = read(&results.junit()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["wait a", "wait b", "session"]);
}
