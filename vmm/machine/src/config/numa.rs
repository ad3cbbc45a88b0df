//! Boot memory and vCPUs on NUMA nodes.
//!
//! Nodes are told to the guest by ACPI (`boot/acpi.rs`). A node may have memory and no vCPUs, vCPUs and no
//! memory, or neither, for memory that is plugged later.

use tidevm_abi::MEMORY_BLOCK_SIZE;

use super::{Config, MAX_NODE, Size, nearest};

/// What of the machine is on one NUMA node at boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// Boot memory in bytes, a multiple of 128 MiB unless no later node has any; possibly none.
    pub memory: u64,
    /// vCPUs, possibly none.
    pub cpus: u8,
}

/// Why nodes cannot be as a [`Config`] has them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NumaError {
    /// More nodes than numbers for them.
    #[error("--numa given {given} times: there can be {} nodes", MAX_NODE + 1)]
    TooManyNodes {
        /// Nodes wanted.
        given: usize,
    },
    /// The nodes' memory is not all of boot memory, or more.
    #[error("--numa memory=: the nodes have {} together, and --memory is {}", Size(*.nodes), Size(*.memory))]
    NodesMemory {
        /// What the nodes have together.
        nodes: u64,
        /// Boot memory.
        memory: u64,
    },
    /// The nodes' vCPUs are not all that there are, or more.
    #[error("--numa cpus=: the nodes have {nodes} vCPUs together, and --cpus is {cpus}")]
    NodesCpus {
        /// How many the nodes have together.
        nodes: u64,
        /// How many there are.
        cpus: u8,
    },
    /// A node would begin within a memory block.
    #[error(
        "--numa #{node} memory={}: must be a multiple of the guest's memory block, {}{}, because another \
         node's memory follows",
        Size(*.memory), Size(MEMORY_BLOCK_SIZE), nearest(*.memory, MEMORY_BLOCK_SIZE)
    )]
    NodeUnaligned {
        /// Which `--numa`, from 0.
        node: usize,
        /// Its memory.
        memory: u64,
    },
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

    pub(super) fn validate_numa(&self) -> Result<(), NumaError> {
        let given = self.numa.len();
        if given == 0 {
            return Ok(());
        }
        if given > usize::from(MAX_NODE) + 1 {
            return Err(NumaError::TooManyNodes { given });
        }
        let nodes = self.numa.iter().map(|node| u64::from(node.cpus)).sum();
        if nodes != u64::from(self.cpus) {
            return Err(NumaError::NodesCpus { nodes, cpus: self.cpus });
        }
        let nodes = self.numa.iter().fold(0_u64, |sum, node| sum.saturating_add(node.memory));
        if nodes != self.memory {
            return Err(NumaError::NodesMemory { nodes, memory: self.memory });
        }
        let last = self.numa.iter().rposition(|node| node.memory > 0).unwrap_or(0);
        let split = |node: &usize| !self.numa[*node].memory.is_multiple_of(MEMORY_BLOCK_SIZE);
        match (0..last).find(split) {
            Some(node) => Err(NumaError::NodeUnaligned { node, memory: self.numa[node].memory }),
            None => Ok(()),
        }
    }
}
