//! From port and MMIO addresses to devices.
//!
//! At an address without a device, reads give all ones and writes are dropped, as on a bus where no device
//! answers. Such accesses are counted, and the first one is logged. Unplugged memory is different, although
//! KVM may report an access there like one to a device: see `vm/vcpu.rs`.
//!
//! A kernel that has said on the console that it panics, and then resets the machine, has panicked. Without alarms
//! ([`crate::config::ConsoleWatch`]) it has reset the machine.
//!
//! Every device in port space has registers of one byte. As on an ISA bus, an access of two or four bytes is divided:
//! each byte goes to a port of its own, the lowest first.

use std::sync::{Arc, Mutex};

use tidevm_abi::{EXIT_PORT, SERIAL_PORT};

use crate::memory::layout;
use crate::serial::Serial;
use crate::sync::lock;
use crate::virtio::RegisterDevice;

/// The keyboard controller's command port, and the command that resets the machine.
pub(crate) const I8042: u16 = 0x64;
pub(crate) const I8042_RESET: u8 = 0xfe;

/// ACPI's sleep registers (ACPI 6.5, section 4.8.3.7). A write of the sleep type for "off", shifted, with the
/// enable bit powers off.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
pub(crate) const SLEEP_STATUS: u16 = 0x601;
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
const POWER_OFF: u8 = SLEEP_TYPE_OFF << 2 | 1 << 5;

/// The port of the pvpanic device, as in QEMU (`docs/specs/pvpanic`), and the event that it takes: a panic.
pub(crate) const PVPANIC: u16 = 0x505;
const PANICKED: u8 = 1;

/// All devices that vCPU threads access.
pub struct Bus {
    /// Device `n` has its registers at [`layout::mmio`]`(n)`.
    devices: Vec<Arc<Mutex<dyn RegisterDevice>>>,
    serial: Arc<Serial>,
    /// Whether there is a pvpanic device.
    pvpanic: bool,
}

/// The result of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A device handled it.
    Done,
    /// There is no device at the address.
    Stray,
    /// The guest wrote an exit code.
    Exit(u8),
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked.
    Panic,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("devices", &self.devices.len()).finish_non_exhaustive()
    }
}

impl Bus {
    /// A bus with the serial port and `devices` in the order of their registers, and maybe a `pvpanic` device.
    #[must_use]
    pub fn new(devices: Vec<Arc<Mutex<dyn RegisterDevice>>>, serial: Arc<Serial>, pvpanic: bool) -> Self {
        Self { devices, serial, pvpanic }
    }

    /// Reads device registers in memory space.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> Access {
        match self.device(address, data.len()) {
            Some((device, offset)) => {
                lock(device).read(offset, data);
                Access::Done
            }
            None => {
                data.fill(0xff);
                Access::Stray
            }
        }
    }

    /// Writes device registers in memory space.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> Access {
        let Some((device, offset)) = self.device(address, data.len()) else { return Access::Stray };
        if let Err(error) = lock(device).write(offset, data) {
            log::warn!("device at {address:#x} was not told of a write: {error}");
        }
        Access::Done
    }

    /// Reads ports: as many accesses of `width` bytes to `port` as `data` holds, as `rep ins` makes them. No access
    /// in port space is stray: PCs find devices by probing ports.
    pub fn io_read(&self, port: u16, width: usize, data: &mut [u8]) -> Access {
        data.fill(0xff);
        for access in data.chunks_mut(width.max(1)) {
            for (port, byte) in (port..=u16::MAX).zip(access) {
                *byte = self.read_port(port);
            }
        }
        Access::Done
    }

    /// Writes ports: as many accesses of `width` bytes to `port` as `data` holds, as `rep outs` makes them. The first
    /// that ends the machine is the last.
    pub fn io_write(&self, port: u16, width: usize, data: &[u8]) -> Access {
        for access in data.chunks(width.max(1)) {
            for (port, &byte) in (port..=u16::MAX).zip(access) {
                match self.write_port(port, byte) {
                    Access::Done => {}
                    end => return end,
                }
            }
        }
        Access::Done
    }

    fn read_port(&self, port: u16) -> u8 {
        match (port, uart_register(port)) {
            (_, Some(register)) => self.serial.read(register),
            // 0 means "no output waits, input is accepted". Drivers poll for that before a reset.
            (I8042 | SLEEP_CONTROL | SLEEP_STATUS, _) => 0,
            // The events that the device takes.
            (PVPANIC, _) if self.pvpanic => PANICKED,
            _ => 0xff,
        }
    }

    fn write_port(&self, port: u16, byte: u8) -> Access {
        match (port, byte) {
            (EXIT_PORT, code) => return Access::Exit(code),
            (I8042, I8042_RESET) if self.serial.has_panicked() => return Access::Panic,
            (I8042, I8042_RESET) => return Access::Reset,
            (SLEEP_CONTROL, POWER_OFF) => return Access::PowerOff,
            (PVPANIC, events) if self.pvpanic && events & PANICKED != 0 => return Access::Panic,
            _ => {}
        }
        match uart_register(port) {
            Some(register) if self.serial.write(register, byte) => Access::Panic,
            _ => Access::Done,
        }
    }

    /// The last lines of the serial port's output.
    #[must_use]
    pub fn serial_tail(&self) -> String {
        self.serial.tail()
    }

    /// The device whose registers hold `size` bytes from `address` on, and the offset in its registers.
    fn device(&self, address: u64, size: usize) -> Option<(&Arc<Mutex<dyn RegisterDevice>>, u64)> {
        let offset = address.checked_sub(layout::MMIO_BASE)?;
        let (index, register) = (offset / layout::MMIO_SIZE, offset % layout::MMIO_SIZE);
        let device = self.devices.get(usize::try_from(index).ok()?)?;
        (register + size as u64 <= layout::MMIO_SIZE).then_some((device, register))
    }
}

/// The register of the serial port behind a port, if it is one.
fn uart_register(port: u16) -> Option<u8> {
    port.checked_sub(SERIAL_PORT).filter(|&register| register < 8).map(|register| register as u8)
}

#[cfg(test)]
mod tests;
