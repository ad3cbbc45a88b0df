//! CPUs as ACPI's MADT lists them, for machines whose VMM describes them by firmware tables: QEMU
//! does, tidevm's own VMM gives their number on the command line.
#![expect(unsafe_code, reason = "maps firmware's tables where they say they are")]

use core::cell::RefCell;
use core::ptr::NonNull;

use ::acpi::madt::{Madt, MadtEntry};
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
    const ENABLED: u32 = 1;
    let tables = RefCell::new(tables);
    // SAFETY: the address is the one that the boot ABI names for this, and everything that the tables
    // lead to is mapped as it is looked at.
    let tables = unsafe { AcpiTables::from_rsdp(Windows(&tables), rsdp as usize)? };
    let madt = tables.find_table::<Madt>()?;
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(cpu) if cpu.flags & ENABLED != 0 => found(u32::from(cpu.apic_id)),
            MadtEntry::LocalX2Apic(cpu) if cpu.flags & ENABLED != 0 => found(cpu.x2apic_id),
            _ => {}
        }
    }
    Ok(())
}
