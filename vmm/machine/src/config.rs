//! What a machine is made of, and whether that can be.
//!
//! Everything here is checked before the host is asked for anything, so a wrong configuration says
//! what is wrong, where and what would be right, on every host. What only the host can refuse
//! (mappings, vCPU limits) is refused by [`Vm::start`](crate::Vm::start).

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use tidevm_abi::{MAX_MEM_DEVICES, MAX_MEMORY_BLOCK_SIZE, MAX_PHYS_ADDR, MAX_PMEM, MEMORY_BLOCK_SIZE};

use crate::memory::layout;

mod numa;
mod size;

pub use numa::{NodeConfig, NumaError};
pub use size::Size;
use size::nearest;

/// Least boot memory: below it the embedded guest has no room for its own tables.
pub const MIN_MEMORY: u64 = 32 << 20;

/// Most vCPUs: local APIC ids are 8 bits wide, and 255 addresses all of them.
pub const MAX_CPUS: u8 = 254;

/// Least block of a virtio-mem device: a pageblock of the guest and a huge page of the host.
pub const MIN_BLOCK: u64 = 2 << 20;

/// Highest number of a NUMA node: Linux that is built for few has 64.
pub const MAX_NODE: u16 = 63;

/// Default boot memory.
pub const DEFAULT_MEMORY: u64 = 256 << 20;

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of vCPUs, up to 64 for the embedded guest and 254 for other kernels; their local APIC
    /// ids are `0..cpus`.
    pub cpus: u8,
    /// Boot memory in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// NUMA nodes, of which each has a part of boot memory and of the vCPUs: from the lowest address and
    /// the first vCPU up, in their order. All are on node 0 when there are none.
    pub numa: Vec<NodeConfig>,
    /// One virtio-mem device each.
    pub hotplug: Vec<HotplugConfig>,
    /// Sizes of ranges of device memory in bytes, each a multiple of 128 MiB.
    pub pmem: Vec<u64>,
    /// A bzImage, or an ELF file with a PVH entry; the embedded guest when absent.
    pub kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Appended to the kernel command line.
    pub cmdline: Option<String>,
    /// Size of the guest's memory blocks in bytes, a power of two from 128 MiB to 2 GiB.
    pub memory_block: u64,
    /// The memmap of added memory lies in the added memory.
    pub memmap_on_memory: bool,
    /// Per-CPU lists are out of play while a range goes offline.
    pub pcp_disable: bool,
    /// How struct pages are initialised.
    pub init: InitPolicy,
    /// Where the serial port leads.
    pub console: ConsoleMode,
    /// A reset by the guest starts it again; otherwise it ends the machine, as powering off does.
    pub reboot: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: DEFAULT_MEMORY,
            numa: Vec::new(),
            hotplug: Vec::new(),
            pmem: Vec::new(),
            kernel: None,
            initrd: None,
            cmdline: None,
            memory_block: MEMORY_BLOCK_SIZE,
            memmap_on_memory: true,
            pcp_disable: true,
            init: InitPolicy::default(),
            console: ConsoleMode::Stderr,
            reboot: true,
        }
    }
}

/// A hotplug region and its virtio-mem device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotplugConfig {
    /// Size of the region in bytes, a multiple of 128 MiB.
    pub size: u64,
    /// Size of a device block in bytes, a power of two from 2 MiB to 128 MiB.
    pub block: u64,
    /// Bytes that the device asks the guest to plug at boot, a multiple of `block`.
    pub requested: u64,
    /// NUMA node that the guest shall count the memory to, up to [`MAX_NODE`]; it need not have anything
    /// at boot.
    pub node: Option<u16>,
}

impl HotplugConfig {
    /// A region of `size` bytes with 2 MiB blocks, empty at boot.
    #[must_use]
    pub const fn new(size: u64) -> Self {
        Self { size, block: MIN_BLOCK, requested: 0, node: None }
    }
}

/// When the guest initialises struct pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitPolicy {
    /// All struct pages of a block before the block is used.
    Eager,
    /// Those of boot memory on demand, or beside everything else; those of added memory as `Eager`.
    Deferred,
    /// Each one when its page is first used.
    #[default]
    Lazy,
}

impl InitPolicy {
    const ALL: [(Self, &str); 3] =
        [(Self::Eager, "eager"), (Self::Deferred, "deferred"), (Self::Lazy, "lazy")];
}

impl fmt::Display for InitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(policy, _)| policy == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for InitPolicy {
    type Err = UnknownInitPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|(_, known)| *known == name);
        known.map(|(policy, _)| policy).ok_or(UnknownInitPolicy)
    }
}

/// The name of an [`InitPolicy`] that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown; the policies are: eager, deferred, lazy")]
pub struct UnknownInitPolicy;

/// Where the guest's serial port leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleMode {
    /// Output is dropped (a report of a death still shows the last lines).
    Off,
    /// Output goes to stderr, line by line; there is no input.
    #[default]
    Stderr,
    /// The terminal is the guest's: input byte by byte without echo; Ctrl-C still ends the VM.
    Stdio,
    /// Output goes to a file, which is created or emptied.
    File(PathBuf),
    /// Output goes to whoever listens at this UNIX socket, and input comes from there.
    Socket(PathBuf),
}

/// What is wrong with a [`Config`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No vCPU, or more than the kernel brings up or there are APIC ids.
    #[error("--cpus {given}: there can be 1 to {most} vCPUs")]
    Cpus {
        /// How many were asked for.
        given: u8,
        /// How many there can be.
        most: u8,
    },
    /// Too little boot memory.
    #[error("--memory {}: the guest needs at least {}", Size(*.0), Size(MIN_MEMORY))]
    MemoryTooSmall(u64),
    /// Boot memory is not made of huge pages.
    #[error("--memory {}: must be a multiple of {}", Size(*.0), Size(MIN_BLOCK))]
    MemoryUnaligned(u64),
    /// The size of a memory block cannot be.
    #[error(
        "--memory-block {}: must be a power of two from {} to {}",
        Size(*.0), Size(MEMORY_BLOCK_SIZE), Size(MAX_MEMORY_BLOCK_SIZE)
    )]
    MemoryBlock(u64),
    /// More than the guest can address.
    #[error(
        "boot memory, hotplug regions and device memory end at {}, beyond the {} that a guest can address: \
         make --memory, --hotplug size= or --pmem size= smaller",
        Size(*.end), Size(MAX_PHYS_ADDR)
    )]
    TooLarge {
        /// Where the last of them would end.
        end: u64,
    },
    /// More devices than the guest drives.
    #[error("--hotplug given {given} times: the guest drives {max} devices at most")]
    TooManyDevices {
        /// Regions wanted.
        given: usize,
        /// Regions possible.
        max: usize,
    },
    /// The region is empty or not made of memory blocks.
    #[error(
        "--hotplug #{device} size={}: must be a multiple of the guest's memory block, {}{}",
        Size(*.size), Size(MEMORY_BLOCK_SIZE), nearest(*.size, MEMORY_BLOCK_SIZE)
    )]
    RegionUnaligned {
        /// Which `--hotplug`, from 0.
        device: usize,
        /// Its size.
        size: u64,
    },
    /// More ranges of device memory than the guest looks for.
    #[error("--pmem given {given} times: the guest looks for {MAX_PMEM} at most")]
    TooManyPmem {
        /// Ranges wanted.
        given: usize,
    },
    /// The device memory is empty or not made of memory blocks.
    #[error(
        "--pmem #{device} size={}: must be a multiple of the guest's memory block, {}{}",
        Size(*.size), Size(MEMORY_BLOCK_SIZE), nearest(*.size, MEMORY_BLOCK_SIZE)
    )]
    PmemUnaligned {
        /// Which `--pmem`, from 0.
        device: usize,
        /// Its size.
        size: u64,
    },
    /// The block size cannot be.
    #[error(
        "--hotplug #{device} block={}: must be a power of two from {} to {}",
        Size(*.block), Size(MIN_BLOCK), Size(MEMORY_BLOCK_SIZE)
    )]
    Block {
        /// Which `--hotplug`, from 0.
        device: usize,
        /// Its block size.
        block: u64,
    },
    /// The target is not made of blocks.
    #[error(
        "--hotplug #{device} requested={}: must be a multiple of its block, {}{}",
        Size(*.requested), Size(*.block), nearest(*.requested, *.block)
    )]
    RequestedUnaligned {
        /// Which `--hotplug`, from 0.
        device: usize,
        /// Its target.
        requested: u64,
        /// Its block size.
        block: u64,
    },
    /// There is no such node.
    #[error("--hotplug #{device} node={node}: nodes are numbered from 0 to {MAX_NODE}")]
    Node {
        /// Which `--hotplug`, from 0.
        device: usize,
        /// Its node.
        node: u16,
    },
    /// The nodes do not fit the machine.
    #[error(transparent)]
    Numa(#[from] NumaError),
    /// The target does not fit.
    #[error("--hotplug #{device} requested={}: the region has only {}", Size(*.requested), Size(*.size))]
    RequestedTooLarge {
        /// Which `--hotplug`, from 0.
        device: usize,
        /// Its target.
        requested: u64,
        /// Its size.
        size: u64,
    },
    /// The command line holds what cannot be passed on.
    #[error("--cmdline: byte {position} is not printable ASCII")]
    CmdlineText {
        /// Offset of the byte.
        position: usize,
    },
}

impl Config {
    /// Checks everything that can be checked without the host.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place and what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        // Another kernel may know what to do with more.
        self.validate_cpus(if self.kernel.is_none() { tidevm_abi::MAX_CPUS as u8 } else { MAX_CPUS })?;
        if self.memory < MIN_MEMORY {
            return Err(ConfigError::MemoryTooSmall(self.memory));
        }
        if !self.memory.is_multiple_of(MIN_BLOCK) {
            return Err(ConfigError::MemoryUnaligned(self.memory));
        }
        let block = self.memory_block;
        if !block.is_power_of_two() || !(MEMORY_BLOCK_SIZE..=MAX_MEMORY_BLOCK_SIZE).contains(&block) {
            return Err(ConfigError::MemoryBlock(block));
        }
        self.validate_numa()?;
        if self.hotplug.len() > MAX_MEM_DEVICES {
            let given = self.hotplug.len();
            return Err(ConfigError::TooManyDevices { given, max: MAX_MEM_DEVICES });
        }
        for (device, hotplug) in self.hotplug.iter().enumerate() {
            hotplug.validate(device)?;
        }
        if self.pmem.len() > MAX_PMEM {
            return Err(ConfigError::TooManyPmem { given: self.pmem.len() });
        }
        let is_whole = |size: u64| size > 0 && size.is_multiple_of(MEMORY_BLOCK_SIZE);
        if let Some(device) = self.pmem.iter().position(|&size| !is_whole(size)) {
            return Err(ConfigError::PmemUnaligned { device, size: self.pmem[device] });
        }
        match layout::end(self.memory, self.region_sizes()) {
            Some(end) if end <= MAX_PHYS_ADDR => {}
            end => return Err(ConfigError::TooLarge { end: end.unwrap_or(u64::MAX) }),
        }
        let text = self.cmdline.as_deref().unwrap_or_default();
        match text.bytes().position(|byte| !(b' '..=b'~').contains(&byte)) {
            Some(position) => Err(ConfigError::CmdlineText { position }),
            None => Ok(()),
        }
    }
}

impl Config {
    /// Sizes of what lies behind boot memory, in the order of its addresses: hotplug regions, then
    /// device memory.
    pub(crate) fn region_sizes(&self) -> impl Iterator<Item = u64> {
        self.hotplug.iter().map(|hotplug| hotplug.size).chain(self.pmem.iter().copied())
    }

    /// Address ranges of device memory; none of a configuration that is not valid.
    pub(crate) fn pmem_ranges(&self) -> Vec<Range<u64>> {
        let regions = layout::regions(self.memory, self.region_sizes()).unwrap_or_default();
        regions.into_iter().skip(self.hotplug.len()).collect()
    }

    /// Checks the number of vCPUs against what the kernel brings up.
    pub(crate) fn validate_cpus(&self, most: u8) -> Result<(), ConfigError> {
        if (1..=most).contains(&self.cpus) {
            Ok(())
        } else {
            Err(ConfigError::Cpus { given: self.cpus, most })
        }
    }
}

impl HotplugConfig {
    fn validate(&self, device: usize) -> Result<(), ConfigError> {
        let Self { size, block, requested, node } = *self;
        if size == 0 || !size.is_multiple_of(MEMORY_BLOCK_SIZE) {
            return Err(ConfigError::RegionUnaligned { device, size });
        }
        if !block.is_power_of_two() || !(MIN_BLOCK..=MEMORY_BLOCK_SIZE).contains(&block) {
            return Err(ConfigError::Block { device, block });
        }
        if !requested.is_multiple_of(block) {
            return Err(ConfigError::RequestedUnaligned { device, requested, block });
        }
        if requested > size {
            return Err(ConfigError::RequestedTooLarge { device, requested, size });
        }
        if let Some(node) = node.filter(|&node| node > MAX_NODE) {
            return Err(ConfigError::Node { device, node });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
