//! ACPI tables, by which most kernels find CPUs, interrupt controllers and devices.
//!
//! Mirrors ACPI 6.5 in its hardware-reduced form: no power-management block, no legacy timer. virtio-mmio
//! devices are `LNRO0005`, as in QEMU and Cloud Hypervisor.
//!
//! | table | says |
//! | --- | --- |
//! | MADT | a local APIC per vCPU, the I/O APIC |
//! | FADT | how to reset and power off |
//! | DSDT | the serial port, the virtio-mmio devices, and the pvpanic device if there is one |
//! | SRAT | the node of each vCPU and of each range of memory; only when nodes are configured |
//! | SLIT | memory of another node is twice as far away as memory of the own; only with SRAT |

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::slit::SLIT;
use acpi_tables::xsdt::XSDT;
use tidevm_abi::SERIAL_PORT;
use vm_memory::{Address, Bytes, GuestAddress};

use super::{BootError, RESTART};
use crate::bus::{I8042, I8042_RESET, PVPANIC, SLEEP_CONTROL, SLEEP_STATUS, SLEEP_TYPE_OFF};
use crate::config::Config;
use crate::memory::range::GuestRange;
use crate::memory::{View, layout};

const OEM: [u8; 6] = *b"TIDEVM";
const OEM_TABLE: [u8; 8] = *b"TIDEVM  ";
const OEM_REVISION: u32 = 1;

/// Start of the tables: where firmware has them, outside of the RAM in the memory map.
pub const TABLES: GuestAddress = GuestAddress(0xe_0000);
const END: GuestAddress = RESTART;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const HEADER: u32 = 36;
/// FADT boot architecture flags: parts of a PC that this VM lacks.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;
const DSDT_REVISION: u8 = 2;
const SRAT_REVISION: u8 = 3;

/// Writes all tables from [`TABLES`] on. The first is the root pointer.
///
/// # Errors
/// Guest memory cannot be written.
pub fn write(config: &Config, view: &View) -> Result<(), BootError> {
    // The root pointer comes first, and is written last because it leads to the other tables.
    let mut at = TABLES.unchecked_add(64);
    let mut put = |table: &dyn Aml| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = at;
        at = GuestAddress((at.0 + bytes.len() as u64).next_multiple_of(16));
        if at > END {
            return Err(super::write("ACPI tables", &"there is no room for them"));
        }
        view.write_slice(&bytes, address).map_err(|error| super::write("ACPI tables", &error))?;
        Ok(address.0)
    };
    let dsdt = put(&Bytewise(dsdt(config)))?;
    let fadt = put(&fadt(dsdt))?;
    let madt = put(&madt(config.cpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if config.has_nodes() {
        let last = config.hotplug.iter().filter_map(|hotplug| hotplug.node).max().unwrap_or(0);
        xsdt.add_entry(put(&Bytewise(srat(config)))?);
        xsdt.add_entry(put(&slit(config.numa.len().max(usize::from(last) + 1)))?);
    }
    let xsdt = put(&xsdt)?;
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    view.write_slice(&root, TABLES).map_err(|error| super::write("ACPI tables", &error))
}

/// A finished table.
struct Bytewise(Sdt);

impl Aml for Bytewise {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
    table.reset_reg = port(I8042);
    table.reset_value = I8042_RESET;
    table.sleep_control_reg = port(SLEEP_CONTROL);
    table.sleep_status_reg = port(SLEEP_STATUS);
    table.finalize()
}

fn madt(cpus: u8) -> MADT {
    let mut table = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..cpus {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, IO_APIC, 0));
    table
}

/// The nodes of vCPUs, boot memory and hotplug regions (ACPI 6.5, section 5.2.16). Without configured nodes,
/// vCPUs and boot memory are on node 0. The entries are written by hand because the crate has none for local
/// APICs.
fn srat(config: &Config) -> Sdt {
    const ENABLED: u32 = 1;
    const HOT_PLUGGABLE: u32 = 1 << 1;
    let mut body = Vec::new();
    // Reserved fields. The first one is always 1.
    body.extend([1_u32, 0, 0].map(u32::to_le_bytes).concat());
    for (node, id) in config.cpu_nodes().zip(0..) {
        body.extend([0, 16, node, id]);
        body.extend([ENABLED, 0, 0].map(u32::to_le_bytes).concat());
    }
    let mut memory = |range: GuestRange, node: u16, flags: u32| {
        body.extend([1, 40]);
        body.extend(u32::from(node).to_le_bytes());
        body.extend([0; 2]);
        body.extend([range.start().0, range.size()].map(u64::to_le_bytes).concat());
        body.extend([0, ENABLED | flags, 0, 0].map(u32::to_le_bytes).concat());
    };
    let mut sizes: Vec<_> = config.numa.iter().map(|node| node.memory).collect();
    if sizes.is_empty() {
        sizes.push(config.memory);
    }
    for (node, range) in layout::parts(config.memory, sizes) {
        memory(range, node as u16, 0);
    }
    let regions = layout::regions(config.memory, config.places()).into_iter().flatten();
    for (region, hotplug) in regions.zip(&config.hotplug) {
        memory(region, hotplug.node.unwrap_or(0), HOT_PLUGGABLE);
    }
    let mut table = Sdt::new(*b"SRAT", HEADER, SRAT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&body);
    table
}

/// Distances between `nodes` nodes, in tenths of the distance from a node to its own memory.
fn slit(nodes: usize) -> SLIT {
    const OTHER: u8 = 20;
    let mut table = SLIT::new(OEM, OEM_TABLE, OEM_REVISION, nodes as u32);
    for one in 0..nodes {
        (0..one).for_each(|other| table.set_distance(one, other, OTHER));
    }
    table
}

fn dsdt(config: &Config) -> Sdt {
    let mut body = Vec::new();
    // The sleep type that powers off.
    let power_off = Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &power_off).to_aml_bytes(&mut body);
    device(
        "COM1",
        &EISAName::new("PNP0501"),
        0,
        vec![&IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8), &interrupt(layout::SERIAL_GSI)],
        &mut body,
    );
    if config.watch.alarms {
        // As in QEMU, whose firmware has it.
        device("PEVT", &"QEMU0001", 0, vec![&IO::new(PVPANIC, PVPANIC, 1, 1)], &mut body);
    }
    for index in 0..config.mmio_devices() {
        let registers = Memory32Fixed::new(true, layout::mmio(index).0 as u32, layout::MMIO_SIZE as u32);
        let name = format!("VM{index:02}");
        device(&name, &"LNRO0005", index as u8, vec![&registers, &interrupt(layout::gsi(index))], &mut body);
    }
    let mut table = Sdt::new(*b"DSDT", HEADER, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&body);
    table
}

/// An edge-triggered interrupt: an eventfd raises it and never lowers it.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// A device below `\_SB`.
fn device(name: &str, id: &dyn Aml, number: u8, resources: Vec<&dyn Aml>, body: &mut Vec<u8>) {
    let id = Name::new("_HID".into(), id);
    let number = Name::new("_UID".into(), &number);
    let resources = ResourceTemplate::new(resources);
    let resources = Name::new("_CRS".into(), &resources);
    let device = Device::new(name.into(), vec![&id, &number, &resources]);
    Scope::new("\\_SB_".into(), vec![&device]).to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use tidevm_abi::Size;

    use super::*;
    use crate::config::{BalloonConfig, HotplugConfig, MAX_NODE, NodeConfig};
    use crate::memory::fake::memory;

    fn written(config: &Config) -> Vec<u8> {
        let memory = memory(32 << 20, &[]).0;
        write(config, &memory.view()).unwrap();
        let mut bytes = vec![0; (END.0 - TABLES.0) as usize];
        memory.view().read_slice(&mut bytes, TABLES).unwrap();
        bytes
    }

    fn number(bytes: &[u8], at: usize, size: usize) -> usize {
        bytes[at..at + size].iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte))
    }

    /// 3.5 GiB of boot memory on two nodes. Node 1 has the larger part.
    fn two_nodes() -> (Size, Vec<NodeConfig>) {
        let nodes =
            [NodeConfig { memory: Size(1 << 30), cpus: 200 }, NodeConfig { memory: Size(5 << 29), cpus: 54 }];
        (Size(7 << 29), nodes.into())
    }

    /// Follows the pointers as a kernel does, and checks every checksum on the way.
    #[test]
    fn every_table_is_reached_and_its_bytes_add_up() {
        let mut hotplug = vec![HotplugConfig::new(Size::gib(1)); tidevm_abi::MAX_MEM_DEVICES];
        hotplug[0].node = Some(1);
        hotplug[1].node = Some(MAX_NODE);
        let (memory, numa) = two_nodes();
        let balloon = Some(BalloonConfig { reporting: true, stats_interval: None });
        let bytes = written(&Config { cpus: 254, memory, numa, hotplug, balloon, ..Config::default() });
        let base = TABLES.0 as usize;
        let table = |at: usize| {
            let at = at - base;
            let table = &bytes[at..at + number(&bytes, at + 4, 4)];
            assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{at:#x}");
            table
        };
        assert_eq!(&bytes[..8], b"RSD PTR ");
        let xsdt = table(number(&bytes, 24, 8));
        assert_eq!(&xsdt[..4], b"XSDT");
        let (fadt, madt) = (table(number(xsdt, 36, 8)), table(number(xsdt, 44, 8)));
        assert_eq!((&fadt[..4], &madt[..4], xsdt.len()), (&b"FACP"[..], &b"APIC"[..], 68));
        let srat = table(number(xsdt, 52, 8));
        assert_eq!(
            (&srat[..4], srat.len()),
            (&b"SRAT"[..], 48 + 254 * 16 + (3 + tidevm_abi::MAX_MEM_DEVICES) * 40)
        );
        let nodes: Vec<u8> = srat[48..48 + 254 * 16].chunks(16).map(|cpu| cpu[2]).collect();
        assert_eq!((&nodes[..200], &nodes[200..]), (&[0; 200][..], &[1; 54][..]));
        let ranges: Vec<_> = srat[48 + 254 * 16..]
            .chunks(40)
            .map(|range| (range[2], number(range, 8, 8) >> 20, number(range, 16, 8) >> 20, range[28]))
            .collect();
        // Node 1 has boot memory on both sides of the register hole; regions are hot-pluggable.
        assert_eq!(ranges[..3], [(0, 0, 1024, 1), (1, 1024, 2048, 1), (1, 4096, 512, 1)]);
        assert_eq!(ranges[3..5], [(1, 5120, 1024, 3), (MAX_NODE as u8, 6144, 1024, 3)]);
        let (slit, nodes) = (table(number(xsdt, 60, 8)), usize::from(MAX_NODE) + 1);
        assert_eq!((&slit[..4], number(slit, 36, 8)), (&b"SLIT"[..], nodes));
        let distances: Vec<_> = slit[44..].chunks(nodes).collect();
        assert_eq!((distances.len(), distances[0][0], distances[0][1]), (nodes, 10, 20));
        assert!(
            (0..nodes).all(|node| distances[node][node] == 10 && distances[node][0] == distances[0][node])
        );
        assert_eq!(madt.len(), 44 + 254 * 8 + 12);
        let dsdt = table(number(fadt, 140, 8));
        assert_eq!(&dsdt[..4], b"DSDT");
        let devices = dsdt.windows(8).filter(|bytes| bytes == b"LNRO0005").count();
        assert_eq!(devices, 2 + tidevm_abi::MAX_MEM_DEVICES);
    }

    #[test]
    fn the_device_for_panics_is_there_if_a_panic_is_heeded() {
        for alarms in [false, true] {
            let watch = crate::config::ConsoleWatch { alarms, ..Default::default() };
            let bytes = written(&Config { watch, ..Config::default() });
            // An I/O port descriptor of one port, as Linux's driver reads it.
            let [low, high] = PVPANIC.to_le_bytes();
            let port = [0x47, 1, low, high, low, high, 1, 1];
            let has = |wanted: &[u8]| bytes.windows(wanted.len()).any(|part| part == wanted);
            assert_eq!((has(b"QEMU0001"), has(&port)), (alarms, alarms));
        }
    }
}
