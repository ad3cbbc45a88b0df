//! Tables that are lists of entries: CPUs in the MADT (ACPI 6.5, section 5.2.12), affinities in the SRAT (5.2.16), and the
//! buses that the MCFG describes (PCI firmware specification 3.3, section 4.1.2).
//!
//! Mirrors Linux `acpi_parse_lapic`, `acpi_parse_x2apic`, `acpi_numa_processor_affinity_init` and `pci_parse_mcfg`. All
//! functions take the bytes of a table after its fixed part.

use core::ops::RangeInclusive;

/// An entry of the SRAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// The CPU with this local APIC id is in a proximity domain.
    Cpu {
        /// The id.
        apic_id: u32,
        /// The domain.
        domain: u32,
    },
    /// Memory, present or hot-pluggable, is in a proximity domain.
    Memory {
        /// Address of its first byte.
        start: u64,
        /// Size in bytes.
        size: u64,
        /// The domain.
        domain: u32,
    },
}

const ENABLED: u32 = 1;

/// The entries of a list. An entry begins with its kind and its length. The list ends at an entry that does not fit: the
/// lengths come from firmware.
fn entries(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    core::iter::from_fn(move || {
        let &[_, length, ..] = list else { return None };
        let (entry, rest) = list.split_at_checked(usize::from(length).max(2))?;
        list = rest;
        Some(entry)
    })
}

/// The four bytes at `offset` of an entry; 0 where it ends before.
fn word(entry: &[u8], offset: usize) -> u32 {
    entry.get(offset..offset + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn long(entry: &[u8], offset: usize) -> u64 {
    u64::from(word(entry, offset)) | u64::from(word(entry, offset + 4)) << 32
}

/// The local APIC ids of the CPUs that the list of a MADT has; those that are not enabled are left out.
pub fn cpus(list: &[u8]) -> impl Iterator<Item = u32> {
    const LOCAL_APIC: u8 = 0;
    const LOCAL_X2APIC: u8 = 9;
    entries(list).filter_map(|entry| match *entry {
        [LOCAL_APIC, _, _, id, ..] if word(entry, 4) & ENABLED != 0 => Some(id.into()),
        [LOCAL_X2APIC, ..] if word(entry, 8) & ENABLED != 0 => Some(word(entry, 4)),
        _ => None,
    })
}

/// The affinities that the list of an SRAT has. Hot-pluggable memory is among them like all other: it is not in the memory
/// map yet.
pub fn affinities(list: &[u8]) -> impl Iterator<Item = Affinity> {
    const LOCAL_APIC: u8 = 0;
    const MEMORY: u8 = 1;
    const LOCAL_X2APIC: u8 = 2;
    entries(list).filter_map(|entry| match *entry {
        // The domain's lowest byte and its upper three bytes are apart.
        [LOCAL_APIC, _, low, id, ..] if word(entry, 4) & ENABLED != 0 => {
            let domain = word(entry, 8) & !0xff | u32::from(low);
            Some(Affinity::Cpu { apic_id: id.into(), domain })
        }
        [LOCAL_X2APIC, ..] if word(entry, 12) & ENABLED != 0 => {
            Some(Affinity::Cpu { apic_id: word(entry, 8), domain: word(entry, 4) })
        }
        [MEMORY, ..] if word(entry, 28) & ENABLED != 0 => {
            Some(Affinity::Memory { start: long(entry, 8), size: long(entry, 16), domain: word(entry, 2) })
        }
        _ => None,
    })
}

/// The buses of PCI's segment group 0 that an MCFG describes. The entries of other segment groups are left out: the
/// configuration ports do not reach them.
pub fn bus_ranges(list: &[u8]) -> impl Iterator<Item = RangeInclusive<u8>> {
    const ENTRY: usize = 16;
    list.chunks_exact(ENTRY).filter_map(|entry| match *entry {
        [_, _, _, _, _, _, _, _, 0, 0, first, last, ..] if first <= last => Some(first..=last),
        _ => None,
    })
}
