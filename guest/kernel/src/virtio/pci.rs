//! virtio-mem devices on PCI (virtio 1.3, section 4.1), found through the configuration ports that every
//! PC has; transport by `virtio-drivers`.
//!
//! Firmware has numbered the buses and placed the registers. Interrupts are INTx: QEMU's `virtio-mem-pci` has
//! no MSI-X. It differs from Linux on purpose: the pin of the I/O APIC that a device is wired to is only in
//! ACPI's bytecode (`_PRT`), which this kernel does not run. So a device listens to all pins that it may
//! have: the chipset's PCI pins, and the legacy line that firmware chose. Devices without a driver are
//! silenced, because they would share those pins.
#![expect(unsafe_code, reason = "accesses the configuration ports")]

use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use x86_64::instructions::port::Port;

use crate::console::println;
use crate::cpu::ioapic::{Line, Trigger};
use crate::virtio::{Device, hal};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Configuration register: the legacy interrupt line, in its low byte.
const INTERRUPT: u8 = 0x3c;
/// Legacy lines that a PC's firmware gives to PCI devices. Line 9 is ACPI's, and the others are legacy
/// devices'.
const LEGACY_LINES: [u8; 3] = [5, 10, 11];
/// Pins 16 to 23 of the I/O APIC: where PC chipsets with one (ICH) wire PCI's INTA to INTH.
const PCI_PINS: u32 = 0x00ff_0000;

/// Configuration mechanism #1. Only the boot CPU uses it, while it binds devices.
pub struct Ports;

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

    /// Whether a host bridge answers at the ports.
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
        // SAFETY: the registers written are BARs that are being sized, and the command registers of devices;
        // no device has another driver.
        unsafe { Port::new(DATA_PORT).write(value) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// Calls `found` with every virtio-mem device. All bus numbers are searched: a machine may have several root
/// buses, and only ACPI's bytecode names them. Other devices are silenced: they have no driver here, and
/// tidevm's control channel is on virtio-mmio.
pub fn each_mem_device(mut found: impl FnMut(Device<PciTransport>)) {
    each_mem_function(|root, function| find(root, function).into_iter().for_each(&mut found));
}

/// Calls `found` with the place of every virtio-mem device, which may access memory then; see [`each_mem_device`].
pub fn each_mem_function(mut found: impl FnMut(&mut PciRoot<Ports>, DeviceFunction)) {
    if !Ports::answer() {
        return;
    }
    let mut root = PciRoot::new(Ports);
    let all = (0..=u8::MAX).flat_map(|bus| PciRoot::new(Ports).enumerate_bus(bus));
    for (function, info) in all {
        if virtio_device_type(&info) == Some(DeviceType::Memory) {
            root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
            found(&mut root, function);
        } else {
            let (_, command) = root.get_status_command(function);
            root.set_command(function, command | Command::INTERRUPT_DISABLE);
        }
    }
}

/// The word at `register` of the device's configuration space.
pub fn read(function: DeviceFunction, register: u8) -> u32 {
    Ports.read_word(function, register)
}

/// All interrupts that may be the device's.
pub fn line_of(function: DeviceFunction) -> Line {
    let [line, ..] = read(function, INTERRUPT).to_le_bytes();
    let legacy = if LEGACY_LINES.contains(&line) { 1 << line } else { 0 };
    Line::route_any(PCI_PINS | legacy, Trigger::Level)
}

/// The device at `function`. `None`, and a line for people, when it cannot be used.
fn find(root: &mut PciRoot<Ports>, function: DeviceFunction) -> Option<Device<PciTransport>> {
    match PciTransport::new::<hal::KernelHal, _>(root, function) {
        Ok(transport) => Some(Device { transport, line: line_of(function) }),
        Err(error) => {
            println!("virtio-pci at {function}: {error}");
            None
        }
    }
}
