//! What `GET /metrics` tells: the text format of Prometheus, version 0.0.4.
//!
//! Mirrors <https://prometheus.io/docs/instrumenting/exposition_formats/> and the conventions for names: base units,
//! `_total` for counters alone, a help text for each name. Differs on purpose from Firecracker's metrics file: a counter
//! counts since the start.
//!
//! Pure: facts in, text out. Invariant: all samples of a name stand together, after its help and its type.

use std::fmt::{Display, Write};
use std::time::Duration;

use tidevm_abi::{PAGE_SIZE, Size, Stats, ZoneStats};
use tidevm_machine::{
    ANSWERS, DISK_ANSWERS, DISK_REQUEST_KINDS, DiskCounts, ExitCounts, LATENCY_BOUNDS, Latency, MemStatus,
    REQUEST_KINDS, RequestCounts, State,
};
use tidevm_sizer::Status;

use crate::memory::converged;
use crate::requests::Requests;

/// The type of the text, for HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is told.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The version of this program.
    pub version: &'a str,
    /// The state of the guest.
    pub state: &'a State,
    /// Whether the guest reports.
    pub reports: bool,
    /// Exits, by vCPU.
    pub exits: &'a [ExitCounts],
    /// The host memory that each region holds, if the host tells.
    pub held: Option<&'a [Size]>,
    /// Requests, by device.
    pub requests: &'a [RequestCounts],
    /// What each disk has counted.
    pub disks: &'a [DiskCounts],
    /// How the machine is sized automatically, if it is.
    pub auto: Option<&'a Status>,
    /// Requests of clients.
    pub api: &'a Requests,
    /// The guest's last counters, and their age.
    pub sample: Option<(&'a Stats, Duration)>,
}

/// Counters of [`Stats::COUNTERS`] that count since the guest's boot. The others may fall.
const RISING: &[&str] = &[
    "pages_migrated",
    "migrate_failed",
    "pcp_drains",
    "pcp_stranded",
    "memmaps_written",
    "alloc_failed",
    "alloc_waited",
    "alloc_gave_up",
    "driver_mismatches",
    "driver_errors",
    "driver_overdue",
    "driver_resets",
];

/// All metrics.
#[must_use]
pub fn text(facts: &Facts<'_>) -> String {
    let mut page = Page::default();
    let state = facts.state;
    page.family("tidevm_build_info", GAUGE, "The version of tidevm, as a label.");
    page.sample("tidevm_build_info", &[("version", facts.version)], 1);
    page.single(
        "tidevm_guest_ready",
        GAUGE,
        "Whether the guest has said that it is up.",
        flag(state.ready.is_some()),
    );
    page.single("tidevm_guest_paused", GAUGE, "Whether the guest stands still.", flag(state.paused));
    page.single("tidevm_resets_total", COUNTER, "Resets of the machine.", state.resets);
    page.single(
        "tidevm_stray_accesses_total",
        COUNTER,
        "Accesses of the guest to addresses without a device.",
        state.stray_accesses,
    );
    page.single(
        "tidevm_bad_records_total",
        COUNTER,
        "Messages of the guest on the control channel that could not be understood.",
        state.bad_records,
    );
    exits(&mut page, facts.exits);
    regions(&mut page, facts);
    requests(&mut page, facts.requests);
    disks(&mut page, facts.disks);
    auto(&mut page, facts.auto);
    api(&mut page, facts.api);
    if let Some((stats, age)) = facts.sample {
        guest(&mut page, stats, age);
    }
    page.text
}

fn exits(page: &mut Page, exits: &[ExitCounts]) {
    const NAME: &str = "tidevm_vcpu_exits_total";
    page.family(NAME, COUNTER, "Exits of a vCPU from the guest, by kind.");
    for (index, exits) in exits.iter().enumerate() {
        let vcpu = index.to_string();
        for (kind, count) in [
            ("io", exits.io),
            ("mmio", exits.mmio),
            ("stray", exits.stray),
            ("interrupted", exits.interrupted),
            ("other", exits.other),
        ] {
            page.sample(NAME, &[("vcpu", &vcpu), ("kind", kind)], count);
        }
    }
}

/// A gauge of each region, with its help text.
type RegionGauge = (&'static str, &'static str, fn(&MemStatus) -> Option<u64>);

const REGION_GAUGES: &[RegionGauge] = &[
    ("tidevm_hotplug_size_bytes", "Size of a hotplug region.", |mem| Some(mem.region_size.0)),
    ("tidevm_hotplug_requested_bytes", "Memory that the guest is asked to have plugged.", |mem| {
        Some(mem.requested.0)
    }),
    ("tidevm_hotplug_plugged_bytes", "Memory that is plugged.", |mem| Some(mem.plugged.0)),
    ("tidevm_hotplug_usable_bytes", "Memory that the device lets the guest use.", |mem| Some(mem.usable.0)),
    ("tidevm_hotplug_guest_used_bytes", "Memory that the driver had in use at its last report.", |mem| {
        mem.report.map(|report| report.plugged.0)
    }),
    ("tidevm_hotplug_driver", "Whether the guest drives the device.", |mem| Some(flag(mem.driver))),
];

fn regions(page: &mut Page, facts: &Facts<'_>) {
    let regions = || facts.state.mem.iter().enumerate().map(|(index, mem)| (index.to_string(), mem));
    for (name, help, read) in REGION_GAUGES {
        page.family(name, GAUGE, help);
        for (device, mem) in regions() {
            if let Some(value) = read(mem) {
                page.sample(name, &[("device", &device)], value);
            }
        }
    }
    page.family(
        "tidevm_hotplug_converged",
        GAUGE,
        "Whether as much is plugged as is requested, and the guest says so.",
    );
    for (device, mem) in regions() {
        page.sample("tidevm_hotplug_converged", &[("device", &device)], flag(converged(mem, facts.reports)));
    }
    page.family("tidevm_hotplug_targets_total", COUNTER, "Targets that were set.");
    for (device, mem) in regions() {
        page.sample("tidevm_hotplug_targets_total", &[("device", &device)], mem.targets);
    }
    page.family("tidevm_hotplug_held_bytes", GAUGE, "Host memory behind a region, resident and swapped out.");
    for (index, held) in facts.held.unwrap_or_default().iter().enumerate() {
        page.sample("tidevm_hotplug_held_bytes", &[("device", &index.to_string())], held.0);
    }
}

fn requests(page: &mut Page, requests: &[RequestCounts]) {
    const COUNTS: &str = "tidevm_virtio_mem_requests_total";
    const CHAINS: &str = "tidevm_virtio_mem_refused_chains_total";
    const MOVED: &str = "tidevm_virtio_mem_moved_bytes_total";
    const SECONDS: &str = "tidevm_virtio_mem_request_duration_seconds";
    page.family(COUNTS, COUNTER, "Requests to a virtio-mem device, by type and answer.");
    by_answer(page, COUNTS, (&REQUEST_KINDS, &ANSWERS), requests.iter().map(|counts| &counts.by));
    page.family(CHAINS, COUNTER, "Chains of buffers, and queues, that a virtio-mem device could not use.");
    for (index, counts) in requests.iter().enumerate() {
        page.sample(CHAINS, &[("device", &index.to_string())], counts.refused_chains);
    }
    page.family(MOVED, COUNTER, "Memory that requests to a virtio-mem device plugged or unplugged.");
    for (index, counts) in requests.iter().enumerate() {
        for (kind, size) in [("plug", counts.plugged), ("unplug", counts.unplugged)] {
            page.sample(MOVED, &[("device", &index.to_string()), ("type", kind)], size.0);
        }
    }
    page.family(SECONDS, HISTOGRAM, "Time from a request that moves memory to its answer.");
    for (index, counts) in requests.iter().enumerate() {
        let device = index.to_string();
        for (kind, latency) in [("plug", &counts.plug), ("unplug", &counts.unplug)] {
            page.histogram(SECONDS, &[("device", &device), ("type", kind)], latency);
        }
    }
}

/// The requests to each of several devices, by type and answer, which have these names.
fn by_answer<'c, const KINDS: usize, const ANSWERS: usize>(
    page: &mut Page,
    family: &str,
    (kinds, answers): (&[&str; KINDS], &[&str; ANSWERS]),
    devices: impl Iterator<Item = &'c [[u64; ANSWERS]; KINDS]>,
) {
    for (index, by) in devices.enumerate() {
        let device = index.to_string();
        for (kind, row) in kinds.iter().zip(by) {
            for (answer, count) in answers.iter().zip(row) {
                page.sample(family, &[("device", &device), ("type", kind), ("answer", answer)], count);
            }
        }
    }
}

fn disks(page: &mut Page, disks: &[DiskCounts]) {
    const COUNTS: &str = "tidevm_virtio_blk_requests_total";
    const CHAINS: &str = "tidevm_virtio_blk_refused_chains_total";
    const MOVED: &str = "tidevm_virtio_blk_moved_bytes_total";
    page.family(COUNTS, COUNTER, "Requests to a disk, by type and answer.");
    by_answer(page, COUNTS, (&DISK_REQUEST_KINDS, &DISK_ANSWERS), disks.iter().map(|counts| &counts.by));
    page.family(CHAINS, COUNTER, "Chains of buffers without room for an answer of a disk.");
    for (index, counts) in disks.iter().enumerate() {
        page.sample(CHAINS, &[("device", &index.to_string())], counts.refused_chains);
    }
    page.family(MOVED, COUNTER, "Data that requests to a disk read or wrote.");
    for (index, counts) in disks.iter().enumerate() {
        for (kind, size) in [("in", counts.read), ("out", counts.written)] {
            page.sample(MOVED, &[("device", &index.to_string()), ("type", kind)], size.0);
        }
    }
}

fn auto(page: &mut Page, status: Option<&Status>) {
    page.single(
        "tidevm_auto_enabled",
        GAUGE,
        "Whether the machine is sized by what its guest uses.",
        flag(status.is_some()),
    );
    let Some(status) = status else { return };
    let counts = status.counts;
    for (name, help, value) in [
        ("tidevm_auto_held", "Whether somebody else's target is in force.", flag(status.held)),
        (
            "tidevm_auto_target_bytes",
            "Memory that the machine shall have, boot memory included.",
            status.target.0,
        ),
        ("tidevm_auto_min_bytes", "The smallest size of the machine.", status.bounds.min().0),
        ("tidevm_auto_max_bytes", "The largest size of the machine.", status.bounds.max().0),
    ] {
        page.single(name, GAUGE, help, value);
    }
    for (name, help, value) in [
        ("tidevm_auto_grows_total", "Targets that were larger than the one before.", counts.grows),
        ("tidevm_auto_shrinks_total", "Targets that were smaller than the one before.", counts.shrinks),
        ("tidevm_auto_holds_total", "Targets of somebody else.", counts.holds),
        (
            "tidevm_auto_pressures_total",
            "Samples of a guest whose allocations waited or failed.",
            counts.pressures,
        ),
        ("tidevm_auto_questions_total", "Questions to the guest about its memory.", counts.questions),
    ] {
        page.single(name, COUNTER, help, value);
    }
}

fn api(page: &mut Page, requests: &Requests) {
    const NAME: &str = "tidevm_api_requests_total";
    page.family(NAME, COUNTER, "Requests of API clients, by method, path and status of the answer.");
    for (method, path, status, count) in requests.iter() {
        let labels = [("method", method), ("path", path), ("code", &status.to_string())];
        page.sample(NAME, &labels, count);
    }
}

fn guest(page: &mut Page, stats: &Stats, age: Duration) {
    page.single(
        "tidevm_guest_sample_age_seconds",
        GAUGE,
        "Age of the guest's counters, which are asked for at each scrape and told at the next one.",
        age.as_secs_f64(),
    );
    for counter in ZoneStats::COUNTERS.iter().filter(|counter| counter.told_by(stats.kernel)) {
        let name = format!("tidevm_guest_zone_{}_bytes", counter.key);
        page.family(&name, GAUGE, &format!("Memory of a zone of the guest: {}.", counter.key));
        for zone in &stats.zones {
            let bytes = (counter.read)(zone).saturating_mul(PAGE_SIZE);
            page.sample(&name, &[("zone", zone.name.as_str())], bytes);
        }
    }
    for counter in Stats::COUNTERS.iter().filter(|counter| counter.told_by(stats.kernel)) {
        let rising = RISING.contains(&counter.key);
        let (kind, suffix) = if rising { (COUNTER, "_total") } else { (GAUGE, "") };
        let about = counter.label.map_or(counter.key.replace('_', " "), |label| label.text.to_owned());
        let name = format!("tidevm_guest_{}{suffix}", counter.key);
        page.single(&name, kind, &format!("Counter of the guest: {about}."), (counter.read)(stats));
    }
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";
const HISTOGRAM: &str = "histogram";

fn flag(value: bool) -> u64 {
    u64::from(value)
}

/// A page of metrics.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// Begins a name.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A name with one sample.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.push(format_args!("{name}"));
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.push(format_args!("{}{label}=\"{text}\"", if index == 0 { "{" } else { "," }));
        }
        self.push(format_args!("{} {value}\n", if labels.is_empty() { "" } else { "}" }));
    }

    /// The parts of `latency`, each with those below it.
    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], latency: &Latency) {
        let mut count = 0;
        for (index, part) in latency.parts.iter().enumerate() {
            count += part;
            let bound = LATENCY_BOUNDS.get(index).map(|micros| (*micros as f64 / 1e6).to_string());
            let bound = bound.as_deref().unwrap_or("+Inf");
            self.sample(&format!("{name}_bucket"), &[labels, &[("le", bound)]].concat(), count);
        }
        self.sample(&format!("{name}_sum"), labels, latency.sum.as_secs_f64());
        self.sample(&format!("{name}_count"), labels, count);
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a text does not fail.
        let _ = self.text.write_fmt(text);
    }
}

#[cfg(test)]
mod tests;
