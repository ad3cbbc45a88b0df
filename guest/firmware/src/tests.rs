//! The parsers on tables that rust-vmm's `acpi_tables` writes, on bytes as QEMU writes them, on a made-up PCI, and on any
//! bytes at all.

use std::cell::RefCell;
use std::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, Method, Name, Package, Path, Return, Scope, ZERO};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use proptest::prelude::*;

use crate::{
    Affinity, BIOS_AREA, BusSet, Buses, Fadt, MsixTable, Place, Register, affinities, bus_ranges, cpus, ebda,
    find_root, message, root_buses, sleep_type,
};

const OEM: [u8; 6] = *b"TIDEVM";
const OEM_TABLE: [u8; 8] = *b"TIDEVM  ";
const HEADER: usize = 36;

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A BIOS area with `root` at `offset`.
fn area(root: &[u8], offset: usize) -> Vec<u8> {
    let mut area = std::vec![0xff; (BIOS_AREA.end - BIOS_AREA.start) as usize];
    area[offset..offset + root.len()].copy_from_slice(root);
    area
}

#[test]
fn a_root_pointer_is_found_where_it_may_be() {
    let root = bytes(&Rsdp::new(OEM, 0x9_fc00));
    assert_eq!(root.len(), 36);
    for offset in [0, 16, 0x8000, 0x1_ffd0] {
        assert_eq!(find_root(&area(&root, offset)), Some(offset));
    }
    assert_eq!(find_root(&area(&root, 8)), None, "it begins at a multiple of 16");
    // The structure of ACPI 1.0 has no length, and may end where the area ends.
    let mut first = [0; 20];
    first[..8].copy_from_slice(b"RSD PTR ");
    first[8] = 0_u8.wrapping_sub(first.iter().copied().fold(0, u8::wrapping_add));
    assert_eq!(find_root(&area(&first, 0x1_ffe0)), Some(0x1_ffe0));
    assert_eq!(find_root(&first), Some(0));
}

#[test]
fn what_only_looks_like_a_root_pointer_is_passed_over() {
    let root = bytes(&Rsdp::new(OEM, 0xe_1000));
    for broken in [8, 9, 24, 32] {
        let mut other = root.clone();
        other[broken] ^= 1;
        let mut area = area(&root, 0x200);
        area[..36].copy_from_slice(&other);
        assert_eq!(find_root(&area), Some(0x200), "byte {broken}");
    }
    // The extended part ends beyond the area.
    assert_eq!(find_root(&root[..35]), None);
    assert_eq!(find_root(&[]), None);
}

#[test]
fn the_ebda_is_searched_where_there_is_one() {
    assert_eq!(ebda(0x9fc0), Some(0x9_fc00..0xa_0000));
    assert_eq!(ebda(0x8000), Some(0x8_0000..0x8_0400));
    assert_eq!(ebda(0x9ff0), Some(0x9_ff00..0xa_0000));
    for segment in [0, 0x40, 0xa000, 0xffff] {
        assert_eq!(ebda(segment), None, "{segment:#x}");
    }
}

#[test]
fn cpus_that_are_enabled_are_listed() {
    let mut table = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(0xfee0_0000));
    for (id, enabled) in
        [(0, EnabledStatus::Enabled), (3, EnabledStatus::DisabledOnlineCapable), (4, EnabledStatus::Enabled)]
    {
        table.add_structure(ProcessorLocalApic::new(id, id, enabled));
    }
    table.add_structure(IoApic::new(0, 0xfec0_0000, 0));
    let mut table = bytes(&table);
    table.extend([9, 16, 0, 0, 0x34, 0x12, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
    // The list ends with an entry that is longer than the table.
    table.extend([0, 8, 5, 5, 1, 0, 0]);
    assert_eq!(cpus(&table[HEADER + 8..]).collect::<Vec<_>>(), [0, 4, 0x1234]);
}

#[test]
fn affinities_of_cpus_and_memory_are_listed() {
    let mut list = std::vec![0, 16, 2, 7, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    list.extend([2, 24, 0, 0, 3, 0, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut memory = [0; 40];
    memory[..8].copy_from_slice(&[1, 40, 4, 0, 0, 0, 0, 0]);
    memory[8..16].copy_from_slice(&0x1_0000_0000_u64.to_le_bytes());
    memory[16..24].copy_from_slice(&0x2_0000_0000_u64.to_le_bytes());
    memory[28] = 1;
    list.extend(memory);
    memory[28] = 0;
    list.extend(memory);
    let found: Vec<_> = affinities(&list).collect();
    assert_eq!(
        found,
        [
            Affinity::Cpu { apic_id: 7, domain: 0x102 },
            Affinity::Cpu { apic_id: 0x12c, domain: 3 },
            Affinity::Memory { start: 1 << 32, size: 2 << 32, domain: 4 },
        ]
    );
}

#[test]
fn buses_of_the_first_segment_group_are_listed() {
    let mut table = MCFG::new(OEM, OEM_TABLE, 1);
    table.add_ecam(0xe000_0000, 0, 0, 0);
    table.add_ecam(0xd000_0000, 1, 0, 255);
    table.add_ecam(0xc000_0000, 0, 128, 130);
    table.add_ecam(0xb000_0000, 0, 9, 8);
    let ranges: Vec<_> = bus_ranges(&bytes(&table)[HEADER + 8..]).collect();
    assert_eq!(ranges, [0..=0, 128..=130]);
}

fn fadt(flags: &[Flags]) -> Vec<u8> {
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, 1);
    for &flag in flags {
        table = table.flag(flag);
    }
    table.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, 0x64);
    table.reset_value = 0xfe;
    table.sleep_control_reg = GAS::new(AddressSpace::SystemMemory, 8, 0, AccessSize::ByteAccess, 0xfea0_0200);
    bytes(&table.finalize())[HEADER..].to_vec()
}

#[test]
fn registers_that_end_the_machine_are_found() {
    let table = fadt(&[Flags::HwReducedAcpi, Flags::ResetRegSup]);
    let whole = Fadt {
        reset: Some((Register::Port(0x64), 0xfe)),
        sleep_control: Some(Register::Memory(0xfea0_0200)),
    };
    assert_eq!(Fadt::parse(&table), whole);
    assert_eq!(Fadt::parse(&fadt(&[Flags::HwReducedAcpi])), Fadt { reset: None, ..whole });
    assert_eq!(Fadt::parse(&fadt(&[Flags::ResetRegSup])), Fadt { sleep_control: None, ..whole });
    // A table of ACPI 1.0 ends before the reset register.
    assert_eq!(Fadt::parse(&table[..116 - HEADER]), Fadt::default());
    assert_eq!(Fadt::parse(&[]), Fadt::default());
}

#[test]
fn registers_that_cannot_be_reached_are_left_out() {
    let table = fadt(&[Flags::HwReducedAcpi, Flags::ResetRegSup]);
    // Of the address structure: its space, its width, the offset in it, and a port beyond the last one.
    for (offset, value) in [(0, 2), (1, 32), (2, 1), (6, 1)] {
        let mut other = table.clone();
        other[116 - HEADER + offset] = value;
        assert_eq!(Fadt::parse(&other).reset, None, "byte {offset}");
    }
}

#[test]
fn the_sleep_type_is_that_of_the_soft_off_state() {
    let other = Name::new("_S4_".into(), &Package::new(std::vec![&4_u8]));
    let off = Name::new("_S5_".into(), &Package::new(std::vec![&5_u8]));
    assert_eq!(sleep_type(&[bytes(&other), bytes(&off)].concat()), Some(5));
    assert_eq!(sleep_type(&bytes(&Name::new("_S5_".into(), &Package::new(std::vec![&ZERO])))), Some(0));
    // As QEMU writes it: in the scope of the root, four elements; and with a length of two bytes.
    assert_eq!(sleep_type(b"\x10\x10\\\x00\x08_S5_\x12\x06\x04\x0a\x05\x00\x00\x00"), Some(5));
    assert_eq!(sleep_type(b"\x08\\_S5_\x12\x4a\x01\x04\x0a\x07"), Some(7));
    for none in [
        &bytes(&other)[..],
        &bytes(&Name::new("_S5_".into(), &5_u8)),
        b"\x14\x0b_S5_\x00\xa4\x12\x04\x01\x0a\x05",
        b"\x08_S5_\x12\x06\x04\x0a\x08",
        b"\x08_S5_\x12\xc6",
        b"_S5_",
    ] {
        assert_eq!(sleep_type(none), None, "{none:x?}");
    }
}

/// A host bridge; `bus` is its bus number, if it says one.
fn bridge(path: &str, bus: Option<&dyn Aml>) -> Vec<u8> {
    let id = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let mut parts: Vec<&dyn Aml> = std::vec![&id];
    let number = bus.map(|bus| Name::new("_BBN".into(), bus));
    parts.extend(number.as_ref().map(|number| number as &dyn Aml));
    bytes(&Scope::new("_SB_".into(), std::vec![&Device::new(Path::new(path), parts)]))
}

fn set(buses: &[u8]) -> BusSet {
    let mut set = BusSet::NONE;
    buses.iter().for_each(|&bus| set.insert(bus));
    set
}

#[test]
fn host_bridges_name_their_buses() {
    let first = bridge("PCI0", None);
    assert_eq!(root_buses(&first), Some(set(&[0])));
    let more = [first.clone(), bridge("PC80", Some(&0x80_u8)), bridge("PC01", Some(&1_u16))].concat();
    assert_eq!(root_buses(&more), Some(set(&[0, 1, 0x80])));
    // What is computed is not known.
    let method = bytes(&Method::new("_BBN".into(), 0, false, std::vec![&Return::new(&5_u8)]));
    assert_eq!(root_buses(&[first, method].concat()), None);
    assert_eq!(root_buses(&bridge("PCI1", Some(&0x100_u16))), None);
}

/// A configuration space: the functions that there are, each with its header type and, for a bridge, its secondary bus.
struct Pci(Vec<(Place, u8, u8)>);

impl Pci {
    /// The functions that are found, and the number of reads.
    fn scan(&self, buses: Buses) -> (Vec<Place>, usize) {
        let reads = RefCell::new(0);
        let read = |place: Place, register: u8| {
            *reads.borrow_mut() += 1;
            let Some((_, header, secondary)) = self.0.iter().find(|(at, ..)| *at == place) else {
                return u32::MAX;
            };
            match register {
                0 => 0x1058_1af4,
                0x0c => u32::from(*header) << 16,
                0x18 => u32::from(*secondary) << 8,
                _ => panic!("register {register:#x}"),
            }
        };
        let mut found = Vec::new();
        buses.each_function(read, |place, identity| {
            assert_eq!(identity, 0x1058_1af4);
            found.push(place);
        });
        (found, reads.into_inner())
    }
}

fn at(bus: u8, device: u8, function: u8) -> Place {
    Place { bus, device, function }
}

fn known(within: core::ops::RangeInclusive<u8>, roots: &[u8]) -> Buses {
    let mut buses = Buses::UNKNOWN;
    buses.may_be(within);
    buses.set_roots(set(roots));
    buses
}

#[test]
fn buses_behind_bridges_are_looked_at_and_no_others() {
    let pci = Pci(std::vec![
        (at(0, 0, 0), 0, 0),
        (at(0, 3, 0), 0x81, 1),
        (at(0, 3, 5), 0x01, 2),
        (at(1, 0, 0), 0, 0),
        (at(2, 31, 0), 0x01, 3),
        (at(3, 4, 0), 0, 0),
        (at(9, 0, 0), 0, 0),
        (at(128, 1, 0), 0x01, 129),
        (at(129, 0, 0), 0, 0),
    ]);
    let places = |buses| pci.scan(buses).0;
    let behind_first: Vec<_> = pci.0[..6].iter().map(|(place, ..)| *place).collect();
    assert_eq!(places(known(0..=255, &[0])), behind_first);
    let both = places(known(0..=255, &[0, 128]));
    assert_eq!(both[6..], [at(128, 1, 0), at(129, 0, 0)]);
    assert_eq!(places(known(0..=1, &[0])), behind_first[..4], "no more buses than firmware says");
    // Where nothing is known all buses are looked at.
    assert_eq!(places(Buses::UNKNOWN).len(), 9);
    // An empty bus costs a read per device, and a function two more, or three for a bridge.
    assert_eq!(Pci(Vec::new()).scan(known(0..=255, &[0])), (Vec::new(), 32));
    assert_eq!(Pci(Vec::new()).scan(known(0..=0, &[0])).1, 32);
}

#[test]
fn functions_of_a_device_with_one_function_are_not_looked_at() {
    // The device answers for all functions, as those do that decode only a part of the address.
    let all = (0..8).map(|function| (at(0, 1, function), 0, 0)).collect();
    assert_eq!(Pci(all).scan(known(0..=0, &[0])).0, [at(0, 1, 0)]);
    // Without the first function there is no device.
    assert!(Pci(std::vec![(at(0, 1, 1), 0x80, 0)]).scan(known(0..=0, &[0])).0.is_empty());
}

#[test]
fn bridges_that_lead_in_a_circle_end() {
    let pci = Pci(std::vec![(at(0, 1, 0), 1, 5), (at(5, 0, 0), 1, 0), (at(5, 1, 0), 1, 5)]);
    assert_eq!(pci.scan(known(0..=255, &[0])).0.len(), 3);
}

#[test]
fn the_table_of_messages_is_where_the_capability_says() {
    // As QEMU has it: two entries, in the second base address register.
    let table = MsixTable::parse(0x8001_5011, 0x0000_0001).unwrap();
    assert_eq!(table, MsixTable { entries: 2, bar: 1, offset: 0 });
    assert_eq!(table.place((0xfebd_0000, 0x1000), 2), Some((0xfebd_0000, 32)));
    assert_eq!(table.place((0xfebd_0000, 0x1000), 3), None, "it has two");
    let far = MsixTable::parse(0x07ff_0011, 0x8000_0003).unwrap();
    assert_eq!(far, MsixTable { entries: 2048, bar: 3, offset: 0x8000_0000 });
    assert_eq!(far.place((0, 0x1_0000_0000), 2048), Some((0x8000_0000, 0x8000)));
    assert_eq!(far.place((0, 0x8000_0010), 2), None, "beyond its memory");
    assert_eq!(far.place((u64::MAX, u64::MAX), 1), None);
    assert_eq!(MsixTable::parse(0, 6), None);
    assert_eq!(message(3, 0x51), [0xfee0_3000, 0, 0x51, 0]);
}

proptest! {
    #[test]
    fn no_bytes_are_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = find_root(&bytes);
        let _ = (cpus(&bytes).count(), affinities(&bytes).count(), bus_ranges(&bytes).count());
        let _ = (Fadt::parse(&bytes), sleep_type(&bytes), root_buses(&bytes));
        for name in [&b"\x08_S5_\x12"[..], b"\x08_BBN"] {
            let named = [name, &bytes].concat();
            let _ = (sleep_type(&named), root_buses(&named));
        }
    }
}
