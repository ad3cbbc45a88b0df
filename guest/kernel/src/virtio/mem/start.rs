//! The start of a driver: what a device's configuration space says, and how its region is divided.
//!
//! Mirrors `virtio_mem_init` of Linux's `virtio_mem.c`. What cannot be used is said once, with its bytes.

use core::fmt;

use tidevm_abi::{MAX_MEMORY_BLOCK_SIZE, MAX_PHYS_ADDR, Size};
use tidevm_mm::SECTION_SIZE;
use virtio_drivers::transport::Transport;
use virtio_mem::wire;
use virtio_mem::{ConfigError, Driver, DriverConfig};

use super::link::{Link, NoLink};
use super::range::PAGEBLOCK_SIZE;
use crate::boot::cmdline::CommandLine;
use crate::console::println;

/// A memmap is this part of the memory that it describes: 64 bytes per page.
const MEMMAP_SHARE: u64 = 64;

/// Why a device cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// There is no way to it.
    Link(NoLink),
    /// The configuration changes with every read.
    Restless,
    /// The driver cannot use the configuration; with address and size of the region.
    Config(ConfigError, u64, u64),
    /// The region ends above the addresses that the guest uses; with address and size of the region.
    OutOfReach(u64, u64),
    /// The device blocks are larger than a memory block can be; with address of the region and size of a device block.
    TooLarge(u64, u64),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(reason) => reason.fmt(f),
            Self::Restless => f.write_str("the configuration changes all the time"),
            Self::Config(error, addr, size) => write!(f, "region of {size:#x} bytes at {addr:#x}: {error}"),
            Self::OutOfReach(addr, size) => {
                write!(
                    f,
                    "region of {size:#x} bytes at {addr:#x}: this guest uses addresses below {MAX_PHYS_ADDR:#x}"
                )
            }
            Self::TooLarge(addr, block) => {
                let most = Size(MAX_MEMORY_BLOCK_SIZE);
                write!(f, "region at {addr:#x}: blocks of {} are larger than {most}", Size(*block))
            }
        }
    }
}

/// Reads the configuration space into `config` and starts the step machine with it. Returns it with the parts that the
/// region is divided into: those that are `wanted`, as far as that fits the region.
///
/// # Errors
/// [`Unusable`].
pub fn start<T: Transport>(
    link: &Link<T>,
    config: &mut [u8; wire::CONFIG_SIZE],
    wanted: DriverConfig,
) -> Result<(Driver, DriverConfig), Unusable> {
    let words = (0..wire::CONFIG_SIZE).step_by(4);
    let (config, generation) = link.read_config(config, words).ok_or(Unusable::Restless)?;
    let (addr, size) = (config.addr, config.region_size);
    if addr.checked_add(size).is_none_or(|end| end > MAX_PHYS_ADDR) {
        return Err(Unusable::OutOfReach(addr, size));
    }
    let fit = wanted.fit(&config, SECTION_SIZE);
    if fit.memory_block_size > MAX_MEMORY_BLOCK_SIZE {
        return Err(Unusable::TooLarge(addr, config.block_size));
    }
    if fit != wanted {
        println!(
            "virtio-mem: region of {size:#x} bytes at {addr:#x}: memory blocks of {} MiB do not fit; they have {} MiB, \
             their memmaps lie in {} memory",
            wanted.memory_block_size >> 20,
            fit.memory_block_size >> 20,
            if fit.memmap_size > 0 { "the new" } else { "older" }
        );
    }
    let driver = Driver::new(fit, config, generation).map_err(|error| Unusable::Config(error, addr, size))?;
    if driver.unusable_size() > 0 {
        println!(
            "virtio-mem: region of {size:#x} bytes at {addr:#x}: {:#x} bytes are in no whole memory block and not used",
            driver.unusable_size()
        );
    }
    Ok((driver, fit))
}

/// The parts that a region is divided into, as the command line says.
pub fn wanted(command_line: &CommandLine) -> DriverConfig {
    let memmap_size =
        if command_line.mm.memmap_on_memory { command_line.memory_block.0 / MEMMAP_SHARE } else { 0 };
    DriverConfig::new(command_line.memory_block.0, PAGEBLOCK_SIZE).with_memmap_size(memmap_size)
}
