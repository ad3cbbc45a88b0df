//! Events: what changed from one state of a guest to another.
//!
//! Pure, and complete for any two states, so that a slow reader that sees only some of the states still gets true events: they
//! tell of the difference, not of each step.

use serde_json::{Value, json};
use tidevm_machine::{MemStatus, Settled, State};

use crate::draft::mib;
use crate::memory::{converged, reason};

/// The events from `before` to `after`, in the order in which they are told. `reports`: the guest reports.
#[must_use]
pub fn events(before: &State, after: &State, reports: bool) -> Vec<Value> {
    let mut events = Vec::new();
    let reset = before.resets != after.resets;
    if reset {
        events.push(json!({ "event": "reset", "resets": after.resets }));
    }
    if let Some(ready) = after.ready.filter(|_| reset || before.ready.is_none()) {
        events.push(json!({ "event": "ready", "after_ms": millis(ready.after), "cpus": ready.cpus }));
    }
    if before.paused != after.paused {
        events.push(json!({ "event": if after.paused { "paused" } else { "resumed" } }));
    }
    if let Some(pressure) = after.pressure.filter(|now| now.short && before.pressures != after.pressures) {
        events.push(json!({
            "event": "pressure",
            "available": pressure.available.0,
            "waiting": pressure.waiting,
            "waited": pressure.waited,
        }));
    }
    for (index, (old, new)) in before.mem.iter().zip(&after.mem).enumerate() {
        events.extend(of_region(index, old, new, reports));
    }
    match (&before.death, &after.death) {
        (None, Some(death)) => events.push(json!({ "event": "death", "reason": death.kind.to_string() })),
        _ if !before.powered_off && after.powered_off => events.push(json!({ "event": "powered_off" })),
        _ => {}
    }
    events
}

/// How a region stands: at its target, blocked, or neither.
fn standing(mem: &MemStatus, reports: bool) -> Option<Settled> {
    if converged(mem, reports) {
        return Some(Settled::AtTarget);
    }
    mem.settled(mem.requested, reports, false)
}

fn of_region(index: usize, old: &MemStatus, new: &MemStatus, reports: bool) -> Vec<Value> {
    let event = |event: &str| {
        json!({
            "event": event,
            "region": index,
            "generation": new.targets,
            "requested_size_mib": mib(new.requested),
            "plugged_size_mib": mib(new.plugged),
        })
    };
    let mut events = Vec::new();
    let requested = old.targets != new.targets;
    if requested {
        events.push(event("requested"));
    }
    if old.plugged != new.plugged {
        events.push(event("progress"));
    }
    let (was, is) = (standing(old, reports), standing(new, reports));
    // After a new target an old standing is told again, because it is the answer to another question.
    let anew = requested || was != is || (is.is_some() && reason(old, reports) != reason(new, reports));
    match is {
        Some(Settled::AtTarget) if anew => events.push(event("done")),
        Some(Settled::Blocked) if anew => {
            let mut failed = event("failed");
            failed["reason"] = reason(new, reports);
            events.push(failed);
        }
        _ => {}
    }
    events
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
