//! The JSON bodies of requests, with Firecracker's fields, defaults and order of fields.
//!
//! Unknown fields are refused. The order matters: an error names the known fields in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

pub use auto::{AutoConfig, AutoUpdate};

mod auto;

/// Pages behind guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// What the host gives: here always huge pages where it has them.
    #[default]
    None,
    /// The same here.
    Transparent,
    /// Pages of hugetlbfs, which tidevm does not use.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// Sets of CPU features, which tidevm does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "names of Firecracker's")]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

/// `PUT /machine-config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct MachineConfig {
    pub vcpu_count: u8,
    pub mem_size_mib: usize,
    #[serde(default)]
    pub smt: bool,
    #[serde(default, skip_serializing)]
    pub cpu_template: Option<CpuTemplate>,
    #[serde(default)]
    pub track_dirty_pages: bool,
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// `PATCH /machine-config`: the fields to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct MachineUpdate {
    #[serde(default)]
    pub vcpu_count: Option<u8>,
    #[serde(default)]
    pub mem_size_mib: Option<usize>,
    #[serde(default)]
    pub smt: Option<bool>,
    #[serde(default)]
    pub cpu_template: Option<CpuTemplate>,
    #[serde(default)]
    pub track_dirty_pages: Option<bool>,
    #[serde(default)]
    pub huge_pages: Option<HugePages>,
}

impl From<MachineConfig> for MachineUpdate {
    fn from(config: MachineConfig) -> Self {
        Self {
            vcpu_count: Some(config.vcpu_count),
            mem_size_mib: Some(config.mem_size_mib),
            smt: Some(config.smt),
            cpu_template: config.cpu_template,
            track_dirty_pages: Some(config.track_dirty_pages),
            huge_pages: Some(config.huge_pages),
        }
    }
}

/// `PUT /boot-source`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// A kernel's file, or [`BUILTIN`].
    pub kernel_image_path: String,
    /// Its initial RAM disk.
    pub initrd_path: Option<String>,
    /// Its command line.
    pub boot_args: Option<String>,
}

/// The `kernel_image_path` of tidevm's own guest.
pub const BUILTIN: &str = "builtin";

/// `PUT /actions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ActionType {
    /// Write the metrics now.
    FlushMetrics,
    /// Boot.
    InstanceStart,
    /// Ask the guest to power off.
    SendCtrlAltDel,
}

/// The body of `PUT /actions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionBody {
    /// The action.
    pub action_type: ActionType,
}

/// Whether the guest is to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum VmState {
    /// It is.
    Paused,
    /// It is not.
    Resumed,
}

/// `PATCH /vm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// The wish.
    pub state: VmState,
}

/// `PUT /hotplug/memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// The region.
    pub total_size_mib: u32,
    /// The device block.
    #[serde(default = "default_block")]
    pub block_size_mib: u32,
    /// Firecracker's memslot. tidevm has a memslot per run of plugged device blocks.
    #[serde(default = "default_slot")]
    pub slot_size_mib: u32,
}

/// Firecracker's default device block, and its least one.
pub const MIN_BLOCK_MIB: u32 = 2;
/// Firecracker's default memslot, and its least one.
pub const MIN_SLOT_MIB: u32 = 128;

fn default_block() -> u32 {
    MIN_BLOCK_MIB
}

fn default_slot() -> u32 {
    MIN_SLOT_MIB
}

/// `PATCH /hotplug/memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryUpdate {
    /// The target.
    pub requested_size_mib: u32,
}

/// `PUT /balloon`, and the answer of `GET /balloon`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct Balloon {
    pub amount_mib: u32,
    pub deflate_on_oom: bool,
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    #[serde(default)]
    pub free_page_hinting: bool,
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// `PATCH /balloon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// How much the guest is to give up.
    pub amount_mib: u32,
}

/// `PATCH /balloon/statistics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// How often the guest gives statistics.
    pub stats_polling_interval_s: u16,
}

/// The level of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the usual levels")]
pub enum Level {
    Off,
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl FromStr for Level {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word.to_lowercase().as_str() {
            "off" => Ok(Self::Off),
            "trace" => Ok(Self::Trace),
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warn" | "warning" => Ok(Self::Warn),
            "error" => Ok(Self::Error),
            _ => Err("Invalid LevelFilter"),
        }
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// `PUT /logger`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct LoggerConfig {
    pub log_path: Option<PathBuf>,
    pub level: Option<Level>,
    pub show_level: Option<bool>,
    pub show_log_origin: Option<bool>,
    pub module: Option<String>,
}

/// `PUT /metrics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsConfig {
    /// The file: a line of JSON at each flush.
    pub metrics_path: PathBuf,
    /// Each line has the VM's id.
    #[serde(default)]
    pub emit_id: bool,
    /// Each line has these too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
}

/// The kind of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "Firecracker's kinds")]
pub enum SnapshotType {
    Diff,
    #[default]
    Full,
}

/// `PUT /snapshot/create`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct SnapshotCreate {
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    pub snapshot_path: PathBuf,
    pub mem_file_path: PathBuf,
}

/// Where the memory of a snapshot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "Firecracker's kinds")]
pub enum MemBackendType {
    File,
    Uffd,
}

/// The memory of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct MemBackend {
    pub backend_path: PathBuf,
    pub backend_type: MemBackendType,
}

/// Pages behind the memory of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "Firecracker's kinds")]
pub enum SnapshotPages {
    #[default]
    Snapshot,
    None,
    Transparent,
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// Another host device for a network interface of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct NetworkOverride {
    pub iface_id: String,
    pub host_dev_name: String,
}

/// Another socket for the vsock of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct VsockOverride {
    pub uds_path: String,
}

/// `PUT /snapshot/load`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct SnapshotLoad {
    pub snapshot_path: PathBuf,
    pub mem_file_path: Option<PathBuf>,
    pub mem_backend: Option<MemBackend>,
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    #[serde(default)]
    pub track_dirty_pages: bool,
    #[serde(default)]
    pub resume_vm: bool,
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    pub vsock_override: Option<VsockOverride>,
    #[serde(default)]
    pub clock_realtime: bool,
    #[serde(default)]
    pub huge_pages: SnapshotPages,
}

/// `--config-file`, and the answer of `GET /vm/config`: the devices that tidevm does not have are null or empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "fields of Firecracker's")]
pub struct FullConfig {
    pub balloon: Option<Balloon>,
    pub drives: Vec<serde_json::Value>,
    pub boot_source: BootSource,
    pub cpu_config: Option<serde_json::Value>,
    pub logger: Option<LoggerConfig>,
    pub machine_config: Option<MachineConfig>,
    pub metrics: Option<MetricsConfig>,
    pub mmds_config: Option<serde_json::Value>,
    #[serde(default)]
    pub network_interfaces: Vec<serde_json::Value>,
    pub vsock: Option<serde_json::Value>,
    pub entropy: Option<serde_json::Value>,
    #[serde(default)]
    pub pmem: Vec<serde_json::Value>,
    pub memory_hotplug: Option<MemoryConfig>,
}
