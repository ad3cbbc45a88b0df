//! Booting: the kernel, the initrd, and everything else that a kernel finds in memory at its first
//! instruction.
//!
//! ELF kernels boot by the x86/HVM direct boot ABI, PVH (Xen's `docs/misc/pvh.pandoc`): a note names a 32-bit
//! entry point, which is entered in flat protected mode with the address of a start info in `ebx`. bzImages
//! boot by Linux's own protocol (`boot/linux.rs`). `boot/image.rs` reads the files.
//!
//! tidevm's own guest, which identifies itself in a note, finds its devices on the command line, in Linux's
//! syntax. Every other kernel finds them by ACPI (`boot/acpi.rs`). Both learn of NUMA nodes by ACPI.
//!
//! Invariant: the memory map holds boot memory, and device memory by its own type. It holds nothing of a
//! hotplug region: only the region's driver may use that memory.

use std::io::{self, Cursor};
use std::path::PathBuf;

mod acpi;
mod agent;
mod entry;
mod image;
mod linux;

pub use entry::Entry;
pub use image::Image;

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader, load_cmdline};
use tidevm_abi::cmdline as keys;
use tidevm_abi::{Size, word_for};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::bus::{I8042, I8042_RESET};
use crate::config::Config;
use crate::memory::{View, layout};

/// The guest that is part of this program: an ELF file with a PVH entry, which other VMMs can boot too.
pub const GUEST_IMAGE: &[u8] = include_bytes!(env!("TIDEVM_GUEST"));

/// "xEn3" with the high bit of the first letter set.
const START_INFO_MAGIC: u32 = 0x336e_c578;
const MEMMAP_RAM: u32 = 1;
/// Linux's limit on x86.
const CMDLINE_SIZE: usize = 2048;

// All below 640 KiB, in memory that the map calls RAM. A guest reads all of it before it reuses that memory.
const START_INFO: GuestAddress = GuestAddress(0x6000);
const MODULES: GuestAddress = GuestAddress(0x6800);
const MEMMAP: GuestAddress = GuestAddress(0x7000);
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);

/// The address at which PCs start after a reset, in real mode, and the code there instead of firmware: `mov
/// al, 0xfe; out 0x64, al; hlt; jmp -3`. When ACPI is hardware-reduced, Linux without EFI jumps there to
/// reboot and does not try ACPI's own reset register.
const RESTART: GuestAddress = GuestAddress(0xf_fff0);
const RESTART_CODE: [u8; 7] = [0xb0, I8042_RESET, 0xe6, I8042 as u8, 0xf4, 0xeb, 0xfd];

/// The range that old firmware kept for itself. Kernels do not look for RAM there.
const LEGACY_HOLE: std::ops::Range<u64> = 0xa_0000..0x10_0000;

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug)]
struct Initrd {
    start: u64,
    size: u64,
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {what} {path}: {error}")]
    Unreadable {
        /// `--kernel` or `--initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The kernel is not an ELF file for x86-64.
    #[error("--kernel {name}: neither a bzImage nor a 64-bit x86 ELF file ({reason})")]
    NotElf {
        /// The kernel.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The kernel claims to be a bzImage, but it cannot be loaded.
    #[error("--kernel {name}: not a bzImage that can be loaded: {reason}")]
    NotBzImage {
        /// The kernel.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The kernel has no PVH entry.
    #[error(
        "--kernel {0}: no PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY); Linux has one with CONFIG_PVH=y"
    )]
    NoEntry(String),
    /// The kernel is tidevm's own guest, which has an agent.
    #[error("--agent: {0} is tidevm's own guest, which needs none; leave it out")]
    OwnAgent(String),
    /// The initrd cannot follow the agent.
    #[error(
        "--initrd {0}: neither a cpio archive (newc) nor a compressed one; with --agent the kernel unpacks it as its first \
         file system, and cannot mount it as a disk"
    )]
    NoArchive(PathBuf),
    /// The kernel or the initrd does not fit into boot memory.
    #[error(
        "{what} needs memory up to {end:#x}, beyond the first {low} of boot memory: make --memory larger"
    )]
    NoRoom {
        /// The part that does not fit.
        what: String,
        /// Where it would end.
        end: u64,
        /// The boot memory below the register hole.
        low: Size,
    },
    /// The command line is too long.
    #[error("the kernel command line is longer than {CMDLINE_SIZE} bytes: make --cmdline shorter")]
    Cmdline,
    /// Boot memory cannot be written.
    #[error("cannot write the {what} to guest memory: {reason}")]
    Write {
        /// The part that was to be written.
        what: &'static str,
        /// The reason.
        reason: String,
    },
}

/// The files from which a VM boots. They are kept as long as the VM may boot again, because the files on disk
/// may have changed by then.
#[derive(Debug)]
pub struct Files {
    /// The kernel.
    pub kernel: Image,
    /// The initrd, if there is one.
    pub initrd: Option<Vec<u8>>,
}

impl Files {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn open(config: &Config) -> Result<Self, BootError> {
        let kernel = Image::open(config.kernel.as_deref())?;
        let initrd = config.initrd.as_deref().map(|path| image::read("--initrd", path)).transpose()?;
        if !config.agent {
            return Ok(Self { kernel, initrd });
        }
        if kernel.is_own_guest() {
            return Err(BootError::OwnAgent(kernel.name));
        }
        let Some(joined) = agent::in_front_of(initrd.as_deref()) else {
            return Err(BootError::NoArchive(config.initrd.clone().unwrap_or_default()));
        };
        Ok(Self { kernel, initrd: Some(joined) })
    }
}

/// Writes everything to boot memory that the guest finds there at its first instruction.
///
/// # Errors
/// [`BootError`]; boot memory may be partly written.
pub fn load(
    config: &Config,
    image: &Image,
    initrd: Option<&[u8]>,
    tsc_khz: u32,
    view: &View,
) -> Result<Entry, BootError> {
    let low = config.memory.0.min(layout::HOLE_START);
    let line = cmdline(config, tsc_khz, image.is_own_guest())?;
    acpi::write(config, view)?;
    view.write_slice(&RESTART_CODE, RESTART).map_err(|error| write("code to restart", &error))?;
    let initrd = |kernel_end, low| initrd.map(|bytes| load_initrd(bytes, kernel_end, low, view)).transpose();
    let entry = if linux::is_bzimage(image.bytes()) {
        let kernel = linux::load(&image.name, image.bytes(), low, view)?;
        let zero_page = kernel.write_zero_page(
            &memory_map(config),
            initrd(kernel.end, kernel.initrd_end(low))?,
            acpi::TABLES,
            view,
        )?;
        Entry { address: kernel.entry, start_info: 0, zero_page }
    } else {
        let (address, end) = load_elf(image, low, view)?;
        write_start_info(config, image.is_own_guest(), initrd(end, low)?, view)?;
        Entry { address, start_info: START_INFO.raw_value(), zero_page: 0 }
    };
    load_cmdline(view, CMDLINE, &line).map_err(|error| write("command line", &error))?;
    Ok(entry)
}

/// Loads an ELF kernel. Returns its PVH entry and its end.
fn load_elf(image: &Image, low: u64, view: &View) -> Result<(u64, u64), BootError> {
    let end = image.end()?;
    if end > low {
        return Err(BootError::NoRoom { what: format!("the kernel {}", image.name), end, low: Size(low) });
    }
    let loaded = Elf::load(view, None, &mut Cursor::new(image.bytes()), None)
        .map_err(|error| image.not_elf(&error.to_string()))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok((entry.raw_value(), end)),
        _ => Err(BootError::NoEntry(image.name.clone())),
    }
}

/// Loads the initrd at the end of low memory, where it is least likely to be in the kernel's way.
fn load_initrd(bytes: &[u8], kernel_end: u64, low: u64, view: &View) -> Result<Initrd, BootError> {
    let size = bytes.len() as u64;
    let start = low.checked_sub(size).map(|start| start & !0xfff).filter(|&start| start >= kernel_end);
    let Some(start) = start else {
        let end = kernel_end.saturating_add(size);
        return Err(BootError::NoRoom { what: "--initrd behind the kernel".to_owned(), end, low: Size(low) });
    };
    view.write_slice(bytes, GuestAddress(start)).map_err(|error| write("initrd", &error))?;
    Ok(Initrd { start, size })
}

/// The kernel command line: first the description of the VM, then the user's addition. Only tidevm's own
/// guest gets the description; other kernels find the devices by ACPI and do not know the switches.
fn cmdline(config: &Config, tsc_khz: u32, own_guest: bool) -> Result<Cmdline, BootError> {
    let too_long = |_| BootError::Cmdline;
    let switch = |on| word_for(keys::SWITCHES, &on).to_owned();
    let pcp_disable = word_for(keys::PCP_DISABLES, &config.pcp_disable.into());
    let mut line = Cmdline::new(CMDLINE_SIZE).map_err(too_long)?;
    if own_guest {
        for (key, value) in [
            (keys::NR_CPUS, config.cpus.to_string()),
            (keys::TSC_KHZ, tsc_khz.to_string()),
            (keys::MEMMAP_ON_MEMORY, switch(config.memmap_on_memory)),
            (keys::MEMORY_BLOCK, format!("{}M", config.memory_block.0 >> 20)),
            (keys::PCP_DISABLE, pcp_disable.to_owned()),
            (keys::INIT, config.init.to_string()),
            // The host provides zeroed memory, also when it provides it again after taking it back.
            (keys::ZEROED, switch(true)),
            (keys::PCI, "off".to_owned()),
        ] {
            line.insert(key, &value).map_err(too_long)?;
        }
        for index in 0..config.mmio_devices() {
            line.add_virtio_mmio_device(layout::MMIO_SIZE, layout::mmio(index), layout::gsi(index), None)
                .map_err(too_long)?;
        }
    }
    let more = config.cmdline.as_deref().unwrap_or_default();
    let more = if config.agent { agent::command_line(more) } else { more.to_owned() };
    if !more.is_empty() {
        line.insert_str(more).map_err(too_long)?;
    }
    Ok(line)
}

/// The guest's RAM, which is boot memory without the legacy hole, and its device memory. Device memory has
/// the type from which Linux makes a pmem device without further ACPI tables.
fn memory_map(config: &Config) -> Vec<hvm_memmap_table_entry> {
    let ram = layout::ram(config.memory).flat_map(|range| range.without(LEGACY_HOLE));
    let regions = layout::regions(config.memory, config.places()).unwrap_or_default();
    let pmem = regions.into_iter().skip(config.hotplug.len());
    ram.map(|range| (range, MEMMAP_RAM))
        .chain(pmem.map(|range| (range, tidevm_abi::E820_PRAM)))
        .map(|(range, type_)| hvm_memmap_table_entry {
            addr: range.start().0,
            size: range.size(),
            type_,
            reserved: 0,
        })
        .collect()
}

fn write_start_info(
    config: &Config,
    own_guest: bool,
    initrd: Option<Initrd>,
    view: &View,
) -> Result<(), BootError> {
    let initrd =
        initrd.map(|Initrd { start, size }| hvm_modlist_entry { paddr: start, size, ..Default::default() });
    let map = memory_map(config);
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { MODULES.raw_value() } else { 0 },
        cmdline_paddr: CMDLINE.raw_value(),
        memmap_paddr: MEMMAP.raw_value(),
        memmap_entries: map.len() as u32,
        // tidevm's own guest learns everything but nodes from the command line.
        rsdp_paddr: if own_guest && !config.has_nodes() { 0 } else { acpi::TABLES.raw_value() },
        ..Default::default()
    };
    let mut params = BootParams::new(&info, START_INFO);
    params.set_sections(&map, MEMMAP);
    if let Some(initrd) = initrd {
        params.set_modules(&[initrd], MODULES);
    }
    PvhBootConfigurator::write_bootparams(&params, view).map_err(|error| write("start info", &error))
}

fn write(what: &'static str, error: &dyn std::fmt::Display) -> BootError {
    BootError::Write { what, reason: error.to_string() }
}

#[cfg(test)]
mod tests;
