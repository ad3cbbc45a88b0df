//! Shows a session to programs: one JSON object per line, nothing else.
//!
//! Every object has `event`: `ready` once the guest is up, `step` after each step, `end` last. Sizes are bytes,
//! counters of zones and memmap are pages, times are seconds. `devices` and `guest` describe the VM at that
//! moment. `guest` is null without a guest that answers. Its keys are those of the ABI's tables of counters. `vcpus`
//! is there only when the guest did not answer; registers are hexadecimal text there, because they do not fit into the
//! numbers of JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use tidevm_abi::{BootTimes, ByKey, Stats};
use tidevm_machine::{LookResult, VcpuReport};

use crate::session::{Booted, Ended, Observer, Sample, StepRun, Summary};

/// Writes a session as lines of JSON.
pub struct JsonLines<W>(pub W);

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event<'r> {
    Ready {
        seconds: Option<f64>,
        cpus: Option<u32>,
        mem_devices: Option<u32>,
        #[serde(flatten)]
        sample: Sampled<'r>,
    },
    Step {
        line: usize,
        column: usize,
        command: String,
        seconds: f64,
        ok: bool,
        note: Option<&'r str>,
        reason: Option<String>,
        #[serde(flatten)]
        sample: Sampled<'r>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        vcpus: Vec<Vcpu<'r>>,
    },
    End {
        status: u8,
        outcome: &'static str,
        reason: Option<String>,
        seconds: f64,
        boot_seconds: Option<f64>,
        steps: u64,
        failed: u64,
        plug_seconds_per_gib: Option<f64>,
        unplug_seconds_per_gib: Option<f64>,
        exits: BTreeMap<&'static str, u64>,
        resets: u64,
        stray_accesses: u64,
        bad_records: u64,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        vcpus: Vec<Vcpu<'r>>,
    },
}

/// A vCPU of a guest that did not answer.
#[derive(Serialize)]
struct Vcpu<'r> {
    vcpu: usize,
    state: String,
    #[serde(flatten)]
    details: Option<VcpuDetails<'r>>,
}

#[derive(Serialize)]
struct VcpuDetails<'r> {
    interrupts: bool,
    rip: String,
    symbol: Option<&'r str>,
    irr: &'r [u8],
    isr: &'r [u8],
    exception: Option<u8>,
    interrupt: Option<u8>,
    nmi: bool,
    unplugged: &'r [String],
    registers: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Sampled<'s> {
    devices: Vec<Device>,
    guest: Option<Guest<'s>>,
}

#[derive(Serialize)]
struct Device {
    region_size: u64,
    requested: u64,
    plugged: u64,
    held: Option<u64>,
}

#[derive(Serialize)]
struct Guest<'s> {
    #[serde(flatten)]
    counters: ByKey<'s>,
    boot: Boot,
}

/// The milestones of boot, in seconds since the kernel's start.
#[derive(Serialize)]
struct Boot {
    mapped_seconds: f64,
    first_allocation_seconds: f64,
    initialised_seconds: Option<f64>,
    memmaps_written: u64,
}

impl<W: Write> JsonLines<W> {
    fn line(&mut self, event: &Event<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, event)?;
        self.0.write_all(b"\n")?;
        self.0.flush()
    }
}

impl<W: Write> Observer for JsonLines<W> {
    fn boot(&mut self, booted: &Booted) -> io::Result<()> {
        self.line(&Event::Ready {
            seconds: booted.ready.map(|ready| ready.after.as_secs_f64()),
            cpus: booted.ready.map(|ready| ready.cpus),
            mem_devices: booted.ready.map(|ready| ready.mem_devices),
            sample: sampled(&booted.sample),
        })
    }

    fn step(&mut self, run: &StepRun) -> io::Result<()> {
        let (note, reason) = match &run.result {
            Ok(note) => (note.as_deref(), None),
            Err(failure) => (None, Some(failure.to_string())),
        };
        self.line(&Event::Step {
            line: run.line,
            column: run.column,
            command: run.command.to_string(),
            seconds: run.took.as_secs_f64(),
            ok: reason.is_none(),
            note,
            reason,
            sample: sampled(&run.sample),
            vcpus: run.vcpus.iter().map(vcpu).collect(),
        })
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        let (outcome, reason) = match &summary.ended {
            Ended::Done => ("done", None),
            Ended::Failed { reason } => ("failed", reason.clone()),
            Ended::Misread(errors) => ("script", Some(errors.to_string())),
            Ended::Died(death) => ("died", Some(death.to_string())),
            Ended::Signal { .. } => ("signal", None),
        };
        let exits = summary.exits;
        self.line(&Event::End {
            status: summary.ended.status(),
            outcome,
            reason,
            seconds: summary.total.as_secs_f64(),
            boot_seconds: summary.boot.map(|boot| boot.as_secs_f64()),
            steps: summary.steps,
            failed: summary.failed,
            plug_seconds_per_gib: summary.plug.seconds_per_gib(),
            unplug_seconds_per_gib: summary.unplug.seconds_per_gib(),
            exits: BTreeMap::from([
                ("io", exits.io),
                ("mmio", exits.mmio),
                ("stray", exits.stray),
                ("interrupted", exits.interrupted),
                ("other", exits.other),
            ]),
            resets: summary.resets,
            stray_accesses: summary.stray_accesses,
            bad_records: summary.bad_records,
            vcpus: summary.vcpus.iter().map(vcpu).collect(),
        })
    }
}

fn vcpu(report: &VcpuReport) -> Vcpu<'_> {
    let hex = |number: u64| format!("{number:#x}");
    let (state, details) = match &report.seen {
        LookResult::State(state) => (state.activity.to_string(), Some(state)),
        LookResult::Ended => ("ended".to_owned(), None),
        LookResult::Silent => ("in the guest".to_owned(), None),
        LookResult::Reset => ("being reset".to_owned(), None),
        LookResult::Unreadable(why) => (why.clone(), None),
    };
    let details = details.map(|state| VcpuDetails {
        interrupts: state.interrupts,
        rip: hex(state.rip),
        symbol: state.symbol.as_deref(),
        irr: &state.requested,
        isr: &state.in_service,
        exception: state.exception,
        interrupt: state.interrupt,
        nmi: state.nmi,
        unplugged: &state.unplugged,
        registers: state.registers.iter().map(|&(name, value)| (name, hex(value))).collect(),
    });
    Vcpu { vcpu: report.vcpu, state, details }
}

fn sampled(sample: &Sample) -> Sampled<'_> {
    let devices = sample.devices.iter().map(|device| Device {
        region_size: device.region_size.0,
        requested: device.requested.0,
        plugged: device.plugged.0,
        held: device.held.map(|size| size.0),
    });
    Sampled { devices: devices.collect(), guest: sample.guest.as_ref().map(guest) }
}

fn guest(stats: &Stats) -> Guest<'_> {
    Guest { counters: ByKey(stats), boot: boot(stats.boot) }
}

fn boot(times: BootTimes) -> Boot {
    let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
    Boot {
        mapped_seconds: seconds(times.mapped),
        first_allocation_seconds: seconds(times.first_allocation),
        initialised_seconds: times.initialised.map(seconds),
        memmaps_written: times.memmaps_written,
    }
}

#[cfg(test)]
mod tests;
