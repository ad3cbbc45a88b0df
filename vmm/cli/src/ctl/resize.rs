//! `resize`, `plug`, `unplug` of a running machine: sets a target and follows it by the API's events.
//!
//! Mirrors the step of a script: without `within` a guest that stops is a failure at once, and with it at the deadline.
//! Differs on purpose: another client may set another target meanwhile, and then this one is superseded.
//!
//! Invariant: only what is told about this target's generation counts. The events are listened to before the target is set,
//! so that none of them is missed.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};
use tidevm_abi::command::{Resize, Target};
use tidevm_abi::{ShowDuration, Size};
use tidevm_api::caller::NextLine;
use tidevm_api::http::Method;
use tidevm_session::resize_deadline;

use super::outcome::{End, Outcome};
use super::screen::Progress;
use super::{CALL_LIMIT, CtlError, Session, tell};

/// A target that was set.
#[derive(Clone, Copy, Debug)]
struct Goal {
    device: usize,
    generation: u64,
    /// A guest that stops may go on until the deadline.
    patient: bool,
    limit: Duration,
}

/// What an event or an answer says about a goal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// Nothing that ends it.
    Nothing,
    /// So much is plugged.
    Progress(Size),
    /// Some events were lost: the API has to be asked.
    Ask,
    /// The end.
    End(End),
}

impl Goal {
    fn judge(&self, event: &Value) -> Word {
        let word = event["event"].as_str().unwrap_or_default();
        match word {
            "death" => return Word::End(End::died(event)),
            "powered_off" => {
                let reason = Some("the guest powered off".to_owned());
                return Word::End(End { outcome: Outcome::Ended, reason });
            }
            "lost" => return Word::Ask,
            _ if event["region"].as_u64() != u64::try_from(self.device).ok() => return Word::Nothing,
            _ => {}
        }
        match event["generation"].as_u64() {
            Some(generation) if generation > self.generation => return Word::End(superseded(event)),
            Some(generation) if generation == self.generation => {}
            _ => return Word::Nothing,
        }
        match word {
            "done" => Word::End(End::done()),
            "failed" if !self.patient => {
                Word::End(End { outcome: Outcome::Blocked, reason: Some(stopped(event)) })
            }
            _ => Word::Progress(tell::mib(&event["plugged_size_mib"])),
        }
    }

    /// Judges a region as the API tells it. `late`: the deadline has passed.
    fn judge_region(&self, region: &Value, late: bool) -> Word {
        match region["generation"].as_u64() {
            Some(generation) if generation > self.generation => Word::End(superseded(region)),
            Some(_) if region["converged"] == true => Word::End(End::done()),
            _ if late => {
                let reason = format!("not within {}: {}", ShowDuration(self.limit), stopped(region));
                Word::End(End { outcome: Outcome::Late, reason: Some(reason) })
            }
            _ => Word::Progress(tell::mib(&region["plugged_size_mib"])),
        }
    }
}

fn superseded(told: &Value) -> End {
    let other = tell::mib(&told["requested_size_mib"]);
    let reason = format!("another client has requested {other} meanwhile");
    End { outcome: Outcome::Superseded, reason: Some(reason) }
}

/// Where a region stands, and why.
fn stopped(told: &Value) -> String {
    let (plugged, requested) = (tell::mib(&told["plugged_size_mib"]), tell::mib(&told["requested_size_mib"]));
    let why = told["reason"]["text"].as_str().unwrap_or("the guest has not said why");
    format!("{plugged} plugged of {requested}: {why}")
}

/// The new target, in MiB.
fn target_mib(target: Target, requested: Size) -> Result<u32, String> {
    let size = target.of(requested).map_err(|error| error.to_string())?;
    if !size.0.is_multiple_of(1 << 20) {
        return Err(format!("{size} is not a whole number of MiB"));
    }
    u32::try_from(size.0 >> 20).map_err(|_| format!("{size} is more than the API can ask for"))
}

impl<W: Write> Session<W> {
    pub(super) fn resize(&mut self, resize: &Resize) -> Result<End, CtlError> {
        let path = format!("/hotplug/memory?region={}", resize.device);
        let before = self.get(&path)?;
        if !before.is_done() {
            return Ok(End::refused(before.fault()));
        }
        let before = before.json();
        let mib = match target_mib(resize.target, tell::mib(&before["requested_size_mib"])) {
            Ok(mib) => mib,
            Err(reason) => return Ok(End::refused(reason)),
        };
        let (from, target) = (tell::mib(&before["plugged_size_mib"]), Size(u64::from(mib) << 20));
        let limit = resize.within.unwrap_or_else(|| resize_deadline(from, target));
        let until = self.start + limit;
        let mut lines = match self.api.lines("/events", CALL_LIMIT)? {
            Ok(lines) => lines,
            Err(refusal) => return Ok(End::refused(refusal.fault())),
        };
        // The answer to a call that waits for no time has the generation of its target.
        let body = json!({ "requested_size_mib": mib });
        let set = self.api.call(Method::Patch, &format!("{path}&wait=0s"), Some(&body), CALL_LIMIT)?;
        if !set.is_done() {
            return Ok(End::refused(set.fault()));
        }
        let set = set.json();
        if set["superseded"] == true {
            return Ok(superseded(&set));
        }
        let generation = set["generation"].as_u64().unwrap_or(0);
        let goal = Goal { device: resize.device, generation, patient: resize.within.is_some(), limit };
        let mut word = goal.judge_region(&set, false);
        loop {
            match word {
                Word::End(end) => {
                    self.tell_end(resize, &end, Progress { from, plugged: target, target })?;
                    return Ok(end);
                }
                Word::Progress(plugged) if !self.screen.is_json() => {
                    self.screen.progress(Progress { from, plugged, target })?;
                }
                Word::Ask => {
                    word = goal.judge_region(&self.get(&path)?.json(), false);
                    continue;
                }
                Word::Progress(_) | Word::Nothing => {}
            }
            word = match lines.next(Some(until))? {
                NextLine::Line(line) => {
                    let event: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
                    if self.screen.is_json() {
                        self.screen.json(&event)?;
                    }
                    goal.judge(&event)
                }
                NextLine::Late => goal.judge_region(&self.get(&path)?.json(), true),
                NextLine::End => Word::End(End {
                    outcome: Outcome::Ended,
                    reason: Some("the machine ended before the resize did".to_owned()),
                }),
            };
        }
    }

    fn tell_end(&mut self, resize: &Resize, end: &End, there: Progress) -> Result<(), CtlError> {
        if end.outcome == Outcome::Done && !self.screen.is_json() {
            if self.screen.is_terminal() {
                self.screen.progress(there)?;
            }
            let seconds = self.start.elapsed().as_secs_f64();
            self.screen.text(&format!("{resize}: {} plugged, {seconds:.2} s", there.target))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use tidevm_abi::Size;
    use tidevm_abi::command::Target;

    use super::{End, Goal, Outcome, Word, target_mib};

    const GOAL: Goal = Goal { device: 1, generation: 5, patient: false, limit: Duration::from_secs(2) };

    fn event(word: &str, region: u64, generation: u64) -> Value {
        json!({
            "event": word, "region": region, "generation": generation, "plugged_size_mib": 256,
            "requested_size_mib": 512, "reason": { "text": "no room" },
        })
    }

    fn outcome(word: Word) -> Option<Outcome> {
        match word {
            Word::End(End { outcome, .. }) => Some(outcome),
            _ => None,
        }
    }

    #[test]
    fn only_this_target_of_this_device_counts() {
        assert_eq!(outcome(GOAL.judge(&event("done", 1, 5))), Some(Outcome::Done));
        assert_eq!(GOAL.judge(&event("done", 0, 5)), Word::Nothing, "another device");
        assert_eq!(GOAL.judge(&event("done", 1, 4)), Word::Nothing, "an earlier target");
        assert_eq!(outcome(GOAL.judge(&event("done", 1, 6))), Some(Outcome::Superseded));
        assert_eq!(GOAL.judge(&event("progress", 1, 5)), Word::Progress(Size::mib(256)));
        assert_eq!(GOAL.judge(&json!({ "event": "lost", "lost": 3 })), Word::Ask);
        assert_eq!(outcome(GOAL.judge(&json!({ "event": "death" }))), Some(Outcome::Died));
        assert_eq!(outcome(GOAL.judge(&json!({ "event": "powered_off" }))), Some(Outcome::Ended));
    }

    #[test]
    fn a_guest_that_stops_fails_at_once_unless_there_is_a_deadline() {
        assert_eq!(outcome(GOAL.judge(&event("failed", 1, 5))), Some(Outcome::Blocked));
        let patient = Goal { patient: true, ..GOAL };
        assert_eq!(outcome(patient.judge(&event("failed", 1, 5))), None);
        let Word::End(late) = patient.judge_region(&event("", 1, 5), true) else { panic!("no end") };
        assert_eq!(late.reason.as_deref(), Some("not within 2s: 256M plugged of 512M: no room"));
        let mut there = event("", 1, 5);
        there["converged"] = json!(true);
        assert_eq!(outcome(patient.judge_region(&there, true)), Some(Outcome::Done), "just in time");
    }

    #[test]
    fn a_target_is_relative_to_what_is_requested() {
        let (two, one) = (Size::mib(2), Size::mib(1));
        assert_eq!(target_mib(Target::Plug(one), two), Ok(3));
        assert_eq!(target_mib(Target::Unplug(two), two), Ok(0));
        assert!(target_mib(Target::Unplug(Size::mib(3)), two).unwrap_err().contains("only 2M is requested"));
        assert!(target_mib(Target::To(Size(4096)), two).unwrap_err().contains("whole number of MiB"));
        assert!(target_mib(Target::To(Size(1 << 52)), two).unwrap_err().contains("more than the API"));
        assert!(target_mib(Target::Plug(Size(u64::MAX)), two).is_err());
    }
}
