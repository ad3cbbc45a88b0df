//! Constants that the VMM and the guest kernel are both compiled with: I/O ports and what is written to them,
//! memory map types, and upper limits (addresses, CPUs, nodes, devices, sizes).

/// I/O port to which the guest writes an [`ExitCode`] byte to end the machine. It is the port of
/// QEMU's `isa-debug-exit` device, so the same guest also ends under QEMU.
pub const EXIT_PORT: u16 = 0xf4;

/// The byte that the guest writes to [`EXIT_PORT`]. `docs/scripts.md` has the exit status of `tidevm` for each. The last two
/// are for the first process of another kernel: small kernels that test themselves under QEMU use the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The guest ended as it was asked to.
    PowerOff = 0,
    /// The guest panicked; the reason is on the serial port.
    Panic = 1,
    /// The guest panicked because the kernel found no memory for something that boot cannot do without; the
    /// reason is on the serial port.
    OutOfMemory = 2,
    /// The guest ended, and what it was to do is done.
    Success = 0x10,
    /// The guest ended, and what it was to do has failed.
    Failure = 0x11,
}

/// First I/O port of the serial console (COM1, a 16550).
pub const SERIAL_PORT: u16 = 0x3f8;

/// Bytes of a page, the unit of every number of pages in records and scripts.
pub const PAGE_SIZE: u64 = 4096;

/// Both sides refuse guest-physical addresses at and above this one: the guest's section table ends
/// here (2 TiB).
pub const MAX_PHYS_ADDR: u64 = 2 << 40;

/// Most CPUs that the guest brings up.
pub const MAX_CPUS: usize = 64;

/// Most NUMA nodes that the guest tells apart.
pub const MAX_NODES: usize = 4;

/// Most virtio-mem devices that the guest looks for on its command line.
pub const MAX_MEM_DEVICES: usize = 16;

/// Most ranges of device memory that the guest looks for in its memory map.
pub const MAX_PMEM: usize = 8;

/// Type of device memory in the memory map (PVH's and e820): persistent memory, as ACPI has it.
pub const E820_PMEM: u32 = 7;

/// The type that persistent memory had before ACPI defined one. Linux uses it without further tables.
pub const E820_PRAM: u32 = 12;

/// Most cycles of a race. Each takes up to 50 ms on the slowest known host.
pub const MAX_RACE_CYCLES: u32 = 10_000;

/// Least size of a memory block, the unit in which the guest adds and removes memory, and the default.
pub const MEMORY_BLOCK_SIZE: u64 = 128 << 20;

/// Largest size of a memory block.
pub const MAX_MEMORY_BLOCK_SIZE: u64 = 2 << 30;

/// Name of the ELF note by which the VMM recognises a guest that speaks this crate's records. The note
/// holds one 32-bit number, 1.
pub const NOTE_NAME: &str = "tidevm";
