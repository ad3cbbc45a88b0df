//! What a request asks for: its method, path, query and body become an [`Action`], or the text of a fault.
//!
//! Mirrors Firecracker's parser of requests: the texts, and that words of a path after those which it needs are ignored.
//! Differs on purpose: a query is understood where one is documented, and refused elsewhere.

use std::time::Duration;

use serde::de::DeserializeOwned;
use tidevm_abi::parse_duration;

use crate::body::{
    ActionBody, ActionType, AutoConfig, AutoUpdate, Balloon, BalloonStatsUpdate, BalloonUpdate, BootSource,
    LoggerConfig, MachineConfig, MachineUpdate, MemoryConfig, MemoryUpdate, MetricsConfig, SnapshotCreate,
    SnapshotLoad, Vm, VmState,
};
use crate::http::{Method, Request};

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after its path")]
pub enum Action {
    GetInstance,
    GetVersion,
    GetVmConfig,
    GetMachineConfig,
    SetMachine(MachineUpdate),
    SetBootSource(BootSource),
    Act(ActionType),
    SetVmState(VmState),
    GetMemory(MemoryQuery),
    SetMemory(MemoryConfig),
    Resize(MemoryUpdate, MemoryQuery),
    CancelResize(MemoryQuery),
    GetAuto,
    SetAuto(AutoConfig),
    UpdateAuto(AutoUpdate),
    StopAuto,
    GetBalloon,
    GetBalloonStats,
    SetBalloon(Balloon),
    UpdateBalloon(BalloonUpdate),
    UpdateBalloonStats(BalloonStatsUpdate),
    GetEvents,
    GetStats,
    GetMetrics,
    SetLogger(LoggerConfig),
    SetMetrics(MetricsConfig),
    CreateSnapshot(SnapshotCreate),
    LoadSnapshot(SnapshotLoad),
    /// Configure or ask for a device that tidevm does not have.
    NoSuchDevice(&'static str),
}

/// The query of a path below `/hotplug/memory`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryQuery {
    /// `wait=10s`: answer when the guest has converged, or after this time.
    pub wait: Option<Duration>,
    /// `blocks=1`: with the guest's memory blocks.
    pub blocks: bool,
    /// `region=1`: of this region alone, numbered from 0.
    pub region: Option<usize>,
}

/// An action, and what to warn of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// What to do.
    pub action: Action,
    /// A field of the request is deprecated, which this text says. It is accepted all the same.
    pub deprecated: Option<&'static str>,
}

/// Longest time that a request may wait.
pub const MOST_WAIT: Duration = Duration::from_secs(3600);

/// The warning about fields of `PUT /snapshot/load`.
const OLD_SNAPSHOT_FIELDS: &str =
    "PUT /snapshot/load: mem_file_path and enable_diff_snapshots fields are deprecated.";

/// Devices of Firecracker's that tidevm does not have, by the first word of their paths.
const NO_DEVICES: &[(&str, &str)] = &[
    ("cpu-config", "CPU templates"),
    ("drives", "drives"),
    ("entropy", "an entropy device"),
    ("mmds", "a metadata service"),
    ("network-interfaces", "network interfaces"),
    ("pmem", "drives behind device memory"),
    ("serial", "a serial port that is configured at run time"),
    ("vsock", "vsock"),
];

/// What Firecracker's balloon has beside reports.
const HINTING: &str = "free-page hinting";

/// Reads what `request` asks for.
///
/// # Errors
/// The text of the fault.
pub fn route(request: &Request) -> Result<Routed, String> {
    let mut words = request.path.trim_start_matches('/').split_terminator('/');
    let (first, second, third) = (words.next().unwrap_or(""), words.next(), words.next());
    let body = request.body.as_deref();
    let memory = (first, second) == ("hotplug", Some("memory"));
    let mut deprecated = None;
    let auto = memory && third == Some("auto");
    let query = if memory && !auto { memory_query(&request.query)? } else { no_query(&request.query)? };
    let action = match (request.method, first, body) {
        (Method::Get, "", None) => Action::GetInstance,
        (Method::Get, "version", None) => Action::GetVersion,
        (Method::Get, "vm", None) if second == Some("config") => Action::GetVmConfig,
        (Method::Get, "machine-config", None) => Action::GetMachineConfig,
        (Method::Get, "hotplug", None) if auto => Action::GetAuto,
        (Method::Get, "hotplug", None) if memory => Action::GetMemory(query),
        (Method::Get, "balloon", None) => get_balloon(second)?,
        (Method::Get, "events", None) => Action::GetEvents,
        (Method::Get, "stats", None) => Action::GetStats,
        (Method::Get, "metrics", None) => Action::GetMetrics,
        (Method::Get, _, Some(_)) => return Err("GET request cannot have a body.".to_owned()),
        (Method::Put, "actions", Some(body)) => Action::Act(json::<ActionBody>(body)?.action_type),
        (Method::Put, "balloon", Some(body)) => Action::SetBalloon(json(body)?),
        (Method::Put, "boot-source", Some(body)) => Action::SetBootSource(json(body)?),
        (Method::Put, "logger", Some(body)) => Action::SetLogger(json(body)?),
        (Method::Put, "machine-config", Some(body)) => {
            let config: MachineConfig = json(body)?;
            deprecated =
                config.cpu_template.map(|_| "PUT /machine-config: cpu_template field is deprecated.");
            Action::SetMachine(config.into())
        }
        (Method::Put, "metrics", Some(body)) => Action::SetMetrics(json(body)?),
        (Method::Put, "snapshot", Some(body)) => snapshot(second, body, &mut deprecated)?,
        (Method::Put, "hotplug", Some(body)) if auto => Action::SetAuto(json(body)?),
        (Method::Put, "hotplug", Some(body)) if memory => Action::SetMemory(json(body)?),
        (Method::Put, _, None) => return Err("Empty PUT request.".to_owned()),
        (Method::Patch, "machine-config", Some(body)) => {
            let update: MachineUpdate = json(body)?;
            if update == MachineUpdate::default() {
                return Err("Empty PATCH request.".to_owned());
            }
            deprecated =
                update.cpu_template.map(|_| "PATCH /machine-config: cpu_template field is deprecated.");
            Action::SetMachine(update)
        }
        (Method::Patch, "balloon", _) if second == Some("hinting") => Action::NoSuchDevice(HINTING),
        (Method::Patch, "balloon", Some(body)) if second == Some("statistics") => {
            Action::UpdateBalloonStats(json(body)?)
        }
        (Method::Patch, "balloon", Some(body)) => Action::UpdateBalloon(json(body)?),
        (Method::Patch, "vm", Some(body)) => Action::SetVmState(json::<Vm>(body)?.state),
        (Method::Patch, "hotplug", Some(body)) if auto => Action::UpdateAuto(json(body)?),
        (Method::Patch, "hotplug", Some(body)) if memory => Action::Resize(json(body)?, query),
        (Method::Patch, _, None) => return Err("Empty PATCH request.".to_owned()),
        (Method::Delete, "hotplug", None) if auto => Action::StopAuto,
        (Method::Delete, "hotplug", None) if memory && third == Some("resize") => Action::CancelResize(query),
        (Method::Delete, _, Some(_)) => return Err("Empty Delete request.".to_owned()),
        (method, first, _) => match NO_DEVICES.iter().find(|(word, _)| *word == first) {
            Some((_, device)) => Action::NoSuchDevice(device),
            None => {
                return Err(format!("Invalid request method and/or path: {} {first}.", method.name()));
            }
        },
    };
    Ok(Routed { action, deprecated })
}

/// Reads a JSON body.
fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| bad_json(&error.to_string()))
}

fn bad_json(why: &str) -> String {
    format!("An error occurred when deserializing the json body of a request: {why}.")
}

fn snapshot(
    word: Option<&str>,
    body: &[u8],
    deprecated: &mut Option<&'static str>,
) -> Result<Action, String> {
    match word {
        Some("create") => Ok(Action::CreateSnapshot(json(body)?)),
        Some("load") => {
            let load: SnapshotLoad = json(body)?;
            let old = load.mem_file_path.is_some() || load.enable_diff_snapshots;
            *deprecated = old.then_some(OLD_SNAPSHOT_FIELDS);
            match (&load.mem_backend, &load.mem_file_path) {
                (Some(_), Some(_)) => Err(bad_json(
                    "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
                )),
                (None, None) => {
                    Err(bad_json("missing field: either `mem_backend` or `mem_file_path` is required"))
                }
                _ => Ok(Action::LoadSnapshot(load)),
            }
        }
        Some(word) => Err(format!("Invalid request method and/or path: PUT /snapshot/{word}.")),
        None => Err("Missing snapshot operation type.".to_owned()),
    }
}

/// The path of a `GET` below `/balloon`.
fn get_balloon(word: Option<&str>) -> Result<Action, String> {
    match word {
        None => Ok(Action::GetBalloon),
        Some("statistics") => Ok(Action::GetBalloonStats),
        Some("hinting") => Ok(Action::NoSuchDevice(HINTING)),
        Some(word) => Err(format!("Unrecognized GET request path `{word}`.")),
    }
}

fn no_query(query: &str) -> Result<MemoryQuery, String> {
    if query.is_empty() {
        Ok(MemoryQuery::default())
    } else {
        Err(format!("Invalid query: this path takes none, not `{query}`."))
    }
}

fn memory_query(query: &str) -> Result<MemoryQuery, String> {
    let mut parsed = MemoryQuery::default();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "wait" => {
                let wait = parse_duration(value).filter(|wait| *wait <= MOST_WAIT);
                parsed.wait = Some(wait.ok_or_else(|| {
                    format!(
                        "Invalid query: wait={value} is no time such as 500ms, 10s or 2m, of at most 60m."
                    )
                })?);
            }
            "blocks" => match value {
                "1" => parsed.blocks = true,
                "0" => parsed.blocks = false,
                _ => return Err(format!("Invalid query: blocks={value} is neither 0 nor 1.")),
            },
            "region" => {
                let number =
                    value.parse().map_err(|_| format!("Invalid query: region={value} is no number."))?;
                parsed.region = Some(number);
            }
            _ => {
                return Err(format!("Invalid query: `{key}` is none of wait, blocks and region."));
            }
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests;
