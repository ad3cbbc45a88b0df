//! The kernel command line: `key=value` words, in Linux's keys where Linux has one (see
//! `tidevm_abi::cmdline`). Words that it does not know are left alone, as Linux does; a value that
//! it cannot read is reported and the default holds.

use arrayvec::ArrayVec;
use tidevm_abi::cmdline as keys;
use tidevm_mm::{DeviceInit, InitPolicy, MAX_NODES, PcpPolicy, RemovalPolicy, SECTION_SIZE};

use crate::boot::numa::Share;
use crate::console::println;
use crate::cpu::MAX_CPUS;

/// Most virtio-mmio devices that are looked at: the control channel and virtio-mem devices.
pub const MAX_DEVICES: usize = 1 + tidevm_abi::MAX_MEM_DEVICES;

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

/// What the command line asks for.
#[derive(Debug)]
pub struct Options {
    /// Most CPUs to bring up, this one included.
    pub nr_cpus: Option<usize>,
    /// Frequency of the time-stamp counter.
    pub tsc_khz: Option<u64>,
    /// Whether new memory holds its own memmap.
    pub memmap_on_memory: bool,
    /// Bytes of a memory block.
    pub memory_block: u64,
    /// How much new memory that holds its own memmap can be removed at a time.
    pub removal: RemovalPolicy,
    /// What is done about per-CPU lists during offlining.
    pub pcp: PcpPolicy,
    /// When struct pages are initialised.
    pub init: InitPolicy,
    /// Whether allocations may have boot memory initialised that was left for later.
    pub grow: bool,
    /// Nodes in their order, if there are any.
    pub numa: ArrayVec<Share, MAX_NODES>,
    /// Whether one worker initialises boot memory that was left for later, rather than every CPU.
    pub one_worker: bool,
    /// Bytes that every CPU takes while it is brought up.
    pub percpu_buf: u64,
    /// How struct pages of device memory are initialised.
    pub device_init: DeviceInit,
    /// Whether memory is zero until it is written to.
    pub zeroed: bool,
    /// Whether to look for devices on PCI.
    pub pci: bool,
    /// virtio-mmio devices.
    pub devices: [Option<MmioDevice>; MAX_DEVICES],
}

/// Parses a command line.
pub fn parse(text: &str) -> Options {
    let mut options = Options {
        nr_cpus: None,
        tsc_khz: None,
        memmap_on_memory: true,
        memory_block: tidevm_abi::MEMORY_BLOCK_SIZE,
        removal: RemovalPolicy::PerBlock,
        pcp: PcpPolicy::Disable,
        init: InitPolicy::Eager,
        grow: true,
        numa: ArrayVec::new(),
        one_worker: false,
        percpu_buf: 0,
        device_init: DeviceInit::Once,
        zeroed: false,
        pci: true,
        devices: [None; MAX_DEVICES],
    };
    let mut nr_devices = 0;
    for word in text.split_ascii_whitespace() {
        let Some((key, value)) = word.split_once('=') else { continue };
        let understood = match key {
            keys::NR_CPUS => set(&mut options.nr_cpus, value.parse().ok().filter(|&cpus| cpus > 0).map(Some)),
            keys::PCI => set(&mut options.pci, (value == "off").then_some(false)),
            keys::TSC_KHZ => set(&mut options.tsc_khz, value.parse().ok().map(Some)),
            keys::MEMMAP_ON_MEMORY => set(&mut options.memmap_on_memory, switch(value)),
            keys::MEMORY_BLOCK => set(&mut options.memory_block, memory_block(value)),
            keys::MEMMAP_REMOVAL => set(&mut options.removal, removal(value)),
            keys::PCP_DISABLE => set(&mut options.pcp, pcp(value)),
            keys::INIT => set(&mut options.init, init(value)),
            keys::DEFERRED_GROW => set(&mut options.grow, switch(value)),
            keys::NUMA => set(&mut options.numa, numa(value)),
            keys::DEFERRED_WORKERS => set(&mut options.one_worker, is_one(value)),
            keys::PERCPU_BUF => set(&mut options.percpu_buf, number(value)),
            keys::DEVICE_INIT => set(&mut options.device_init, device_init(value)),
            keys::ZEROED => set(&mut options.zeroed, switch(value)),
            keys::VIRTIO_MMIO_DEVICE if nr_devices < MAX_DEVICES => {
                let understood = set(&mut options.devices[nr_devices], device(value).map(Some));
                nr_devices += usize::from(understood);
                understood
            }
            _ => true,
        };
        if !understood {
            println!("command line: cannot use {key}={value}");
        }
    }
    options
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
    match value {
        "on" | "1" | "Y" | "y" => Some(true),
        "off" | "0" | "N" | "n" => Some(false),
        _ => None,
    }
}

fn memory_block(value: &str) -> Option<u64> {
    let range = tidevm_abi::MEMORY_BLOCK_SIZE..=tidevm_abi::MAX_MEMORY_BLOCK_SIZE;
    number(value).filter(|size| size.is_power_of_two() && range.contains(size))
}

fn removal(value: &str) -> Option<RemovalPolicy> {
    match value {
        "per-block" => Some(RemovalPolicy::PerBlock),
        "range" => Some(RemovalPolicy::Range),
        _ => None,
    }
}

fn is_one(value: &str) -> Option<bool> {
    match value {
        "one" => Some(true),
        "all" => Some(false),
        _ => None,
    }
}

fn pcp(value: &str) -> Option<PcpPolicy> {
    match (value, switch(value)) {
        ("once", _) => Some(PcpPolicy::DrainOnce),
        (_, Some(true)) => Some(PcpPolicy::Disable),
        (_, Some(false)) => Some(PcpPolicy::DrainAgain),
        (_, None) => None,
    }
}

fn init(value: &str) -> Option<InitPolicy> {
    match value {
        "eager" => Some(InitPolicy::Eager),
        "deferred" => Some(InitPolicy::Deferred),
        "lazy" => Some(InitPolicy::Lazy),
        _ => None,
    }
}

/// `MEMORY[:CPUS],...`, in whole memory blocks.
fn numa(value: &str) -> Option<ArrayVec<Share, MAX_NODES>> {
    let mut nodes = ArrayVec::new();
    for node in value.split(',') {
        let (memory, cpus) = node.split_once(':').unwrap_or((node, "0"));
        let memory = number(memory).filter(|memory| memory.is_multiple_of(SECTION_SIZE))?;
        nodes.try_push((memory, cpus.parse().ok().filter(|&cpus| cpus <= MAX_CPUS)?)).ok()?;
    }
    Some(nodes)
}

fn device_init(value: &str) -> Option<DeviceInit> {
    match value {
        "once" => Some(DeviceInit::Once),
        "twice" => Some(DeviceInit::Twice),
        _ => None,
    }
}

fn device(value: &str) -> Option<MmioDevice> {
    let (size, place) = value.split_once('@')?;
    let (address, irq) = place.split_once(':')?;
    let irq = irq.split(':').next()?;
    Some(MmioDevice { size: number(size)?, address: number(address)?, irq: irq.parse().ok()? })
}

/// A number as Linux's `memparse`: decimal or `0x` hexadecimal, with K, M or G behind it.
pub fn number(text: &str) -> Option<u64> {
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
