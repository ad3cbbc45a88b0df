//! ACPI's tables (ACPI 6.5, section 5.2): CPUs from the MADT, nodes from SRAT and SLIT, PCI's buses from the MCFG and from
//! the names of host bridges, and the registers that end the machine from the FADT.
//!
//! Mirrors Linux `acpi_boot_init`, `acpi_numa_init` and `acpi_find_root_pointer`. `tidevm_firmware` has the parsers. QEMU,
//! Firecracker and Cloud Hypervisor describe all their machines by these tables. tidevm's VMM gives the number of CPUs on
//! the command line, and tables only when there are nodes.
#![expect(unsafe_code, reason = "maps firmware's tables where they say they are")]

use core::cell::RefCell;
use core::ops::{Range, RangeInclusive};
use core::ptr::NonNull;
use core::slice;

use ::acpi::madt::Madt;
use ::acpi::mcfg::Mcfg;
use ::acpi::sdt::{SdtHeader, Signature};
use ::acpi::{AcpiError, AcpiHandler, AcpiTable, AcpiTables, AmlTable, PhysicalMapping};
use tidevm_firmware::{self as firmware, Affinity, BIOS_AREA, BusSet, EBDA_SEGMENT, Fadt};

use crate::mem::paging::{TableSource, map_firmware, phys_to_virt};

/// One thing that the tables say.
#[derive(Clone, Debug)]
pub enum Entry<'t> {
    /// A CPU exists, with this local APIC id.
    Cpu(u32),
    /// A CPU or memory is in a proximity domain.
    Affinity(Affinity),
    /// Distances between all proximity domains, as a matrix; comes after all affinities.
    Distances {
        /// Rows, and columns.
        domains: usize,
        /// Row by row.
        matrix: &'t [u8],
    },
    /// There may be these buses on PCI, beside those of other such entries.
    Buses(RangeInclusive<u8>),
    /// These are all root buses on PCI.
    RootBuses(BusSet),
    /// The registers that end the machine, and the sleep type of the power-off.
    Power(Fadt, Option<u8>),
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

impl Windows<'_, '_> {
    /// The bytes of a definition block.
    fn bytes(&self, block: &AmlTable) -> &'static [u8] {
        // SAFETY: the library has found a header that gives the block this place and length.
        let mapping = unsafe { self.map_physical_region::<u8>(block.address, block.length as usize) };
        // SAFETY: the bytes were just mapped, whole and for good, and nothing writes to them.
        unsafe { slice::from_raw_parts(mapping.virtual_start().as_ptr(), mapping.region_length()) }
    }
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

/// The FADT: a header, and what `tidevm_firmware` reads.
#[repr(C, packed)]
struct FixedTable {
    header: SdtHeader,
}

// SAFETY: as for SRAT.
unsafe impl AcpiTable for FixedTable {
    const SIGNATURE: Signature = Signature::FADT;

    fn header(&self) -> &SdtHeader {
        &self.header
    }
}

/// Looks for the root pointer where firmware has it. For boot structures that do not name its address, as Firecracker's.
pub fn find_root() -> Option<u64> {
    let bytes = |range: Range<u64>| {
        // SAFETY: the start-up page tables map the first GiB, whatever is there. Below 1 MiB there is nothing of Rust's: boot
        // keeps it out of the allocator, and nothing is written there before CPUs are started.
        unsafe { slice::from_raw_parts(phys_to_virt(range.start), (range.end - range.start) as usize) }
    };
    let segment = bytes(EBDA_SEGMENT..EBDA_SEGMENT + 2).try_into().map_or(0, u16::from_le_bytes);
    let mut areas = firmware::ebda(segment).into_iter().chain([BIOS_AREA]);
    areas.find_map(|area| Some(area.start + firmware::find_root(bytes(area))? as u64))
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
    let windows = Windows(&tables);
    // SAFETY: the boot ABI names the address as that of the root pointer, or a root pointer was found there. `Windows` maps
    // all tables that the library reads.
    let tables = unsafe { AcpiTables::from_rsdp(windows.clone(), rsdp as usize)? };
    firmware::cpus(after_header(&tables.find_table::<Madt>()?)).for_each(|id| found(Entry::Cpu(id)));
    if let Ok(srat) = tables.find_table::<Srat>() {
        firmware::affinities(after_header(&srat)).for_each(|affinity| found(Entry::Affinity(affinity)));
        if let Ok(slit) = tables.find_table::<Slit>() {
            let domains = u64::from_le_bytes(slit.domains) as usize;
            found(Entry::Distances { domains, matrix: after_header(&slit) });
        }
    }
    if let Ok(mcfg) = tables.find_table::<Mcfg>() {
        firmware::bus_ranges(after_header(&mcfg)).for_each(|range| found(Entry::Buses(range)));
    }
    let definitions = || tables.dsdt().into_iter().chain(tables.ssdts()).map(|block| windows.bytes(&block));
    if let Ok(fadt) = tables.find_table::<FixedTable>() {
        let sleep_type = definitions().find_map(firmware::sleep_type);
        found(Entry::Power(Fadt::parse(after_header(&fadt)), sleep_type));
    }
    let mut roots = Some(BusSet::NONE);
    for more in definitions().map(firmware::root_buses) {
        roots = roots.zip(more).map(|(roots, more)| roots.with(more));
    }
    if let Some(roots) = roots.filter(|&roots| roots != BusSet::NONE) {
        found(Entry::RootBuses(roots));
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
