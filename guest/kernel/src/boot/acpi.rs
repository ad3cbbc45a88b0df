//! ACPI's tables (ACPI 6.5, section 5.2): CPUs from the MADT, nodes from SRAT and SLIT.
//!
//! Mirrors Linux `acpi_boot_init` and `acpi_numa_init`. QEMU describes all its machines by these tables.
//! tidevm's VMM gives the number of CPUs on the command line, and tables only when there are nodes.
#![expect(unsafe_code, reason = "maps firmware's tables where they say they are")]

use core::cell::RefCell;
use core::ptr::NonNull;
use core::slice;

use ::acpi::madt::Madt;
use ::acpi::sdt::{SdtHeader, Signature};
use ::acpi::{AcpiError, AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};

use crate::mem::paging::{TableSource, map_firmware};

/// One entry of the tables.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'t> {
    /// A CPU exists, with this local APIC id.
    Cpu(u32),
    /// The CPU with this local APIC id is in a proximity domain.
    CpuAffinity {
        /// The id.
        apic_id: u32,
        /// The domain.
        domain: u32,
    },
    /// Memory, present or hot-pluggable, is in a proximity domain.
    MemoryAffinity {
        /// Address of its first byte.
        start: u64,
        /// Size in bytes.
        size: u64,
        /// The domain.
        domain: u32,
    },
    /// Distances between all proximity domains, as a matrix; comes after all affinities.
    Distances {
        /// Rows, and columns.
        domains: usize,
        /// Row by row.
        matrix: &'t [u8],
    },
}

/// Maps tables for good.
#[derive(Clone)]
struct Windows<'t, 's>(&'t RefCell<&'s mut dyn TableSource>);

impl AcpiHandler for Windows<'_, '_> {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let start = map_firmware(address as u64, size as u64, &mut **self.0.borrow_mut())
            .expect("no memory for the page tables of firmware's tables");
        let start = NonNull::new(start.cast()).expect("windows are in the upper half");
        // SAFETY: the region was just mapped, whole and for good.
        unsafe { PhysicalMapping::new(address, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// The affinities of CPUs and memory: a header, 12 reserved bytes, and a list.
#[repr(C, packed)]
struct Srat {
    header: SdtHeader,
    reserved: [u8; 12],
}

// SAFETY: every table begins with such a header, and the library checks signature, length and checksum.
unsafe impl AcpiTable for Srat {
    const SIGNATURE: Signature = Signature::SRAT;

    fn header(&self) -> &SdtHeader {
        &self.header
    }
}

/// The distances: a header, the number of domains in 8 bytes, and the matrix.
#[repr(C, packed)]
struct Slit {
    header: SdtHeader,
    domains: [u8; 8],
}

// SAFETY: as for SRAT.
unsafe impl AcpiTable for Slit {
    const SIGNATURE: Signature = Signature::SLIT;

    fn header(&self) -> &SdtHeader {
        &self.header
    }
}

/// Calls `found` with every entry; CPUs that are not enabled are left out. `rsdp` is the physical address of
/// ACPI's root pointer.
///
/// # Errors
/// There are no usable tables.
pub fn each_entry(
    rsdp: u64,
    tables: &mut dyn TableSource,
    mut found: impl FnMut(Entry<'_>),
) -> Result<(), AcpiError> {
    let tables = RefCell::new(tables);
    // SAFETY: the boot ABI names the address as that of the root pointer, and `Windows` maps all tables that
    // the library reads.
    let tables = unsafe { AcpiTables::from_rsdp(Windows(&tables), rsdp as usize)? };
    each_in_list(after_header(&tables.find_table::<Madt>()?), &mut |entry| cpu(entry, &mut found));
    if let Ok(srat) = tables.find_table::<Srat>() {
        each_in_list(after_header(&srat), &mut |entry| affinity(entry, &mut found));
        if let Ok(slit) = tables.find_table::<Slit>() {
            let domains = u64::from_le_bytes(slit.domains) as usize;
            found(Entry::Distances { domains, matrix: after_header(&slit) });
        }
    }
    Ok(())
}

/// The bytes of a table after its fixed part.
fn after_header<'m, T: AcpiTable>(table: &'m PhysicalMapping<Windows<'_, '_>, T>) -> &'m [u8] {
    let start = table.virtual_start().cast::<u8>();
    // SAFETY: the library mapped the whole table, for good, and checked its checksum.
    let bytes = unsafe { slice::from_raw_parts(start.as_ptr(), table.region_length()) };
    bytes.get(size_of::<T>()..).unwrap_or_default()
}

/// Calls `found` with every entry of a list. An entry begins with its kind and its length. The list ends at
/// an entry that does not fit: the lengths come from firmware, and the library's own walk trusts them.
fn each_in_list(mut list: &[u8], found: &mut dyn FnMut(&[u8])) {
    while let &[_, length, ..] = list {
        let Some((entry, rest)) = list.split_at_checked(usize::from(length).max(2)) else { return };
        found(entry);
        list = rest;
    }
}

fn word(bytes: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*bytes)
}

const ENABLED: u32 = 1;

/// An entry of the MADT.
fn cpu(entry: &[u8], found: &mut dyn FnMut(Entry<'_>)) {
    const LOCAL_APIC: u8 = 0;
    const LOCAL_X2APIC: u8 = 9;
    match *entry {
        [LOCAL_APIC, _, _, id, a, b, c, d, ..] if word(&[a, b, c, d]) & ENABLED != 0 => {
            found(Entry::Cpu(id.into()));
        }
        [LOCAL_X2APIC, _, _, _, i, j, k, l, a, b, c, d, ..] if word(&[a, b, c, d]) & ENABLED != 0 => {
            found(Entry::Cpu(word(&[i, j, k, l])));
        }
        _ => {}
    }
}

/// An entry of the SRAT. Hot-pluggable memory is passed on like all other: it is not in the memory map yet.
fn affinity(entry: &[u8], found: &mut dyn FnMut(Entry<'_>)) {
    const LOCAL_APIC: u8 = 0;
    const MEMORY: u8 = 1;
    const LOCAL_X2APIC: u8 = 2;
    let at =
        |offset: usize| entry.get(offset..offset + 4).and_then(|word| word.try_into().ok()).map_or(0, word);
    let long = |offset: usize| u64::from(at(offset)) | u64::from(at(offset + 4)) << 32;
    match entry {
        // The domain's lowest byte and its upper three bytes are apart.
        [LOCAL_APIC, _, low, id, ..] if at(4) & ENABLED != 0 => {
            let domain = at(8) & !0xff | u32::from(*low);
            found(Entry::CpuAffinity { apic_id: (*id).into(), domain });
        }
        [LOCAL_X2APIC, ..] if at(12) & ENABLED != 0 => {
            found(Entry::CpuAffinity { apic_id: at(8), domain: at(4) });
        }
        [MEMORY, ..] if at(28) & ENABLED != 0 => {
            found(Entry::MemoryAffinity { start: long(8), size: long(16), domain: at(2) });
        }
        _ => {}
    }
}
