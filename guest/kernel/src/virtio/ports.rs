//! PCI's configuration space through the ports that every PC has, and the interrupt lines of a function.
//!
//! Mirrors Linux `pci_conf1_read`. It differs on purpose: the pin of the I/O APIC that a device is wired to is only in ACPI's
//! bytecode (`_PRT`), which this kernel does not run. So a device listens to all pins that it may have: the chipset's PCI
//! pins, and the legacy line that firmware chose.
#![expect(unsafe_code, reason = "accesses the configuration ports")]

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use x86_64::instructions::port::Port;

use crate::cpu::ioapic::{Line, Trigger};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Configuration register: the legacy interrupt line in its low byte, the interrupt pin in the next one; pin 0 is none.
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
    pub fn answer() -> bool {
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
        // SAFETY: the registers written are BARs that are being sized, the command registers of devices, and their MSI-X
        // capabilities; no device has another driver.
        unsafe { Port::new(DATA_PORT).write(value) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// All interrupts that may be those of the function's pin. `None` when it has no pin.
pub fn line_of(function: DeviceFunction) -> Option<Line> {
    let [line, pin, ..] = Ports.read_word(function, INTERRUPT).to_le_bytes();
    let legacy = if LEGACY_LINES.contains(&line) { 1 << line } else { 0 };
    (pin != 0).then(|| Line::route_any(PCI_PINS | legacy, Trigger::Level))
}
