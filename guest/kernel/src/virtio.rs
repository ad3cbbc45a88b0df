//! virtio devices (virtio 1.3): virtio-mmio at the addresses that the command line names, and PCI (see
//! [`pci`]). `virtio-drivers` has the transports and the queues.

pub mod balloon;
pub mod hal;
pub mod mem;
pub mod pci;
pub mod queue;

use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

use crate::boot::cmdline::MmioDevice;
use crate::console::println;
use crate::cpu::ioapic::{Line, Trigger};
use crate::cpu::time::Instant;

/// A device and its interrupt.
pub struct Device<T> {
    /// Its registers.
    pub transport: T,
    /// Its interrupt.
    pub line: Line,
}

impl Device<MmioTransport<'static>> {
    /// The device of a `virtio_mmio.device=` word. `None`, and a line for people, when this guest cannot use
    /// it.
    pub fn find(place: &MmioDevice) -> Option<Self> {
        let line = Line::route(place.irq, Trigger::Edge);
        match (hal::mmio_transport(place.address, place.size), line) {
            (Ok(transport), Some(line)) => Some(Self { transport, line }),
            (Ok(_), None) => {
                println!("virtio-mmio at {:#x}: there is no interrupt {}", place.address, place.irq);
                None
            }
            (Err(error), _) => {
                println!("virtio-mmio at {:#x}: {error}", place.address);
                None
            }
        }
    }
}

impl<T: Transport> Device<T> {
    /// Resets the device and negotiates features: those of `wanted` that it offers (virtio 1.3, section
    /// 3.1.1, up to FEATURES_OK). Returns the features agreed on, or `None` when the device does not agree,
    /// or is not reset within a second.
    pub fn negotiate(&mut self, wanted: u64) -> Option<u64> {
        let transport = &mut self.transport;
        transport.set_status(DeviceStatus::empty());
        let deadline = Instant::in_millis(1000);
        while !transport.get_status().is_empty() {
            if deadline.has_passed() {
                return None;
            }
            core::hint::spin_loop();
        }
        let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(status);
        let features = transport.read_device_features() & wanted;
        transport.write_driver_features(features);
        transport.set_status(status | DeviceStatus::FEATURES_OK);
        transport.get_status().contains(DeviceStatus::FEATURES_OK).then_some(features)
    }

    /// The reasons for which the interrupt was raised since the last call. The caller then looks at what they are about.
    ///
    /// The reasons are read once, and exactly those are acknowledged. Mirrors Linux's `vm_interrupt`. No reason is lost:
    /// - A device changes its queue or its configuration first, then records the reason, then raises the interrupt. So a
    ///   change whose reason was acknowledged came before the caller looks.
    /// - A reason that comes between the read and the acknowledgement stays. On virtio-mmio its interrupt is an edge of its
    ///   own, and `Line::fired` counts edges. On PCI the read acknowledges, and the line stays raised, so the interrupt
    ///   comes as soon as the line is opened again.
    pub fn interrupts(&mut self) -> InterruptStatus {
        if !self.line.fired() {
            return InterruptStatus::empty();
        }
        let why = self.transport.ack_interrupt();
        self.line.rearm();
        why
    }
}
