//! What can be wrong with the description of a VM, in the words of the command line.
//!
//! Invariant: a message says what is wrong, where, and what would be right.

use tidevm_abi::cmdline::OWN_KEYS;
use tidevm_abi::{MAX_MEMORY_BLOCK_SIZE, MAX_PHYS_ADDR, MAX_PMEM, Size};

use super::balloon::BalloonError;
use super::disk::DiskConfigError;
use super::numa::NumaError;
use super::{
    DEFAULT_DEVICE_BLOCK, MAX_DEVICE_BLOCK, MAX_NODE, MEMORY_BLOCK, MIN_DEVICE_BLOCK, MIN_MEMORY, nearest,
};
use crate::memory::layout::REGION_ALIGN;

/// Why a [`Config`] is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No vCPU, or more than the kernel brings up, or more than there are APIC ids.
    #[error("--cpus {given}: there can be 1 to {most} vCPUs")]
    Cpus {
        /// The configured number.
        given: u8,
        /// The largest possible number.
        most: u8,
    },
    /// Too little boot memory.
    #[error("--memory {0}: the guest needs at least {MIN_MEMORY}")]
    MemoryTooSmall(Size),
    /// Boot memory is not made of huge pages.
    #[error("--memory {0}: must be a multiple of {DEFAULT_DEVICE_BLOCK}")]
    MemoryUnaligned(Size),
    /// The memory block is not a supported one.
    #[error(
        "--memory-block {0}: must be a power of two from {MEMORY_BLOCK} to {most}",
        most = Size(MAX_MEMORY_BLOCK_SIZE)
    )]
    MemoryBlock(Size),
    /// More memory than the guest can address.
    #[error(
        "boot memory, hotplug regions and device memory end at {end}, beyond the {} that a guest can address: \
         make --memory, --hotplug size= or --pmem size= smaller",
        Size(MAX_PHYS_ADDR)
    )]
    TooLarge {
        /// Where the last range would end.
        end: Size,
    },
    /// More devices than the guest drives.
    #[error("--hotplug given {given} times: the guest drives {max} devices at most")]
    TooManyDevices {
        /// The configured number of regions.
        given: usize,
        /// The largest possible number.
        max: usize,
    },
    /// The region is empty or not made of memory blocks.
    #[error(
        "--hotplug #{device} size={size}: must be a multiple of the guest's memory block, {MEMORY_BLOCK}{}",
        nearest(*.size, MEMORY_BLOCK)
    )]
    RegionUnaligned {
        /// Index of the `--hotplug`, from 0.
        device: usize,
        /// Its size.
        size: Size,
    },
    /// More ranges of device memory than the guest looks for.
    #[error("--pmem given {given} times: the guest looks for {MAX_PMEM} at most")]
    TooManyPmem {
        /// The configured number of ranges.
        given: usize,
    },
    /// The device memory is empty or not made of memory blocks.
    #[error(
        "--pmem #{device} size={size}: must be a multiple of the guest's memory block, {MEMORY_BLOCK}{}",
        nearest(*.size, MEMORY_BLOCK)
    )]
    PmemUnaligned {
        /// Index of the `--pmem`, from 0.
        device: usize,
        /// Its size.
        size: Size,
    },
    /// The device block is not a supported one.
    #[error(
        "--hotplug #{device} block={device_block}: must be a power of two from {MIN_DEVICE_BLOCK} to {MAX_DEVICE_BLOCK}"
    )]
    DeviceBlock {
        /// Index of the `--hotplug`, from 0.
        device: usize,
        /// Its device block.
        device_block: Size,
    },
    /// The region is not made of device blocks.
    #[error(
        "--hotplug #{device} size={size}: must be a multiple of its block, {device_block}{}",
        nearest(*.size, *.device_block)
    )]
    RegionOfBlocks {
        /// Index of the `--hotplug`, from 0.
        device: usize,
        /// Its size.
        size: Size,
        /// Its device block.
        device_block: Size,
    },
    /// The region cannot begin there.
    #[error(
        "--hotplug #{device} offset={offset}: must be a multiple of its block, {device_block}, and less than {}",
        Size(REGION_ALIGN)
    )]
    Offset {
        /// Index of the `--hotplug`, from 0.
        device: usize,
        /// Its offset.
        offset: Size,
        /// Its device block.
        device_block: Size,
    },
    /// The target is not made of device blocks.
    #[error(
        "--hotplug #{device} requested={requested}: must be a multiple of its block, {device_block}{}",
        nearest(*.requested, *.device_block)
    )]
    RequestedUnaligned {
        /// Index of the `--hotplug`, from 0.
        device: usize,
        /// Its target.
        requested: Size,
        /// Its device block.
        device_block: Size,
    },
    /// There is no such node.
    #[error("--hotplug #{device} node={node}: nodes are numbered from 0 to {MAX_NODE}")]
    Node {
        /// Index of the `--hotplug`, from 0.
        device: usize,
        /// Its node.
        node: u16,
    },
    /// The nodes do not fit the rest of the configuration.
    #[error(transparent)]
    Numa(#[from] NumaError),
    /// The balloon is not possible.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// The disks are not possible.
    #[error(transparent)]
    Disk(#[from] DiskConfigError),
    /// The target does not fit.
    #[error("--hotplug #{device} requested={requested}: the region has only {size}")]
    RequestedTooLarge {
        /// Index of the `--hotplug`, from 0.
        device: usize,
        /// Its target.
        requested: Size,
        /// Its size.
        size: Size,
    },
    /// The embedded guest reads no RAM disk.
    #[error(
        "--initrd: the built-in guest has no use for an initial RAM disk; leave it out, or give --kernel too"
    )]
    Initrd,
    /// The embedded guest needs no agent.
    #[error("--agent: the built-in guest has its own; leave it out, or give --kernel too")]
    Agent,
    /// The command line has a word of the embedded guest that the embedded guest does not know.
    #[error(
        "--cmdline: `{word}` is no word of the built-in guest, whose own are {}=VALUE",
        OWN_KEYS.join("=VALUE, ")
    )]
    CmdlineWord {
        /// The word, or its first part.
        word: String,
    },
    /// The command line holds a byte that cannot be passed on.
    #[error("--cmdline: byte {position} is not printable ASCII")]
    CmdlineText {
        /// Offset of the byte.
        position: usize,
    },
}
