//! Boot memory and vCPUs on NUMA nodes.
//!
//! Nodes are told to the guest by ACPI (`boot/acpi.rs`). A node may have memory and no vCPUs, vCPUs and no
//! memory, or neither, for memory that is plugged later.

use tidevm_abi::MEMORY_BLOCK_SIZE;

use super::{Config, ConfigError, MAX_NODE};

/// What of the machine is on one NUMA node at boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// Boot memory in bytes, a multiple of 128 MiB unless no later node has any; possibly none.
    pub memory: u64,
    /// vCPUs, possibly none.
    pub cpus: u8,
}

impl Config {
    /// Whether anything is said of nodes, so that the guest must be told.
    pub(crate) fn has_nodes(&self) -> bool {
        !self.numa.is_empty() || self.hotplug.iter().any(|hotplug| hotplug.node.is_some())
    }

    /// The node of each vCPU.
    pub(crate) fn cpu_nodes(&self) -> impl Iterator<Item = u8> {
        let nodes = self.numa.iter().zip(0..).flat_map(|(node, number)| (0..node.cpus).map(move |_| number));
        nodes.chain(std::iter::repeat(0)).take(self.cpus.into())
    }

    pub(super) fn validate_numa(&self) -> Result<(), ConfigError> {
        let given = self.numa.len();
        if given == 0 {
            return Ok(());
        }
        if given > usize::from(MAX_NODE) + 1 {
            return Err(ConfigError::TooManyNodes { given });
        }
        let nodes = self.numa.iter().map(|node| u64::from(node.cpus)).sum();
        if nodes != u64::from(self.cpus) {
            return Err(ConfigError::NodesCpus { nodes, cpus: self.cpus });
        }
        let nodes = self.numa.iter().fold(0_u64, |sum, node| sum.saturating_add(node.memory));
        if nodes != self.memory {
            return Err(ConfigError::NodesMemory { nodes, memory: self.memory });
        }
        let last = self.numa.iter().rposition(|node| node.memory > 0).unwrap_or(0);
        let split = |node: &usize| !self.numa[*node].memory.is_multiple_of(MEMORY_BLOCK_SIZE);
        match (0..last).find(split) {
            Some(node) => Err(ConfigError::NodeUnaligned { node, memory: self.numa[node].memory }),
            None => Ok(()),
        }
    }
}
