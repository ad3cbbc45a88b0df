//! CPUs as ACPI's MADT lists them, for machines whose VMM describes them by firmware tables: QEMU
//! does, tidevm's own VMM gives their number on the command line.
#![expect(unsafe_code, reason = "maps firmware's tables where they say they are")]

use core::cell::RefCell;
use core::ptr::NonNull;
use core::slice;

use ::acpi::madt::Madt;
use ::acpi::{AcpiError, AcpiHandler, AcpiTables, PhysicalMapping};

use crate::paging::{TableSource, map_firmware};

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

/// Calls `found` with the local APIC id of every CPU that is enabled, as the tables list them.
/// `rsdp` is the physical address of ACPI's root pointer.
///
/// # Errors
/// There are no usable tables there.
pub fn each_cpu(
    rsdp: u64,
    tables: &mut dyn TableSource,
    mut found: impl FnMut(u32),
) -> Result<(), AcpiError> {
    let tables = RefCell::new(tables);
    // SAFETY: the address is the one that the boot ABI names for this, and everything that the tables
    // lead to is mapped as it is looked at.
    let tables = unsafe { AcpiTables::from_rsdp(Windows(&tables), rsdp as usize)? };
    let madt = tables.find_table::<Madt>()?;
    // SAFETY: the library mapped the whole table, for good, and checked its sum.
    let table =
        unsafe { slice::from_raw_parts(madt.virtual_start().cast::<u8>().as_ptr(), madt.region_length()) };
    for_each_id(&table[size_of::<Madt>()..], &mut found);
    Ok(())
}

/// The ids in the MADT's list of entries, each of which begins with its kind and its length. The list
/// ends where an entry does not fit: lengths are firmware's, and the library's own walk trusts them.
fn for_each_id(mut list: &[u8], found: &mut dyn FnMut(u32)) {
    const LOCAL_APIC: u8 = 0;
    const LOCAL_X2APIC: u8 = 9;
    const ENABLED: u32 = 1;
    let word = |bytes: [u8; 4]| u32::from_le_bytes(bytes);
    while let &[_, length, ..] = list {
        let Some((entry, rest)) = list.split_at_checked(usize::from(length).max(2)) else { return };
        match *entry {
            [LOCAL_APIC, _, _, id, a, b, c, d, ..] if word([a, b, c, d]) & ENABLED != 0 => found(id.into()),
            [LOCAL_X2APIC, _, _, _, i, j, k, l, a, b, c, d, ..] if word([a, b, c, d]) & ENABLED != 0 => {
                found(word([i, j, k, l]));
            }
            _ => {}
        }
        list = rest;
    }
}
