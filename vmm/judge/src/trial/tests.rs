//! Tests of a trial, on a VMM that is made up.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use tidevm_abi::judge::{FromGuest, ToGuest, Verdict};

use super::{Limits, Outcome, judge};
use crate::rows::rows;
use crate::subject::{Heard, Subject, SubjectError};

/// A VMM whose guest says what `answer` returns for each line of the host.
struct Fake<F> {
    answer: F,
    heard: VecDeque<Heard>,
    starts: u32,
    targets: Vec<u64>,
    /// What the guest says at its start.
    boot: Vec<String>,
}

impl<F: FnMut(ToGuest<'_>) -> Vec<Heard>> Fake<F> {
    fn new(answer: F) -> Self {
        let boot = vec!["a line for people".to_owned(), FromGuest::Ready("mmio").to_string()];
        Self { answer, heard: VecDeque::new(), starts: 0, targets: Vec::new(), boot }
    }

    fn judge(&mut self) -> Vec<Outcome> {
        let mut all = Vec::new();
        let limits = Limits { boot: Duration::from_millis(1), row: Duration::from_millis(1) };
        let each = |outcome: &Outcome| {
            all.push(outcome.clone());
            Ok::<(), Infallible>(())
        };
        judge(self, limits, each).unwrap();
        assert_eq!(all.len(), rows().count());
        all
    }
}

impl<F: FnMut(ToGuest<'_>) -> Vec<Heard>> Subject for Fake<F> {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn version(&mut self) -> Result<String, SubjectError> {
        Ok("fake 1".to_owned())
    }

    fn start(&mut self, _: Instant) -> Result<(), String> {
        self.starts += 1;
        self.heard = self.boot.iter().cloned().map(Heard::Line).collect();
        Ok(())
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        let said = ToGuest::parse(line).expect("a line of the protocol");
        self.heard.extend((self.answer)(said));
        Ok(())
    }

    fn hear(&mut self, _: Instant) -> Heard {
        self.heard.pop_front().unwrap_or(Heard::Silence)
    }

    fn resize(&mut self, bytes: u64, _: Instant) -> Result<(), String> {
        self.targets.push(bytes);
        if bytes == 0 { Err("no".to_owned()) } else { Ok(()) }
    }

    fn kill(&mut self) {
        self.heard.clear();
    }
}

fn result(id: &str, verdict: Verdict) -> Heard {
    Heard::Line(FromGuest::Result { id, sent: "a", came: "b", verdict }.to_string())
}

fn passes(said: ToGuest<'_>) -> Vec<Heard> {
    match said {
        ToGuest::Row { id, .. } => vec![result(id, Verdict::Pass)],
        _ => Vec::new(),
    }
}

fn of<'a>(outcomes: &'a [Outcome], id: &str) -> &'a Outcome {
    outcomes.iter().find(|outcome| outcome.row.id == id).unwrap()
}

#[test]
fn one_machine_is_enough_as_long_as_it_lives() {
    let mut fake = Fake::new(passes);
    let outcomes = fake.judge();
    assert_eq!(fake.starts, 1);
    for outcome in &outcomes {
        let wanted = if outcome.row.skip.is_some() { Verdict::Skip } else { Verdict::Pass };
        assert_eq!(outcome.verdict, wanted, "{}", outcome.row.id);
    }
}

#[test]
fn a_row_without_an_answer_is_wedged_and_the_next_one_has_another_machine() {
    let mut fake = Fake::new(|said| match said {
        ToGuest::Row { id: "D4", .. } => vec![Heard::Line("panic on CPU 0".to_owned())],
        // The answer to another row is none.
        ToGuest::Row { id: "D6", .. } => vec![result("D5", Verdict::Pass)],
        said => passes(said),
    });
    let outcomes = fake.judge();
    assert_eq!(fake.starts, 3);
    assert_eq!(of(&outcomes, "D4").verdict, Verdict::Wedged);
    assert!(of(&outcomes, "D4").came.contains("panic on CPU 0"), "{:?}", of(&outcomes, "D4"));
    assert_eq!(of(&outcomes, "D5").verdict, Verdict::Pass);
    assert_eq!(of(&outcomes, "D6").verdict, Verdict::Wedged);
    assert!(of(&outcomes, "D4").is_breach() && !of(&outcomes, "D5").is_breach());
}

#[test]
fn a_machine_that_ends_fails_its_row() {
    let mut fake = Fake::new(|said| match said {
        ToGuest::Row { id: "T31", .. } => vec![Heard::Ended("it ended: signal 11".to_owned())],
        said => passes(said),
    });
    let outcomes = fake.judge();
    assert_eq!(of(&outcomes, "T31").verdict, Verdict::Fail);
    assert!(of(&outcomes, "T31").came.contains("signal 11"));
    assert!(!of(&outcomes, "T31").is_breach(), "no text forbids it");
    assert_eq!((of(&outcomes, "T32").verdict, fake.starts), (Verdict::Pass, 2));
}

#[test]
fn the_host_sets_targets_and_says_what_came_of_them() {
    let mut answers = Vec::new();
    let mut fake = Fake::new(|said: ToGuest<'_>| match said {
        ToGuest::Row { id: "D9", .. } => {
            [FromGuest::Resize(0), FromGuest::Resize(5)].map(|line| Heard::Line(line.to_string())).into()
        }
        ToGuest::Row { .. } => passes(said),
        said => {
            answers.push(said.to_string());
            if answers.len() == 2 { vec![result("D9", Verdict::Pass)] } else { Vec::new() }
        }
    });
    let outcomes = fake.judge();
    assert_eq!(of(&outcomes, "D9").verdict, Verdict::Pass);
    assert_eq!(fake.targets, [0, 5]);
    drop(fake);
    assert_eq!(answers, ["host refused no", "host ok"]);
}

#[test]
fn a_reset_that_the_row_asked_for_goes_on_and_another_one_fails() {
    let ready = || Heard::Line(FromGuest::Ready("mmio").to_string());
    let mut fake = Fake::new(|said| match said {
        ToGuest::Row { id: "D22", again: false } => {
            vec![Heard::Line(FromGuest::Resets("D22").to_string()), ready()]
        }
        ToGuest::Row { id: "D22", again: true } => vec![result("D22", Verdict::Pass)],
        ToGuest::Row { id: "D21", .. } => {
            vec![Heard::Line(FromGuest::Resets("D21").to_string()), Heard::Ended("gone".to_owned())]
        }
        ToGuest::Row { id: "D24", .. } => vec![ready()],
        said => passes(said),
    });
    let outcomes = fake.judge();
    assert_eq!(of(&outcomes, "D22").verdict, Verdict::Pass);
    assert_eq!(of(&outcomes, "D21").verdict, Verdict::Skip);
    assert_eq!(of(&outcomes, "D24").verdict, Verdict::Fail);
}

#[test]
fn a_machine_that_does_not_come_up_twice_ends_the_trial() {
    for boot in [Vec::new(), vec![FromGuest::Unable("no device").to_string()]] {
        let mut fake = Fake { boot, ..Fake::new(passes) };
        let outcomes = fake.judge();
        assert_eq!(fake.starts, 2);
        let judged = outcomes.iter().filter(|outcome| outcome.row.skip.is_none());
        assert!(judged.clone().count() > 90);
        assert!(judged.clone().all(|outcome| outcome.verdict == Verdict::Wedged));
    }
}
