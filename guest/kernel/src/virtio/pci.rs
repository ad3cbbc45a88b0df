//! virtio-mem devices on PCI (virtio 1.3, section 4.1), found through the configuration ports; transport by
//! `virtio-drivers`.
//!
//! Firmware has numbered the buses and placed the registers. A device interrupts by messages where it can, and by its pin
//! otherwise (see [`super::source`]). Devices without a driver are silenced, because they would share pins.

use spin::{Mutex, MutexGuard};
use tidevm_firmware::{Buses, Place};
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};

use crate::console::println;
use crate::virtio::msix::Messages;
use crate::virtio::ports::{Ports, line_of};
use crate::virtio::source::Source;
use crate::virtio::{Device, hal};

/// Vendor and device of a virtio-mem device, as the first register has them.
const MEM_DEVICE: u32 = 0x1058_1af4;

static BUSES: Mutex<Buses> = Mutex::new(Buses::UNKNOWN);

/// What firmware says of the buses; to be completed before devices are looked for.
pub fn buses() -> MutexGuard<'static, Buses> {
    BUSES.lock()
}

/// Calls `found` with every virtio-mem device that can be used. Other devices are silenced: they have no driver here, and
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
    let at = |Place { bus, device, function }| DeviceFunction { bus, device, function };
    let read = |place, register| Ports.read_word(at(place), register);
    let buses = *buses();
    buses.each_function(read, |place, identity| {
        let function = at(place);
        if identity == MEM_DEVICE {
            root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
            found(&mut root, function);
        } else {
            let (_, command) = root.get_status_command(function);
            root.set_command(function, command | Command::INTERRUPT_DISABLE);
        }
    });
}

/// The interrupts of the device at `function`: messages, or else its line. `None` when it has neither.
pub fn source_of(root: &mut PciRoot<Ports>, function: DeviceFunction) -> Option<Source> {
    match Messages::find(root, function) {
        Some(messages) => Some(Source::Messages(messages)),
        None => line_of(function).map(Source::Line),
    }
}

/// The device at `function`. `None`, and a line for people, when it cannot be used.
fn find(root: &mut PciRoot<Ports>, function: DeviceFunction) -> Option<Device<PciTransport>> {
    let transport = match PciTransport::new::<hal::KernelHal, _>(root, function) {
        Ok(transport) => transport,
        Err(error) => {
            println!("virtio-pci at {function}: {error}");
            return None;
        }
    };
    let Some(source) = source_of(root, function) else {
        println!(
            "virtio-pci at {function}: not used: it can interrupt neither by messages (MSI-X) nor by a pin"
        );
        return None;
    };
    Some(Device { transport, source })
}
