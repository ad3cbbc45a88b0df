//! Boot memory and vCPUs on NUMA nodes.
//!
//! The guest learns of nodes by ACPI (`boot/acpi.rs`). A node may have only memory, only vCPUs, or neither:
//! then it is a place for memory that is plugged later.

use tidevm_abi::{MEMORY_BLOCK_SIZE, Size, cmdline};

use super::{Config, MAX_NODE, MEMORY_BLOCK, nearest};

/// The part of a VM that is on one NUMA node at boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// Boot memory, possibly none: a multiple of 128 MiB unless no later node has boot memory.
    pub memory: Size,
    /// Number of vCPUs, possibly 0.
    pub cpus: u8,
}

/// Why the nodes of a [`Config`] are not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NumaError {
    /// More nodes than node numbers.
    #[error("--numa given {given} times: there can be {} nodes", MAX_NODE + 1)]
    TooManyNodes {
        /// The configured number of nodes.
        given: usize,
    },
    /// The nodes' memory does not add up to boot memory.
    #[error("--numa memory=: the nodes have {nodes} together, and --memory is {memory}")]
    NodesMemory {
        /// The sum over the nodes.
        nodes: Size,
        /// Boot memory.
        memory: Size,
    },
    /// The nodes' vCPUs do not add up to the VM's.
    #[error("--numa cpus=: the nodes have {nodes} vCPUs together, and --cpus is {cpus}")]
    NodesCpus {
        /// The sum over the nodes.
        nodes: u64,
        /// The VM's number of vCPUs.
        cpus: u8,
    },
    /// A node would begin in the middle of a memory block.
    #[error(
        "--numa #{node} memory={memory}: must be a multiple of the guest's memory block, {MEMORY_BLOCK}{}, \
         because another node's memory follows",
        nearest(*.memory, MEMORY_BLOCK)
    )]
    NodeUnaligned {
        /// Index of the `--numa`, from 0.
        node: usize,
        /// Its memory.
        memory: Size,
    },
}

impl Config {
    /// Whether the configuration names a node. Only then the guest is told about nodes.
    pub(crate) fn has_nodes(&self) -> bool {
        !self.numa.is_empty() || self.hotplug.iter().any(|hotplug| hotplug.node.is_some())
    }

    /// The number of nodes that the guest can have at most: `None` if its command line may name others.
    #[must_use]
    pub fn nodes(&self) -> Option<usize> {
        let words = self.cmdline.iter().flat_map(|line| line.split_whitespace());
        let told = words.map(|word| word.split('=').next()).any(|key| key == Some(cmdline::NUMA));
        let of_hotplug = self.hotplug.iter().filter_map(|hotplug| hotplug.node).max();
        let last = of_hotplug.map_or(0, |node| usize::from(node) + 1);
        (!told && self.kernel.is_none()).then(|| self.numa.len().max(last).max(1))
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
        let nodes = Size(self.numa.iter().fold(0, |sum: u64, node| sum.saturating_add(node.memory.0)));
        if nodes != self.memory {
            return Err(NumaError::NodesMemory { nodes, memory: self.memory });
        }
        let last = self.numa.iter().rposition(|node| node.memory > Size(0)).unwrap_or(0);
        let split = |node: &usize| !self.numa[*node].memory.0.is_multiple_of(MEMORY_BLOCK_SIZE);
        match (0..last).find(split) {
            Some(node) => Err(NumaError::NodeUnaligned { node, memory: self.numa[node].memory }),
            None => Ok(()),
        }
    }
}
