//! virtio devices as the guest finds them: modern virtio-mmio, transport and queues by
//! `virtio-drivers`.

pub mod hal;
pub mod mem;
pub mod queue;

use core::ptr::NonNull;

use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

use crate::cmdline::MmioDevice;
use crate::console::println;
use crate::irq;

/// Transport of every device here.
pub type Mmio = MmioTransport<'static>;

/// A device that was found, and its interrupt.
pub struct Device {
    /// Its registers.
    pub transport: Mmio,
    /// Its global system interrupt.
    pub gsi: u32,
}

impl Device {
    /// The device of a `virtio_mmio.device=` word, or `None` (and a line for people) when there is
    /// none that this guest can use.
    pub fn find(place: &MmioDevice, registers: *mut u8) -> Option<Self> {
        let header = NonNull::new(registers)?.cast();
        match hal::transport(header, place.size as usize) {
            Ok(transport) => {
                irq::route(place.irq);
                Some(Self { transport, gsi: place.irq })
            }
            Err(error) => {
                println!("virtio-mmio at {:#x}: {error}", place.address);
                None
            }
        }
    }

    /// Resets the device and negotiates features: all of `wanted` that it offers (virtio 1.3,
    /// section 3.1.1, up to FEATURES_OK). Returns what was agreed on, or `None` when the device
    /// does not agree.
    pub fn negotiate(&mut self, wanted: u64) -> Option<u64> {
        let transport = &mut self.transport;
        transport.set_status(DeviceStatus::empty());
        let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(status);
        let features = transport.read_device_features() & wanted;
        transport.write_driver_features(features);
        transport.set_status(status | DeviceStatus::FEATURES_OK);
        transport.get_status().contains(DeviceStatus::FEATURES_OK).then_some(features)
    }

    /// Looks at the interrupt: why it was raised since the last call.
    pub fn interrupts(&mut self) -> InterruptStatus {
        if irq::take(self.gsi) { self.transport.ack_interrupt() } else { InterruptStatus::empty() }
    }
}
