//! The events between two states.

use std::time::Duration;

use serde_json::{Value, json};
use tidevm_abi::{Pressure, Resize, ResizeState, Size};
use tidevm_machine::{Death, DeathKind, MemStatus, Ready, State};

use super::events;

/// A region whose driver has answered its target `targets` with `state`.
fn region(targets: u64, requested: u64, plugged: u64, state: Option<ResizeState>) -> MemStatus {
    let (requested, plugged) = (Size::mib(requested), Size::mib(plugged));
    let generation = targets as u32;
    let report = |state| Resize { region: 0, requested, plugged, state, generation };
    MemStatus {
        region_size: Size::gib(1),
        requested,
        plugged,
        targets,
        generation,
        seen: Some(generation),
        driver: true,
        report: state.map(report),
        ..MemStatus::default()
    }
}

fn state(mem: MemStatus) -> State {
    State { mem: vec![mem], ..State::default() }
}

fn names(before: &State, after: &State) -> Vec<String> {
    let name = |event: Value| event["event"].as_str().unwrap().to_owned();
    events(before, after, true).into_iter().map(name).collect()
}

#[test]
fn a_resize_is_requested_makes_progress_and_is_done() {
    let before = state(region(1, 0, 0, Some(ResizeState::Reached)));
    let requested = state(region(2, 512, 0, None));
    assert_eq!(names(&before, &requested), ["requested"]);
    let half = state(region(2, 512, 256, None));
    let expected = json!({
        "event": "progress", "region": 0, "generation": 2, "requested_size_mib": 512, "plugged_size_mib": 256,
    });
    assert_eq!(events(&requested, &half, true), [expected]);
    let done = state(region(2, 512, 512, Some(ResizeState::Reached)));
    assert_eq!(names(&half, &done), ["progress", "done"]);
    assert_eq!(names(&before, &done), ["requested", "progress", "done"], "a reader who slept");
    assert!(names(&done, &done).is_empty());
    let again = state(region(3, 512, 512, Some(ResizeState::Reached)));
    assert_eq!(names(&done, &again), ["requested", "done"], "the same size again is another target");
}

#[test]
fn a_resize_that_stops_fails_with_its_reason_and_may_go_on() {
    let half = state(region(2, 512, 256, None));
    let blocked = state(region(2, 512, 256, Some(ResizeState::NoMemory)));
    let told = events(&half, &blocked, true);
    assert_eq!(told[0]["event"], json!("failed"));
    assert_eq!(told[0]["reason"]["kind"], json!("out_of_memory"));
    let other = state(region(2, 512, 256, Some(ResizeState::NoRoom)));
    assert_eq!(names(&blocked, &other), ["failed"], "another reason is another event");
    let done = state(region(2, 512, 512, Some(ResizeState::Reached)));
    assert_eq!(names(&blocked, &done), ["progress", "done"]);
    let busy = state(region(2, 512, 256, Some(ResizeState::HostBusy)));
    assert!(names(&half, &busy).is_empty(), "a driver that tries again has not stopped");
}

#[test]
fn the_guest_comes_pauses_resets_and_goes() {
    let ready = Some(Ready { cpus: 2, mem_devices: 1, after: Duration::from_millis(1500) });
    let (before, up) = (State::default(), State { ready, ..State::default() });
    assert_eq!(events(&before, &up, true), [json!({ "event": "ready", "after_ms": 1500, "cpus": 2 })]);
    let paused = State { paused: true, ..up.clone() };
    assert_eq!(names(&up, &paused), ["paused"]);
    assert_eq!(names(&paused, &up), ["resumed"]);
    let reset = State { resets: 1, ready: None, ..up.clone() };
    assert_eq!(names(&up, &reset), ["reset"]);
    let both = State { resets: 2, ..up.clone() };
    assert_eq!(names(&up, &both), ["reset", "ready"], "the guest that is up is another one");
    let off = State { powered_off: true, ..up.clone() };
    assert_eq!(names(&up, &off), ["powered_off"]);
    let death = Some(Death { kind: DeathKind::TripleFault, text: String::new() });
    let dead = State { death, ..up.clone() };
    assert_eq!(names(&up, &dead), ["death"]);
    assert!(names(&dead, &dead).is_empty() && names(&off, &off).is_empty());
}

/// Only memory that is short is told, and once for each report.
#[test]
fn pressure_is_told_when_memory_is_short() {
    let told = |pressures, short| {
        let pressure =
            Pressure { available: Size::mib(3), short, waiting: 1, waited: 2, ..Pressure::default() };
        State { pressure: Some(pressure), pressures, ..State::default() }
    };
    let before = State::default();
    let expected = json!({ "event": "pressure", "available": 3 << 20, "waiting": 1, "waited": 2 });
    assert_eq!(events(&before, &told(1, true), true), [expected]);
    assert_eq!(names(&told(1, true), &told(1, true)), [""; 0]);
    assert_eq!(names(&before, &told(1, false)), [""; 0]);
    assert_eq!(names(&told(1, true), &told(3, true)), ["pressure"]);
}
