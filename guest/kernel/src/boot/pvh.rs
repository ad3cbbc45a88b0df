//! The VMM's boot structures: the memory map, the command line, and where ACPI's tables are.
//!
//! Mirrors Linux `arch/x86/platform/pvh`. The boot ABI is PVH (Xen `hvm_start_info`), the same for tidevm,
//! QEMU, Firecracker and Cloud Hypervisor.
//!
//! Invariant: [`BootInfo::read`] runs before anything is allocated, so the structures that the VMM left in
//! low memory are still intact. It copies all it returns, but the command line, which counts as taken. ACPI's tables
//! stay where they are too: no RAM that the memory map lists contains them.
#![expect(unsafe_code, reason = "reads the VMM's boot structures at the physical addresses that it names")]

use arrayvec::ArrayVec;

use crate::mem::paging::phys_to_virt;

/// Longest command line that is read, in bytes.
pub const MAX_CMDLINE: usize = 4096;
/// Most ranges of RAM that are kept.
const MAX_RANGES: usize = 32;

const START_INFO_MAGIC: u32 = 0x336e_c578;
const MEMMAP_TYPE_RAM: u32 = 1;

/// `struct hvm_start_info`, version 1.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemmapEntry {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// `struct hvm_modlist_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Module {
    addr: u64,
    size: u64,
    cmdline: u64,
    reserved: u64,
}

/// The VMM's description of the machine.
pub struct BootInfo {
    ram: ArrayVec<(u64, u64), MAX_RANGES>,
    pmem: ArrayVec<(u64, u64), { tidevm_abi::MAX_PMEM }>,
    /// The first module and the command line: a VMM passes an initial RAM disk, or nothing.
    taken: ArrayVec<(u64, u64), 2>,
    rsdp: u64,
    cmdline: &'static [u8],
}

impl BootInfo {
    /// Reads the boot structures at physical address `start_info`.
    ///
    /// # Safety
    /// `start_info` must be the address that the PVH boot ABI passed, the memory that the structures lie in
    /// must be unchanged since, and the first GiB must be mapped at [`phys_to_virt`].
    pub unsafe fn read(start_info: u64) -> Self {
        // SAFETY: by this function's contract the address is that of a start_info structure.
        let info = unsafe { &*phys_to_virt(start_info).cast::<StartInfo>() };
        assert!(info.magic == START_INFO_MAGIC, "start_info magic {:#x}", info.magic);
        assert!(info.version >= 1, "start_info version {} has no memory map", info.version);
        let mut boot = Self {
            ram: ArrayVec::new(),
            pmem: ArrayVec::new(),
            taken: ArrayVec::new(),
            rsdp: info.rsdp_paddr,
            cmdline: &[],
        };
        let entries = phys_to_virt(info.memmap_paddr).cast::<MemmapEntry>();
        for index in 0..info.memmap_entries as usize {
            // SAFETY: the table has `memmap_entries` entries, by the ABI.
            let entry = unsafe { *entries.add(index) };
            if entry.kind == MEMMAP_TYPE_RAM && !boot.ram.is_full() {
                boot.ram.push((entry.addr, entry.addr.saturating_add(entry.size)));
            }
            if matches!(entry.kind, tidevm_abi::E820_PMEM | tidevm_abi::E820_PRAM) && !boot.pmem.is_full() {
                boot.pmem.push((entry.addr, entry.addr.saturating_add(entry.size)));
            }
        }
        if info.nr_modules > 0 {
            // SAFETY: the list has `nr_modules` entries, by the ABI.
            let module = unsafe { *phys_to_virt(info.modlist_paddr).cast::<Module>() };
            boot.taken.push((module.addr, module.addr.saturating_add(module.size)));
        }
        if info.cmdline_paddr != 0 {
            let text = phys_to_virt(info.cmdline_paddr);
            // SAFETY: the command line ends with a zero byte, where this search ends too.
            let has_ended = |&len: &usize| unsafe { *text.add(len) } == 0;
            let len = (0..MAX_CMDLINE).find(has_ended).unwrap_or(MAX_CMDLINE);
            boot.taken.push((info.cmdline_paddr, info.cmdline_paddr + len as u64));
            // SAFETY: these bytes were just read. Nothing writes to them: they count as taken.
            boot.cmdline = unsafe { core::slice::from_raw_parts(text, len) };
        }
        boot
    }

    /// Ranges of RAM as (first byte, byte after the last).
    pub fn ram(&self) -> &[(u64, u64)] {
        &self.ram
    }

    /// Ranges of device memory, likewise.
    pub fn pmem(&self) -> &[(u64, u64)] {
        &self.pmem
    }

    /// Memory that is in use, likewise: the command line, and what the VMM loaded a module into. The kernel does not read
    /// the module, but that memory is not zero as untouched memory may be.
    pub fn taken(&self) -> &[(u64, u64)] {
        &self.taken
    }

    /// Physical address of ACPI's root pointer, if there is ACPI.
    pub fn rsdp(&self) -> Option<u64> {
        (self.rsdp != 0).then_some(self.rsdp)
    }

    /// The command line; empty when it is not UTF-8.
    pub fn cmdline(&self) -> &str {
        core::str::from_utf8(self.cmdline).unwrap_or("")
    }
}
