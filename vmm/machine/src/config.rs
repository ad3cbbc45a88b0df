//! The description of a VM, and whether such a VM is possible.
//!
//! Everything here is checked before the host is asked for anything. So the same mistake gives the same
//! message on every host: what is wrong, where, and what would be right. What only the host can refuse
//! (mappings, vCPU limits) is a [`StartError`](crate::StartError).

use std::path::PathBuf;
use std::time::Duration;

use tidevm_abi::{MAX_MEM_DEVICES, MAX_MEMORY_BLOCK_SIZE, MAX_PHYS_ADDR, MAX_PMEM, MEMORY_BLOCK_SIZE, Size};

use crate::confine::Confinement;
use crate::confine::jail::Jail;
use crate::memory::layout::{self, Place, REGION_ALIGN};
use crate::snapshot::folder::Destination;
use crate::snapshot::opened::Snapshot;
use crate::socket::Listener;

pub(crate) mod balloon;
mod disk;
mod error;
mod hotplug;
mod kernel;
mod numa;

pub use balloon::{BalloonConfig, BalloonError, MAX_STATS_INTERVAL, MIN_STATS_INTERVAL};
pub use disk::{DiskConfig, DiskConfigError, MAX_DISKS};
pub use error::ConfigError;
pub use hotplug::HotplugConfig;
pub use numa::{NodeConfig, NumaError};
pub use tidevm_abi::cmdline::InitPolicy;

/// Least boot memory: below it the embedded guest has no room for its own tables.
pub const MIN_MEMORY: Size = Size::mib(32);

/// Most vCPUs: local APIC ids are 8 bits wide, and id 255 addresses all of them.
pub const MAX_CPUS: u8 = 254;

/// Default device block of a virtio-mem device: a pageblock of the guest and a huge page of the host. Boot memory is made of
/// them too.
pub const DEFAULT_DEVICE_BLOCK: Size = Size::mib(2);

/// Least device block of a virtio-mem device, as in QEMU.
pub const MIN_DEVICE_BLOCK: Size = Size::mib(1);

/// Largest device block: regions begin at whole ones, and are placed at whole GiB.
pub const MAX_DEVICE_BLOCK: Size = Size(REGION_ALIGN);

/// Highest number of a NUMA node: a Linux kernel built for few nodes supports 64.
pub const MAX_NODE: u16 = 63;

/// Default boot memory.
pub const DEFAULT_MEMORY: Size = Size::mib(256);

/// The least memory block of the guest. Regions and device memory are made of whole ones.
const MEMORY_BLOCK: Size = Size(MEMORY_BLOCK_SIZE);

/// The description of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of vCPUs: up to 64 for the embedded guest, up to 254 for other kernels. Their local APIC ids
    /// are `0..cpus`.
    pub cpus: u8,
    /// Boot memory, a multiple of 2 MiB.
    pub memory: Size,
    /// NUMA nodes. In their order they share out boot memory, from the lowest address up, and the vCPUs, from
    /// the first one up. When there are none, everything is on node 0.
    pub numa: Vec<NodeConfig>,
    /// One virtio-mem device each.
    pub hotplug: Vec<HotplugConfig>,
    /// Ranges of device memory, each a multiple of 128 MiB.
    pub pmem: Vec<Size>,
    /// The virtio-balloon device, by which a guest reports free memory and gives statistics.
    pub balloon: Option<BalloonConfig>,
    /// One virtio-blk device each, at most [`MAX_DISKS`].
    pub disks: Vec<DiskConfig>,
    /// A bzImage, or an ELF file with a PVH entry; the embedded guest when absent.
    pub kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel is Linux, and gets an agent in front of its initial RAM disk, which answers calls.
    pub agent: bool,
    /// Appended to the kernel command line.
    pub cmdline: Option<String>,
    /// The guest's memory block, a power of two from 128 MiB to 2 GiB.
    pub memory_block: Size,
    /// The memmap of added memory lies in the added memory.
    pub memmap_on_memory: bool,
    /// Per-CPU page lists are disabled while a range goes offline.
    pub pcp_disable: bool,
    /// When struct pages are initialised.
    pub init: InitPolicy,
    /// Where the serial port leads.
    pub console: ConsoleMode,
    /// What else is made of the serial port's output.
    pub watch: ConsoleWatch,
    /// How long all waits for the machine may take together, from its start: then each ends with
    /// [`WaitError::TimedOut`](crate::WaitError::TimedOut).
    pub timeout: Option<Duration>,
    /// A reset by the guest starts it again. Otherwise a reset is a death of the guest.
    pub reboot: bool,
    /// The embedder resets the machine itself, by [`crate::Vm::reset`]. That needs this or `reboot`. Without both, the
    /// event loop can give up the system calls that make a machine.
    pub resets: bool,
    /// A person types at the terminal on standard input, by a line editor of the embedder. Each SIGINT is counted in
    /// [`crate::State::interrupts`] and ends nothing. At the end, of whatever kind, the terminal is as it was at the start.
    pub interactive: bool,
    /// What the process gives away before the guest runs.
    pub confinement: Confinement,
    /// The process moves here when its files are open, before it makes a thread: see [`Jail`].
    pub jail: Option<Jail>,
    /// Where the machine can be saved, once.
    pub save: Option<Destination>,
    /// The snapshot from which the machine starts, in place of its kernel's first instruction. It is that of this machine
    /// ([`Snapshot::config`]).
    pub restore: Option<Snapshot>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: DEFAULT_MEMORY,
            numa: Vec::new(),
            hotplug: Vec::new(),
            pmem: Vec::new(),
            balloon: None,
            disks: Vec::new(),
            kernel: None,
            initrd: None,
            agent: false,
            cmdline: None,
            memory_block: MEMORY_BLOCK,
            memmap_on_memory: true,
            pcp_disable: true,
            init: InitPolicy::default(),
            console: ConsoleMode::Stderr,
            watch: ConsoleWatch::default(),
            timeout: None,
            reboot: true,
            resets: false,
            interactive: false,
            confinement: Confinement::default(),
            jail: None,
            save: None,
            restore: None,
        }
    }
}

/// Where the guest's serial port leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleMode {
    /// Output is dropped. The text about a death still shows the last lines.
    Off,
    /// Output goes to stderr, line by line; there is no input.
    #[default]
    Stderr,
    /// The guest has the terminal: each key is input, also Ctrl-C, and none is echoed. Ctrl-a x ends the VM as SIGTERM
    /// does, also when the guest reads nothing, and at once the second time. Ctrl-a Ctrl-a is a Ctrl-a for the guest.
    Stdio,
    /// Output goes to a file, which is created or emptied. It gets at most 64 MiB.
    File(PathBuf),
    /// Output goes to the client of this UNIX socket, and input comes from there. The VM makes the socket and listens
    /// there, and serves one client at a time. It waits for no client.
    Socket(PathBuf),
    /// The same with a socket that exists: see [`ConsoleMode::listen`].
    Listening(Listener),
    /// Output goes to the process that listens at this UNIX socket, and input comes from there.
    Connect(PathBuf),
}

/// What a VM makes of its guest's console, beside [`ConsoleMode`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleWatch {
    /// The embedder reads it: [`VmHandle::heard`](crate::VmHandle::heard). [`State::console_lines`](crate::State::console_lines)
    /// counts its lines. At most [`CONSOLE_KEPT`](crate::CONSOLE_KEPT) bytes are kept.
    pub kept: bool,
    /// The kernel is heeded. Lines by which it tells of its own trouble are alarms
    /// ([`VmHandle::take_alarms`](crate::VmHandle::take_alarms)). A panic that it tells, on the console or to a pvpanic device,
    /// is a death, even if the machine would be reset.
    pub alarms: bool,
    /// All output goes to this file too, which is created or emptied. It gets at most 64 MiB.
    pub copy: Option<PathBuf>,
}

/// The multiples of `unit` next to `size`, as advice.
fn nearest(size: Size, unit: Size) -> String {
    let below = size.0 - size.0 % unit.0;
    match (below, below.checked_add(unit.0)) {
        (0, _) => format!(" (try {unit})"),
        (below, Some(above)) => format!(" (try {} or {})", Size(below), Size(above)),
        (below, None) => format!(" (try {})", Size(below)),
    }
}

/// Whether `size` is some whole memory blocks.
fn is_memory_blocks(size: Size) -> bool {
    size.0 > 0 && size.0.is_multiple_of(MEMORY_BLOCK_SIZE)
}

impl Config {
    /// Checks everything that can be checked without the host.
    ///
    /// # Errors
    /// The first mistake, with its place and what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        // Another kernel may support more vCPUs than the embedded guest.
        self.validate_cpus(if self.kernel.is_none() { tidevm_abi::MAX_CPUS as u8 } else { MAX_CPUS })?;
        if self.memory < MIN_MEMORY {
            return Err(ConfigError::MemoryTooSmall(self.memory));
        }
        if !self.memory.0.is_multiple_of(DEFAULT_DEVICE_BLOCK.0) {
            return Err(ConfigError::MemoryUnaligned(self.memory));
        }
        let block = self.memory_block;
        if !block.0.is_power_of_two() || !(MEMORY_BLOCK..=Size(MAX_MEMORY_BLOCK_SIZE)).contains(&block) {
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
        if let Some(device) = self.pmem.iter().position(|&size| !is_memory_blocks(size)) {
            return Err(ConfigError::PmemUnaligned { device, size: self.pmem[device] });
        }
        if let Some(balloon) = self.balloon {
            balloon.validate()?;
        }
        disk::validate(&self.disks, self.mmio_devices())?;
        match layout::end(self.memory, self.places()) {
            Some(end) if end <= MAX_PHYS_ADDR => {}
            end => return Err(ConfigError::TooLarge { end: Size(end.unwrap_or(u64::MAX)) }),
        }
        self.validate_cmdline()
    }

    /// Whether the machine can be reset.
    pub(crate) fn can_reset(&self) -> bool {
        self.reboot || self.resets
    }

    /// The number of virtio-mmio devices: the control channel, one per region, the balloon, and one per disk.
    pub(crate) fn mmio_devices(&self) -> usize {
        1 + self.hotplug.len() + usize::from(self.balloon.is_some()) + self.disks.len()
    }

    /// The ranges behind boot memory, in the order of their addresses: hotplug regions, then device memory.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.hotplug.iter().map(HotplugConfig::place).chain(self.pmem.iter().map(|&size| size.into()))
    }
}

#[cfg(test)]
mod tests;
