//! The kernel command line: `key=value` words, with Linux's keys where Linux has one (see
//! `tidevm_abi::cmdline`).
//!
//! As in Linux, unknown words are ignored. A value that cannot be parsed is reported, and the default holds.
//!
//! The words of values stand in tables beside the keys, which the VMM uses too. What a word means to memory
//! management (`tidevm_mm`) is said here.

use arrayvec::ArrayVec;
use tidevm_abi::value_of;
use tidevm_abi::{Size, cmdline as keys};
use tidevm_mm::{DeviceInit, InitPolicy, MAX_NODES, MemoryContent, PcpPolicy, RemovalPolicy, SECTION_SIZE};

use crate::console::println;
use crate::cpu::MAX_CPUS;

/// Most virtio-mmio devices that are used: the control channel, virtio-mem devices, and a balloon.
pub const MAX_DEVICES: usize = 2 + tidevm_abi::MAX_MEM_DEVICES;

/// One `virtio_mmio.device=SIZE@ADDRESS:IRQ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Bytes of registers.
    pub size: u64,
    /// Physical address of the registers.
    pub address: u64,
    /// Global system interrupt.
    pub irq: u32,
}

/// Memory and CPUs of one node in `tidevm.numa=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its boot memory, in whole memory blocks.
    pub memory: Size,
    /// Number of CPUs.
    pub cpus: usize,
}

/// The parsed command line.
#[derive(Debug)]
pub struct CommandLine {
    /// Most CPUs to bring up, the boot CPU included.
    pub nr_cpus: Option<usize>,
    /// Frequency of the time-stamp counter.
    pub tsc_khz: Option<u64>,
    /// Size of a memory block.
    pub memory_block: Size,
    /// The nodes in their order; empty when the command line names none.
    pub numa: ArrayVec<NodeSpec, MAX_NODES>,
    /// The CPUs that initialise deferred boot memory. It is not among the options of memory management, which
    /// starts no jobs: the kernel does.
    pub deferred_workers: keys::DeferredWorkers,
    /// Size of a workload of boot: the buffer that every CPU takes while it is brought up. It changes
    /// nothing in memory management, so it is not among its options.
    pub percpu_buf: Size,
    /// Whether to look for devices on PCI.
    pub pci: bool,
    /// Whether to judge a virtio-mem device instead of using its memory.
    pub judge: bool,
    /// virtio-mmio devices.
    pub devices: [Option<MmioDevice>; MAX_DEVICES],
    /// The choices of memory management. Boot sets the number of CPUs when it has found them.
    pub mm: tidevm_mm::Options,
}

impl CommandLine {
    /// Parses a command line.
    pub fn parse(text: &str) -> Self {
        let mut parsed = Self::defaults();
        let mut nr_devices = 0;
        for word in text.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            let understood = if key == keys::VIRTIO_MMIO_DEVICE && nr_devices < MAX_DEVICES {
                let understood = set(&mut parsed.devices[nr_devices], device(value).map(Some));
                nr_devices += usize::from(understood);
                understood
            } else {
                parsed.take(key, value)
            };
            if !understood {
                println!("command line: cannot use {key}={value}");
            }
        }
        parsed
    }

    fn defaults() -> Self {
        Self {
            nr_cpus: None,
            tsc_khz: None,
            memory_block: Size(tidevm_abi::MEMORY_BLOCK_SIZE),
            numa: ArrayVec::new(),
            deferred_workers: keys::DeferredWorkers::All,
            percpu_buf: Size(0),
            pci: true,
            judge: false,
            devices: [None; MAX_DEVICES],
            mm: tidevm_mm::Options::DEFAULT,
        }
    }

    /// Takes one word in. Returns `false` when the value cannot be parsed.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let mm = &mut self.mm;
        match key {
            keys::NR_CPUS => set(&mut self.nr_cpus, value.parse().ok().filter(|&cpus| cpus > 0).map(Some)),
            keys::PCI => set(&mut self.pci, (value == "off").then_some(false)),
            keys::JUDGE => set(&mut self.judge, switch(value)),
            keys::TSC_KHZ => set(&mut self.tsc_khz, value.parse().ok().map(Some)),
            keys::MEMORY_BLOCK => set(&mut self.memory_block, memory_block(value)),
            keys::NUMA => set(&mut self.numa, numa(value)),
            keys::DEFERRED_WORKERS => {
                set(&mut self.deferred_workers, value_of(keys::DEFERRED_WORKERS_WORDS, value))
            }
            keys::PERCPU_BUF => set(&mut self.percpu_buf, number(value).map(Size)),
            keys::MEMMAP_ON_MEMORY => set(&mut mm.memmap_on_memory, switch(value)),
            keys::MEMMAP_REMOVAL => set(&mut mm.removal, value_of(keys::MEMMAP_REMOVALS, value).map(removal)),
            keys::PCP_DISABLE => set(&mut mm.pcp, pcp(value)),
            keys::INIT => set(&mut mm.init, value_of(keys::INIT_POLICIES, value).map(init)),
            keys::DEFERRED_GROW => set(&mut mm.grow, switch(value)),
            keys::DEVICE_INIT => {
                set(&mut mm.device_init, value_of(keys::DEVICE_INITS, value).map(device_init))
            }
            keys::ZEROED => set(&mut mm.content, content(value)),
            _ => true,
        }
    }
}

fn set<T>(option: &mut T, value: Option<T>) -> bool {
    match value {
        Some(value) => {
            *option = value;
            true
        }
        None => false,
    }
}

fn switch(value: &str) -> Option<bool> {
    value_of(keys::SWITCHES, value)
}

fn content(value: &str) -> Option<MemoryContent> {
    switch(value).map(|is_zero| if is_zero { MemoryContent::Zero } else { MemoryContent::Unknown })
}

fn memory_block(value: &str) -> Option<Size> {
    let range = tidevm_abi::MEMORY_BLOCK_SIZE..=tidevm_abi::MAX_MEMORY_BLOCK_SIZE;
    number(value).filter(|size| size.is_power_of_two() && range.contains(size)).map(Size)
}

fn removal(word: keys::MemmapRemoval) -> RemovalPolicy {
    match word {
        keys::MemmapRemoval::PerBlock => RemovalPolicy::PerBlock,
        keys::MemmapRemoval::Range => RemovalPolicy::Range,
    }
}

fn pcp(value: &str) -> Option<PcpPolicy> {
    let word = value_of(keys::PCP_DISABLES, value).or_else(|| switch(value).map(keys::PcpDisable::from));
    word.map(|word| match word {
        keys::PcpDisable::On => PcpPolicy::Disable,
        keys::PcpDisable::Off => PcpPolicy::DrainAgain,
        keys::PcpDisable::Once => PcpPolicy::DrainOnce,
    })
}

fn init(word: keys::InitPolicy) -> InitPolicy {
    match word {
        keys::InitPolicy::Eager => InitPolicy::Eager,
        keys::InitPolicy::Deferred => InitPolicy::Deferred,
        keys::InitPolicy::Lazy => InitPolicy::Lazy,
    }
}

fn device_init(word: keys::DeviceInit) -> DeviceInit {
    match word {
        keys::DeviceInit::Once => DeviceInit::Once,
        keys::DeviceInit::Twice => DeviceInit::Twice,
    }
}

/// `MEMORY[:CPUS],...`, in whole memory blocks.
fn numa(value: &str) -> Option<ArrayVec<NodeSpec, MAX_NODES>> {
    let mut nodes = ArrayVec::new();
    for node in value.split(',') {
        let (memory, cpus) = node.split_once(':').unwrap_or((node, "0"));
        let memory = number(memory).filter(|memory| memory.is_multiple_of(SECTION_SIZE)).map(Size)?;
        let cpus = cpus.parse().ok().filter(|&cpus| cpus <= MAX_CPUS)?;
        nodes.try_push(NodeSpec { memory, cpus }).ok()?;
    }
    Some(nodes)
}

fn device(value: &str) -> Option<MmioDevice> {
    let (size, place) = value.split_once('@')?;
    let (address, irq) = place.split_once(':')?;
    let irq = irq.split(':').next()?;
    Some(MmioDevice { size: number(size)?, address: number(address)?, irq: irq.parse().ok()? })
}

/// A number as in Linux `memparse`: decimal or `0x` hexadecimal, then an optional K, M or G.
fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    value.checked_mul(1 << shift)
}
