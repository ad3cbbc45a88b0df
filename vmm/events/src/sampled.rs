//! The VM at one moment: its devices, and what its guest tells.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Counters by their names in the ABI's tables.
pub type Counters = BTreeMap<String, u64>;

/// The VM at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// The hotplug devices.
    pub devices: Vec<Device>,
    /// How often the guest was reset.
    pub resets: u64,
    /// The guest's counters; null within steps, and for a guest that does not answer.
    pub guest: Option<Guest>,
    /// The guest's memory blocks; null within steps, and for a guest that does not tell them.
    pub blocks: Option<Blocks>,
}

/// A hotplug device. All but the region are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The guest-physical address of the region.
    pub address: u64,
    /// Size of the region.
    pub region_size: u64,
    /// What shall be plugged.
    pub requested: u64,
    /// What is plugged.
    pub plugged: u64,
    /// What the guest's driver had in use at its last report; null without a report.
    pub guest_usable: Option<u64>,
    /// Host memory that the region really holds; null if the host does not tell.
    pub held: Option<u64>,
    /// What the device has counted since the start.
    #[serde(default)]
    pub requests: Requests,
}

/// What a hotplug device counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// PLUG.
    pub plug: Answers,
    /// UNPLUG.
    pub unplug: Answers,
    /// UNPLUG_ALL.
    pub unplug_all: Answers,
    /// STATE.
    pub state: Answers,
    /// What was no request.
    pub malformed: Answers,
    /// Chains that carried nothing that could be answered, and queues that could not be used.
    pub refused_chains: u64,
    /// Bytes that requests plugged.
    pub plugged: u64,
    /// Bytes that requests unplugged.
    pub unplugged: u64,
}

/// Requests of one type by their answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// Done.
    pub ack: u64,
    /// More than was requested of the guest.
    pub nack: u64,
    /// The host could not do it.
    pub busy: u64,
    /// Wrong.
    pub error: u64,
}

impl From<[u64; 4]> for Answers {
    /// In the order of the device's types of answers.
    fn from([ack, nack, busy, error]: [u64; 4]) -> Self {
        Self { ack, nack, busy, error }
    }
}

/// The guest's counters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    /// By zone.
    pub zones: BTreeMap<String, Counters>,
    /// The NUMA nodes.
    pub nodes: Vec<Node>,
    /// Counters of the whole guest.
    #[serde(flatten, deserialize_with = "numbers")]
    pub counters: Counters,
    /// The milestones of boot, if the guest tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
}

/// Counters of a NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// By zone.
    pub zones: BTreeMap<String, Counters>,
    /// Counters of the whole node.
    #[serde(flatten, deserialize_with = "numbers")]
    pub counters: Counters,
}

/// The milestones of boot, in seconds since the kernel's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// All of boot memory is in the kernel's page tables.
    pub mapped_seconds: f64,
    /// The page allocator gives pages.
    pub first_allocation_seconds: f64,
    /// All of boot memory is with the page allocator; null while some of it is left for later.
    pub initialised_seconds: Option<f64>,
    /// Sections whose struct pages were all written before the first allocation.
    pub memmaps_written: u64,
}

/// Memory blocks of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Neighbours that are alike share an entry. Ascending by address.
    pub runs: Vec<Block>,
    /// Whether these are all. A sample has a bounded number of entries.
    pub complete: bool,
}

/// Memory blocks that lie side by side and are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Guest-physical address of the first.
    pub address: u64,
    /// How many.
    pub count: u64,
    /// Bytes of each.
    pub size: u64,
    /// Whether they were there at boot.
    pub boot: bool,
    /// `online`, `offline` or `deferred`.
    pub state: String,
    /// The zone that they are in; null for offline ones.
    pub zone: Option<String>,
    /// Their NUMA node.
    pub node: u8,
    /// Bytes of each that are plugged; 0 for boot memory. Null if the guest does not tell it.
    pub plugged: Option<u64>,
    /// Pages of the memmap of each. Null if the guest does not tell it.
    pub memmap_pages: Option<u64>,
    /// Whether the memmap of each lies on it. Null if the guest does not tell it.
    pub memmap_on_memory: Option<bool>,
}

/// The numbers among keys that no field has taken. A key of a later version may have another kind of value.
fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Counters, D::Error> {
    let all = BTreeMap::<String, Value>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|(key, value)| Some((key, value.as_u64()?))).collect())
}
