//! The metrics file of `PUT /metrics`: a line of JSON at each flush.
//!
//! Mirrors Firecracker's file in its form and in the names of what both count. A counter holds what was counted since the
//! line before, as there.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tidevm_machine::{ExitCounts, State};

use crate::body::MetricsConfig;
use crate::http::Method;

/// The metrics file, and what was told there last.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    id: Option<String>,
    properties: Option<BTreeMap<String, String>>,
    exits: ExitCounts,
}

/// Requests and faults, by method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    get: (u64, u64),
    put: (u64, u64),
    patch: (u64, u64),
    delete: (u64, u64),
}

impl Requests {
    /// Counts a request, and whether its answer is a fault.
    pub fn count(&mut self, method: Method, fault: bool) {
        let (all, faults) = match method {
            Method::Get => &mut self.get,
            Method::Put => &mut self.put,
            Method::Patch => &mut self.patch,
            Method::Delete => &mut self.delete,
        };
        *all += 1;
        *faults += u64::from(fault);
    }

    fn json(&self) -> Value {
        let group = |(count, fails): (u64, u64)| json!({ "count": count, "fails": fails });
        json!({
            "get_api_requests": group(self.get),
            "put_api_requests": group(self.put),
            "patch_api_requests": group(self.patch),
            "delete_api_requests": group(self.delete),
        })
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
        Ok(Self { file, id, properties: config.properties.clone(), exits: ExitCounts::default() })
    }

    /// Writes a line. `requests` and `exits` are counted since the start.
    ///
    /// # Errors
    /// The file takes no more.
    pub fn flush(
        &mut self,
        state: &State,
        requests: &mut Requests,
        exits: &[ExitCounts],
    ) -> std::io::Result<()> {
        let mut line = json!({ "utc_timestamp_ms": unix_ms() });
        if let Some(id) = &self.id {
            line["id"] = json!(id);
        }
        if let Some(properties) = &self.properties {
            line["properties"] = json!(properties);
        }
        if let (Some(line), Value::Object(groups)) = (line.as_object_mut(), requests.json()) {
            line.extend(groups);
        }
        let now: ExitCounts = exits.iter().copied().sum();
        let before = std::mem::replace(&mut self.exits, now);
        line["vcpu"] = json!({
            "exit_io": now.io - before.io,
            "exit_mmio": now.mmio - before.mmio,
            "exit_stray": now.stray - before.stray,
            "exit_interrupted": now.interrupted - before.interrupted,
            "exit_other": now.other - before.other,
        });
        line["memory_hotplug"] = json!({
            "regions": state.mem.len(),
            "requested_bytes": state.mem.iter().map(|mem| mem.requested.0).sum::<u64>(),
            "plugged_bytes": state.mem.iter().map(|mem| mem.plugged.0).sum::<u64>(),
            "targets": state.mem.iter().map(|mem| mem.targets).sum::<u64>(),
        });
        *requests = Requests::default();
        let mut text = line.to_string();
        text.push('\n');
        // In one call, so that a reader of a pipe gets whole lines.
        self.file.write_all(text.as_bytes())
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
