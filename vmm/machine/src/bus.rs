//! Which device a vCPU's access goes to.
//!
//! Where there is no device, reads give all ones and writes are dropped, as on a bus that nobody
//! answers. It is counted, and the first one is reported. (Unplugged memory is no such place, though
//! KVM may report an access there as one to a device: see `vm/vcpu.rs`.)

use std::sync::{Arc, Mutex};

use tidevm_abi::{EXIT_PORT, SERIAL_PORT};

use crate::memory::layout;
use crate::serial::Serial;
use crate::sync::lock;
use crate::virtio::RegisterDevice;

/// Keyboard controller: command port, and the command that resets the machine.
pub(crate) const I8042: u16 = 0x64;
pub(crate) const I8042_RESET: u8 = 0xfe;

/// ACPI's sleep registers (ACPI 6.5, section 4.8.3.7): a write of the type for "off", shifted, with
/// the enable bit powers off.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
pub(crate) const SLEEP_STATUS: u16 = 0x601;
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
const POWER_OFF: u8 = SLEEP_TYPE_OFF << 2 | 1 << 5;

/// All devices that vCPUs access themselves.
pub struct Bus {
    /// Device `n` has its registers at [`layout::mmio`]`(n)`.
    devices: Vec<Arc<Mutex<dyn RegisterDevice>>>,
    serial: Arc<Serial>,
}

/// What became of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A device took it.
    Done,
    /// There is nothing.
    Stray,
    /// The guest wrote an exit code.
    Exit(u8),
    /// The guest powered its machine off.
    PowerOff,
    /// The guest reset its machine.
    Reset,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("devices", &self.devices.len()).finish_non_exhaustive()
    }
}

impl Bus {
    /// A bus with the serial port and `devices` in the order of their registers.
    #[must_use]
    pub fn new(devices: Vec<Arc<Mutex<dyn RegisterDevice>>>, serial: Arc<Serial>) -> Self {
        Self { devices, serial }
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

    /// Reads ports. Nothing is ever stray in port space: probing it is how PCs find devices.
    pub fn io_read(&self, port: u16, data: &mut [u8]) -> Access {
        match (port, uart_register(port)) {
            (_, Some(register)) => data.fill_with(|| self.serial.read(register)),
            // No output waits, no input is refused: drivers that ask before a reset go on.
            (I8042 | SLEEP_CONTROL | SLEEP_STATUS, _) => data.fill(0),
            _ => data.fill(0xff),
        }
        Access::Done
    }

    /// Writes ports.
    pub fn io_write(&self, port: u16, data: &[u8]) -> Access {
        match (port, data) {
            (EXIT_PORT, &[code, ..]) => return Access::Exit(code),
            (I8042, &[I8042_RESET]) => return Access::Reset,
            (SLEEP_CONTROL, &[POWER_OFF]) => return Access::PowerOff,
            _ => {}
        }
        if let Some(register) = uart_register(port) {
            data.iter().for_each(|&byte| self.serial.write(register, byte));
        }
        Access::Done
    }

    /// The last lines of the serial port's output.
    #[must_use]
    pub fn serial_tail(&self) -> String {
        self.serial.tail()
    }

    /// The device that has registers from `address` on, and the offset there.
    fn device(&self, address: u64, size: usize) -> Option<(&Arc<Mutex<dyn RegisterDevice>>, u64)> {
        let offset = address.checked_sub(layout::MMIO_BASE)?;
        let (index, register) = (offset / layout::MMIO_SIZE, offset % layout::MMIO_SIZE);
        let device = self.devices.get(usize::try_from(index).ok()?)?;
        (register + size as u64 <= layout::MMIO_SIZE).then_some((device, register))
    }
}

/// Which register of the serial port a port is.
fn uart_register(port: u16) -> Option<u8> {
    port.checked_sub(SERIAL_PORT).filter(|&register| register < 8).map(|register| register as u8)
}

#[cfg(test)]
mod tests;
