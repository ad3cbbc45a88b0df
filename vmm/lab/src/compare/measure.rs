//! Measures a session on one VM.
//!
//! The device reaches its size before the guest uses the memory. So the time of a resize ends when the guest's
//! counters show the size. The time of the guest's answer is subtracted. Where instructions are counted, the
//! guest is not asked, because an answer takes instructions. There the resize ends when the guest has become
//! quiet. Instructions of the idle guest's timers are not subtracted.

use std::thread;
use std::time::{Duration, Instant};

use tidevm_abi::{PAGE_SIZE, Size, ZoneName, ZoneStats};
use tidevm_session::script::Script;
use tidevm_session::{Ended, Sample};

use super::measured_vm::{self, Linux, LinuxOnKvm, MeasuredVm, OnQemu};
use super::{BOOT, Guest, Host, Measurement, Phase, PlannedPhase, phases};
use crate::zoneinfo::{self, Zone};

/// Time between two looks at the instructions.
const LOOK: Duration = Duration::from_millis(250);
/// A guest with fewer instructions between two looks is quiet. An idle Linux executes 50 thousand, a
/// five-hundredth of its quickest resize.
const QUIET: u64 = 100_000;
/// Longest time until the guest uses the plugged memory.
const USE_LIMIT: Duration = Duration::from_secs(60);
/// Longest time until the guest is quiet.
const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// Time for the guest to become quiet where instructions are not counted.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs the session on `host` with `guest`, with progress on standard error.
pub fn session(host: Host, guest: Guest, linux: &Linux) -> Measurement {
    let mut measurement = Measurement { host, guest, phases: Vec::new(), error: None };
    let phases = &mut measurement.phases;
    let result = match (host, guest) {
        (Host::Tidevm, Guest::Tidevm) => on_own_machine(phases),
        (Host::Tidevm, Guest::Linux) => {
            LinuxOnKvm::start(linux).and_then(|mut linux| run(&mut linux, phases))
        }
        _ => OnQemu::start(guest, linux, host == Host::QemuCounting)
            .and_then(|mut machine| run(&mut machine, phases)),
    };
    measurement.error = result.err();
    measurement
}

fn run(machine: &mut impl MeasuredVm, done: &mut Vec<Phase>) -> Result<(), String> {
    settle(machine)?;
    done.push(Phase { name: BOOT.to_owned(), seconds: 0.0, instructions: None, zones: zones(machine)? });
    for planned in phases() {
        let before = machine.instructions()?;
        let start = Instant::now();
        if planned.is_resize() {
            machine.resize(planned.plugged)?;
        } else {
            machine.ask(&planned.command)?;
        }
        let mut took = start.elapsed();
        if planned.is_resize() && before.is_none() {
            await_use(machine, planned.plugged)?;
            took = start.elapsed().saturating_sub(telling(machine)?).max(took);
        }
        let after = settle(machine)?;
        let instructions = after.zip(before).map(|(after, before)| after - before);
        let (seconds, zones) = (took.as_secs_f64(), zones(machine)?);
        done.push(told(Phase { name: planned.name, seconds, instructions, zones }));
    }
    Ok(())
}

/// The time of the guest's answer with its counters.
fn telling(machine: &mut impl MeasuredVm) -> Result<Duration, String> {
    let start = Instant::now();
    zones(machine)?;
    Ok(start.elapsed())
}

/// Waits until the guest's Movable zone has this size.
fn await_use(machine: &mut impl MeasuredVm, size: Size) -> Result<(), String> {
    let deadline = Instant::now() + USE_LIMIT;
    loop {
        let zones = zones(machine)?;
        let movable = zones.iter().filter(|zone| zone.name == ZoneName::Movable.as_str());
        let present: u64 = movable.map(|zone| zone.present).sum();
        if present * PAGE_SIZE == size.0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!(
                "waited {USE_LIMIT:?} for the guest to use {size}; {present} pages are there"
            ));
        }
    }
}

/// Prints a phase that is done.
fn told(phase: Phase) -> Phase {
    let count = phase.instructions.map_or_else(String::new, |count| format!(", {count} instructions"));
    eprintln!("    {}: {:.3} s{count}", phase.name, phase.seconds);
    phase
}

fn zones(machine: &mut impl MeasuredVm) -> Result<Vec<Zone>, String> {
    Ok(zoneinfo::parse(machine.ask("zoneinfo")?.iter().map(String::as_str)))
}

/// Waits until the guest is quiet. Returns the instructions up to then, where they are counted.
fn settle(machine: &mut impl MeasuredVm) -> Result<Option<u64>, String> {
    let deadline = Instant::now() + QUIET_LIMIT;
    let Some(mut last) = machine.instructions()? else {
        thread::sleep(SETTLE);
        return Ok(None);
    };
    while Instant::now() < deadline {
        thread::sleep(LOOK);
        match machine.instructions()? {
            Some(now) if now - last < QUIET => return Ok(Some(now)),
            now => last = now.unwrap_or(last),
        }
    }
    Err(format!("waited {QUIET_LIMIT:?} for the guest to become quiet"))
}

/// For tidevm's own guest on tidevm, the session is a script. This guest needs no console.
fn on_own_machine(done: &mut Vec<Phase>) -> Result<(), String> {
    let planned = phases();
    let within = |phase: &PlannedPhase| {
        let limit = if phase.is_resize() { " within 20m" } else { "" };
        format!("{}{limit}", phase.command)
    };
    let lines: Vec<String> = planned.iter().map(within).collect();
    let script = Script::parse("session", &lines.join("\n")).map_err(|errors| errors.to_string())?;
    let session = measured_vm::locked_in(|config| config, |vm| tidevm_session::record(vm, &script))?;
    let boot = session.boot.ok_or_else(|| format!("the guest never came up: {:?}", session.summary.ended))?;
    let zones = zones_of(&boot.sample)?;
    done.push(Phase { name: BOOT.to_owned(), seconds: 0.0, instructions: None, zones });
    for (planned, report) in planned.into_iter().zip(&session.steps) {
        if let Err(failure) = &report.result {
            return Err(format!("{}: {failure}", planned.name));
        }
        let (seconds, zones) = (report.took.as_secs_f64(), zones_of(&report.sample)?);
        done.push(told(Phase { name: planned.name, seconds, instructions: None, zones }));
    }
    match session.summary.ended {
        Ended::Done => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn zones_of(sample: &Sample) -> Result<Vec<Zone>, String> {
    let zone = |zone: ZoneStats| Zone {
        node: 0,
        name: zone.name.to_string(),
        spanned: zone.spanned,
        present: zone.present,
        managed: zone.managed,
        free: zone.free + zone.pcp,
    };
    let guest = sample.guest.ok_or("the guest tells no counters")?;
    Ok(guest.zones.into_iter().map(zone).collect())
}
