//! Shows a session to programs, as the events of [`tidevm_events`]: one JSON object per line, nothing else.
//!
//! An observer of a session makes the events between `start` and `end`. The program that runs a session makes the
//! `start`, and the `end` of one whose machine is not started.
//!
//! Invariant: a value of the guest is shown as it is. A guest may report a zone twice; the object has its key once.

use std::io::{self, Write};
use std::time::Duration;

use tidevm_abi::{Answer, BlockRun, BootTimes, Counter, Kernel, NodeStats, Stats, ZoneStats};
use tidevm_events::{
    Answers, Block, Blocks, Boot, Counters, Device, End, Event, Exits, Guest, Line, Node, Outcome, Ready,
    Requests, Sampled, Step, StepResult, Vcpu, VcpuDetails,
};
use tidevm_machine::{LookResult, RequestCounts, VcpuReport};

use crate::session::{Booted, DeviceSample, Ended, Observer, Sample, StepRun, Summary};

/// Makes events of a session, for a function that writes or collects them.
pub struct Events<F>(pub F);

/// Writes a session as lines of JSON.
pub fn lines<W: Write>(mut out: W) -> Events<impl FnMut(&Line) -> io::Result<()>> {
    Events(move |line: &Line| write(&mut out, line))
}

/// Writes a line of JSON at once.
///
/// # Errors
/// `out` cannot be written.
pub fn write(mut out: impl Write, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    out.write_all(&text)?;
    out.flush()
}

impl<F: FnMut(&Line) -> io::Result<()>> Events<F> {
    fn tell(&mut self, at: Duration, event: Event) -> io::Result<()> {
        (self.0)(&Line::now(at, event))
    }
}

impl<F: FnMut(&Line) -> io::Result<()>> Observer for Events<F> {
    fn follows(&self) -> bool {
        true
    }

    fn sample(&mut self, at: Duration, sample: &Sample) -> io::Result<()> {
        self.tell(at, Event::Sample(Box::new(sampled(sample))))
    }

    fn boot(&mut self, booted: &Booted) -> io::Result<()> {
        self.tell(booted.at, ready(booted))
    }

    fn step(&mut self, run: &StepRun) -> io::Result<()> {
        self.tell(run.start + run.took, step(run))
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.tell(summary.total, end(summary))
    }
}

fn ready(booted: &Booted) -> Event {
    Event::Ready(Box::new(Ready {
        seconds: booted.ready.map(|ready| ready.after.as_secs_f64()),
        cpus: booted.ready.map(|ready| ready.cpus),
        mem_devices: booted.ready.map(|ready| ready.mem_devices),
        sampled: sampled(&booted.sample),
    }))
}

fn step(run: &StepRun) -> Event {
    let (note, reason) = match &run.result {
        Ok(note) => (note.clone(), None),
        Err(failure) => (None, Some(failure.to_string())),
    };
    let listed =
        run.listed.as_deref().map(|runs| StepResult::Blocks { blocks: runs.iter().map(block).collect() });
    Event::Step(Box::new(Step {
        line: run.line,
        column: run.column,
        name: run.name.clone(),
        command: run.command.to_string(),
        start_seconds: run.start.as_secs_f64(),
        seconds: run.took.as_secs_f64(),
        ok: run.is_done(),
        note,
        reason,
        result: listed.or_else(|| result(run.answer?)),
        sampled: sampled(&run.sample),
        vcpus: run.vcpus.iter().map(vcpu).collect(),
    }))
}

/// The answers that have more to tell than that it is done, or why not.
fn result(answer: Answer) -> Option<StepResult> {
    let seconds = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64();
    Some(match answer {
        Answer::Checked { pages, deferred } => StepResult::Checked { pages, deferred },
        Answer::Hogged { pages } => StepResult::Hogged { pages },
        Answer::Verified { pages, corrupt, .. } => StepResult::Verified { pages, corrupt },
        Answer::Released { pages } => StepResult::Released { pages },
        Answer::Raced { cycles, failures, stranded } => StepResult::Raced { cycles, failures, stranded },
        Answer::PmemMapped(mapped) => StepResult::PmemMapped {
            pages: mapped.pages,
            locked_pages: mapped.locked_pages,
            locked_seconds: seconds(mapped.locked_ns),
            total_seconds: seconds(mapped.total_ns),
            cpus: mapped.cpus,
        },
        Answer::PmemUnmapped { pages } => StepResult::PmemUnmapped { pages },
        Answer::Meminfo(meminfo) => StepResult::Meminfo {
            total: meminfo.total.0,
            free: meminfo.free.0,
            available: meminfo.available.0,
        },
        _ => return None,
    })
}

fn end(summary: &Summary) -> Event {
    let (outcome, reason) = match &summary.ended {
        Ended::Done => (Outcome::Done, None),
        Ended::Failed { reason } => (Outcome::Failed, reason.clone()),
        Ended::Misread(errors) => (Outcome::Script, Some(errors.to_string())),
        Ended::Died(death) => (Outcome::Died, Some(death.to_string())),
        Ended::TimedOut { reason } => (Outcome::TimedOut, Some(reason.clone())),
        Ended::Signal { signal } => (Outcome::Signal, Some(format!("signal {signal} came"))),
    };
    let signal = if let Ended::Signal { signal } = summary.ended { Some(signal) } else { None };
    let exits = summary.exits;
    Event::End(Box::new(End {
        status: summary.ended.status(),
        outcome,
        reason,
        signal,
        seconds: summary.total.as_secs_f64(),
        boot_seconds: summary.boot.map(|boot| boot.as_secs_f64()),
        steps: summary.steps,
        failed: summary.failed,
        plug_seconds_per_gib: summary.plug.seconds_per_gib(),
        unplug_seconds_per_gib: summary.unplug.seconds_per_gib(),
        exits: Exits {
            io: exits.io,
            mmio: exits.mmio,
            stray: exits.stray,
            interrupted: exits.interrupted,
            other: exits.other,
        },
        resets: summary.resets,
        stray_accesses: summary.stray_accesses,
        bad_records: summary.bad_records,
        saved: summary.saved.as_ref().map(|saved| saved.path.to_string_lossy().into_owned()),
        vcpus: summary.vcpus.iter().map(vcpu).collect(),
    }))
}

fn vcpu(report: &VcpuReport) -> Vcpu {
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
        symbol: state.symbol.clone(),
        irr: state.requested.clone(),
        isr: state.in_service.clone(),
        exception: state.exception,
        interrupt: state.interrupt,
        nmi: state.nmi,
        unplugged: state.unplugged.clone(),
        registers: state.registers.iter().map(|&(name, value)| (name.to_owned(), hex(value))).collect(),
    });
    Vcpu { vcpu: report.vcpu, state, details }
}

fn sampled(sample: &Sample) -> Sampled {
    Sampled {
        devices: sample.devices.iter().map(device).collect(),
        resets: sample.resets,
        guest: sample.guest.as_ref().map(guest),
        blocks: sample.blocks.as_ref().map(|blocks| Blocks {
            runs: blocks.runs.iter().map(block).collect(),
            complete: blocks.complete,
        }),
    }
}

fn device(device: &DeviceSample) -> Device {
    Device {
        address: device.region,
        region_size: device.region_size.0,
        requested: device.requested.0,
        plugged: device.plugged.0,
        guest_usable: device.guest_usable.map(|size| size.0),
        held: device.held.map(|size| size.0),
        requests: requests(&device.requests),
    }
}

fn requests(counts: &RequestCounts) -> Requests {
    let [plug, unplug, unplug_all, state, malformed] = counts.by.map(Answers::from);
    let (refused_chains, plugged, unplugged) = (counts.refused_chains, counts.plugged.0, counts.unplugged.0);
    Requests { plug, unplug, unplug_all, state, malformed, refused_chains, plugged, unplugged }
}

fn block(run: &BlockRun) -> Block {
    Block {
        address: run.addr,
        count: run.count,
        size: run.size.0,
        boot: run.boot,
        state: run.state.as_str().to_owned(),
        zone: run.zone.map(|zone| zone.to_string()),
        node: run.node,
        plugged: run.plugged.map(|size| size.0),
        memmap_pages: run.memmap.map(|memmap| memmap.pages),
        memmap_on_memory: run.memmap.map(|memmap| memmap.on_memory),
    }
}

fn guest(stats: &Stats) -> Guest {
    let kernel = stats.kernel;
    Guest {
        zones: stats.zones.iter().map(|stats| zone(stats, kernel)).collect(),
        nodes: stats.nodes.iter().take(stats.nr_nodes.into()).map(|stats| node(stats, kernel)).collect(),
        counters: counters(Stats::COUNTERS, stats, kernel),
        boot: (kernel == Kernel::Tidevm).then(|| boot(stats.boot)),
    }
}

fn node(node: &NodeStats, kernel: Kernel) -> Node {
    let zones = node.zones.iter().map(|stats| zone(stats, kernel)).collect();
    Node { zones, counters: counters(NodeStats::COUNTERS, node, kernel) }
}

fn zone(zone: &ZoneStats, kernel: Kernel) -> (String, Counters) {
    (zone.name.as_str().to_owned(), counters(ZoneStats::COUNTERS, zone, kernel))
}

/// The counters that a table of the ABI lists and `kernel` tells, by their keys.
fn counters<T>(table: &[Counter<T>], stats: &T, kernel: Kernel) -> Counters {
    let told = table.iter().filter(|counter| counter.told_by(kernel));
    told.map(|counter| (counter.key.to_owned(), (counter.read)(stats))).collect()
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
