//! virtio-mem devices on PCI (virtio 1.3, section 4.1), found through the configuration ports that every
//! PC has; transport by `virtio-drivers`.
//!
//! Firmware has numbered the buses, placed the registers and chosen each device's interrupt line. The
//! lines are INTx: QEMU's `virtio-mem-pci` has no MSI-X. Where Linux asks ACPI's `_PRT` for the I/O
//! APIC's pin, this takes the pin of the legacy line's number, which on PC chipsets is wired as well.
#![expect(unsafe_code, reason = "accesses the configuration ports")]

use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{
    Command, ConfigurationAccess, DeviceFunction, HeaderType, PciRoot,
};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use x86_64::instructions::port::Port;

use crate::console::println;
use crate::ioapic::{Line, Trigger};
use crate::virtio::{Device, hal};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Configuration registers: interrupt line (low byte) and pin, and a bridge's bus numbers.
const INTERRUPT: u8 = 0x3c;
const BUS_NUMBERS: u8 = 0x18;

/// Configuration mechanism #1. Only the boot CPU looks, while it binds devices.
struct Ports;

impl Ports {
    fn select(function: DeviceFunction, register: u8) {
        let address = ENABLE
            | u32::from(function.bus) << 16
            | u32::from(function.device) << 11
            | u32::from(function.function) << 8
            | u32::from(register);
        // SAFETY: writing the address port selects a register and does nothing else.
        unsafe { Port::new(ADDRESS_PORT).write(address) };
    }

    /// Whether there is a host bridge that answers at the ports.
    fn answer() -> bool {
        let mut port = Port::<u32>::new(ADDRESS_PORT);
        // SAFETY: as in `select`.
        unsafe {
            port.write(ENABLE);
            port.read() == ENABLE
        }
    }
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        Self::select(function, register);
        // SAFETY: reading a configuration register changes nothing.
        unsafe { Port::new(DATA_PORT).read() }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, value: u32) {
        Self::select(function, register);
        // SAFETY: the registers written are BARs that are being sized, and commands of devices that are
        // this driver's own.
        unsafe { Port::new(DATA_PORT).write(value) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// Calls `found` with every virtio-mem device on every bus. Other devices are left alone: there is no
/// driver for them, and tidevm's control channel is on virtio-mmio.
pub fn each_mem_device(mut found: impl FnMut(Device<PciTransport>)) {
    if Ports::answer() {
        scan(0, &mut found);
    }
}

fn scan(bus: u8, found: &mut dyn FnMut(Device<PciTransport>)) {
    for (function, info) in PciRoot::new(Ports).enumerate_bus(bus) {
        if info.header_type == HeaderType::PciPciBridge {
            let [_, secondary, ..] = Ports.read_word(function, BUS_NUMBERS).to_le_bytes();
            // Buses are numbered from the root down.
            if secondary > bus {
                scan(secondary, found);
            }
        } else if virtio_device_type(&info) == Some(DeviceType::Memory) {
            find(function).into_iter().for_each(&mut *found);
        }
    }
}

/// The device at `function`, or `None` (and a line for people) when it cannot be used.
fn find(function: DeviceFunction) -> Option<Device<PciTransport>> {
    let mut root = PciRoot::new(Ports);
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
    let [line, pin, ..] = Ports.read_word(function, INTERRUPT).to_le_bytes();
    let line = if pin == 0 { None } else { Line::route(u32::from(line), Trigger::Level) };
    let Some(line) = line else {
        println!("virtio-pci at {function}: firmware gave it no interrupt line");
        return None;
    };
    match PciTransport::new::<hal::Machine, _>(&mut root, function) {
        Ok(transport) => Some(Device { transport, line }),
        Err(error) => {
            println!("virtio-pci at {function}: {error}");
            None
        }
    }
}
