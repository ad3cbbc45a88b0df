//! CPUs as ACPI's MADT lists them, and nodes as its SRAT and SLIT do (ACPI 6.5, section 5.2), for machines
//! whose VMM describes them by firmware tables: QEMU does; tidevm's own VMM gives the number of CPUs on
//! the command line, and tables when there are nodes.
#![expect(unsafe_code, reason = "maps firmware's tables where they say they are")]

use core::cell::RefCell;
use core::ptr::NonNull;
use core::slice;

use ::acpi::madt::Madt;
use ::acpi::sdt::{SdtHeader, Signature};
use ::acpi::{AcpiError, AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};

use crate::mem::paging::{TableSource, map_firmware};

/// What the tables say.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'t> {
    /// There is a CPU, with this local APIC id.
    Cpu(u32),
    /// The CPU with this local APIC id is in a proximity domain.
    CpuAffinity {
        /// The id.
        apic_id: u32,
        /// The domain.
        domain: u32,
    },
    /// Memory, there already or to come, is in a proximity domain.
    MemoryAffinity {
        /// First byte.
        start: u64,
        /// How many.
        size: u64,
        /// The domain.
        domain: u32,
    },
    /// Distances between all proximity domains, as a matrix; told after all affinities.
    Distances {
        /// Rows, and columns.
        domains: usize,
        /// Row by row.
        matrix: &'t [u8],
    },
}

/// Maps tables; they stay mapped.
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

/// The table that says where CPUs and memory are: a header, 12 reserved bytes, and a list.
#[repr(C, packed)]
struct Srat {
    header: SdtHeader,
    reserved: [u8; 12],
}

// SAFETY: every table begins with such a header, and the library checks signature, length and sum.
unsafe impl AcpiTable for Srat {
    const SIGNATURE: Signature = Signature::SRAT;

    fn header(&self) -> &SdtHeader {
        &self.header
    }
}

/// The table of distances: a header, the number of domains in 8 bytes, and the matrix.
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

/// Calls `found` with what the tables say, CPUs that are not enabled left out. `rsdp` is the physical
/// address of ACPI's root pointer.
///
/// # Errors
/// There are no usable tables there.
pub fn each_entry(
    rsdp: u64,
    tables: &mut dyn TableSource,
    mut found: impl FnMut(Entry<'_>),
) -> Result<(), AcpiError> {
    let tables = RefCell::new(tables);
    // SAFETY: the address is the one that the boot ABI names for this, and everything that the tables
    // lead to is mapped as it is looked at.
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

/// What comes after the part of a table that always is the same.
fn after_header<'m, T: AcpiTable>(table: &'m PhysicalMapping<Windows<'_, '_>, T>) -> &'m [u8] {
    let start = table.virtual_start().cast::<u8>();
    // SAFETY: the library mapped the whole table, for good, and checked its sum.
    let bytes = unsafe { slice::from_raw_parts(start.as_ptr(), table.region_length()) };
    bytes.get(size_of::<T>()..).unwrap_or_default()
}

/// The entries of a list, each of which begins with its kind and its length. The list ends where an entry
/// does not fit: lengths are firmware's, and the library's own walk trusts them.
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

/// An entry of the SRAT. What is hot-pluggable is told as everything else: it is no RAM yet.
fn affinity(entry: &[u8], found: &mut dyn FnMut(Entry<'_>)) {
    const LOCAL_APIC: u8 = 0;
    const MEMORY: u8 = 1;
    const LOCAL_X2APIC: u8 = 2;
    let at =
        |offset: usize| entry.get(offset..offset + 4).and_then(|word| word.try_into().ok()).map_or(0, word);
    let long = |offset: usize| u64::from(at(offset)) | u64::from(at(offset + 4)) << 32;
    match entry {
        // The domain's upper bytes lie behind a byte of something else.
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
