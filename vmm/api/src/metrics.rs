//! The metrics file of `PUT /metrics`: a line of JSON at each flush.
//!
//! Mirrors Firecracker's file in its form and in the names of what both count. A counter holds what was counted since the
//! line before, as there.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use tidevm_machine::{ANSWERS, ExitCounts, REQUEST_KINDS, RequestCounts, State};

use crate::body::MetricsConfig;
use crate::requests::Requests;

/// The metrics file, and what was told there last.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    id: Option<String>,
    properties: Option<BTreeMap<String, String>>,
    told: Told,
}

/// What is counted since the start.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Requests of clients.
    pub requests: Requests,
    /// Exits of all vCPUs.
    pub exits: ExitCounts,
    /// Requests of drivers, of all devices.
    pub mem: RequestTable,
    /// Chains that devices refused, bytes that they plugged, and bytes that they unplugged.
    pub moved: [u64; 3],
}

/// Requests of drivers as [`RequestCounts::by`] has them.
type RequestTable = [[u64; ANSWERS.len()]; REQUEST_KINDS.len()];

impl Told {
    /// What is counted until now.
    pub fn now(requests: &Requests, exits: &[ExitCounts], mem: &[RequestCounts]) -> Self {
        let mut sum = RequestTable::default();
        let cells = mem.iter().flat_map(|counts| counts.by.iter().enumerate());
        for (kind, row) in cells {
            row.iter().zip(&mut sum[kind]).for_each(|(count, sum)| *sum += count);
        }
        let sum_of = |part: fn(&RequestCounts) -> u64| mem.iter().map(part).sum();
        let moved = [
            sum_of(|counts| counts.refused_chains),
            sum_of(|counts| counts.plugged.0),
            sum_of(|counts| counts.unplugged.0),
        ];
        Self { requests: requests.clone(), exits: exits.iter().copied().sum(), mem: sum, moved }
    }
}

impl Metrics {
    /// Opens the file of `config`. A named pipe needs a reader.
    ///
    /// # Errors
    /// The text of the fault.
    pub fn open(config: &MetricsConfig, id: &str) -> Result<Self, String> {
        let failed = |error: std::io::Error| {
            format!("Metrics error: Cannot initialize the metrics system due to bad user input: {error}")
        };
        let file = open_to_append(&config.metrics_path).map_err(failed)?;
        let id = config.emit_id.then(|| id.to_owned());
        Ok(Self { file, id, properties: config.properties.clone(), told: Told::default() })
    }

    /// Writes a line about what was counted since the line before, until `now`.
    ///
    /// # Errors
    /// The file takes no more. The next line tells what this one would have.
    pub fn flush(&mut self, state: &State, now: Told) -> std::io::Result<()> {
        let before = &self.told;
        let mut line = json!({ "utc_timestamp_ms": unix_ms() });
        if let Some(id) = &self.id {
            line["id"] = json!(id);
        }
        if let Some(properties) = &self.properties {
            line["properties"] = json!(properties);
        }
        if let Some(line) = line.as_object_mut() {
            line.extend(now.requests.since(&before.requests));
        }
        line["vcpu"] = json!({
            "exit_io": now.exits.io - before.exits.io,
            "exit_mmio": now.exits.mmio - before.exits.mmio,
            "exit_stray": now.exits.stray - before.exits.stray,
            "exit_interrupted": now.exits.interrupted - before.exits.interrupted,
            "exit_other": now.exits.other - before.exits.other,
        });
        line["memory_hotplug"] = json!({
            "regions": state.mem.len(),
            "requested_bytes": state.mem.iter().map(|mem| mem.requested.0).sum::<u64>(),
            "plugged_bytes": state.mem.iter().map(|mem| mem.plugged.0).sum::<u64>(),
            "targets": state.mem.iter().map(|mem| mem.targets).sum::<u64>(),
        });
        for (kind, (now, before)) in REQUEST_KINDS.iter().zip(now.mem.iter().zip(&before.mem)) {
            let new = |answers: &[u64]| answers.iter().sum::<u64>();
            // The first answer is ACK.
            let (count, acks) = (new(now) - new(before), now[0] - before[0]);
            line["memory_hotplug"][format!("{kind}_count")] = json!(count);
            line["memory_hotplug"][format!("{kind}_fails")] = json!(count - acks);
        }
        let moved =
            ["refused_chains", "plug_bytes", "unplug_bytes"].iter().zip(now.moved.iter().zip(&before.moved));
        moved.for_each(|(key, (now, before))| line["memory_hotplug"][key] = json!(now - before));
        let mut text = line.to_string();
        text.push('\n');
        // In one call, so that a reader of a pipe gets whole lines.
        self.file.write_all(text.as_bytes())?;
        self.told = now;
        Ok(())
    }
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Opens a file or a named pipe for lines at its end. Writing never waits.
///
/// # Errors
/// It cannot be opened, or is a pipe without a reader.
pub fn open_to_append(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tidevm_machine::State;

    use super::{Metrics, MetricsConfig, Told};

    /// What a line that was not written would have told is told by the next one.
    #[test]
    fn a_file_that_takes_nothing_loses_no_count() {
        let path = std::env::temp_dir().join(format!("tidevm-metrics-{}", std::process::id()));
        let config = |path: &std::path::Path| {
            let text = serde_json::json!({ "metrics_path": path }).to_string();
            serde_json::from_str::<MetricsConfig>(&text).unwrap()
        };
        let now = |io| {
            let mut told = Told::default();
            (told.exits.io, told.moved) = (io, [io, 10 * io, 100 * io]);
            told
        };
        let mut metrics = Metrics::open(&config(&path), "vm").unwrap();
        let file =
            std::mem::replace(&mut metrics.file, fs::File::options().write(true).open("/dev/full").unwrap());
        metrics.flush(&State::default(), now(5)).expect_err("a full file");
        metrics.file = file;
        metrics.flush(&State::default(), now(7)).unwrap();
        let line: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(line["vcpu"]["exit_io"], 7);
        let memory = &line["memory_hotplug"];
        let told = ["refused_chains", "plug_bytes", "unplug_bytes"].map(|key| memory[key].as_u64());
        assert_eq!(told, [Some(7), Some(70), Some(700)]);
    }
}
