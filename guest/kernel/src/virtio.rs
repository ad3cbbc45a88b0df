//! virtio devices (virtio 1.3): virtio-mmio at the addresses that the command line names, and PCI (see
//! [`pci`]). `virtio-drivers` has the transports and the queues.

pub mod balloon;
pub mod hal;
pub mod mem;
mod msix;
pub mod pci;
pub mod ports;
pub mod queue;
pub mod source;

use core::fmt;

use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

use self::source::Source;
use crate::boot::cmdline::MmioDevice;
use crate::console::println;
use crate::cpu::ioapic::{Line, Trigger};
use crate::cpu::time::Instant;

/// A device and its interrupts.
pub struct Device<T> {
    /// Its registers.
    pub transport: T,
    /// Its interrupts.
    pub source: Source,
}

/// The longest wait for a reset of a device.
const MILLIS_TO_RESET: u64 = 1000;

/// Why a device cannot be started.
#[derive(Clone, Copy, Debug)]
pub enum Unready {
    /// It is not reset in time.
    Reset,
    /// It can interrupt in no way.
    Interrupts,
    /// It does not agree on features.
    Features,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => write!(f, "the device is not reset within {MILLIS_TO_RESET} ms"),
            Self::Interrupts => {
                f.write_str("the device can interrupt neither by messages (MSI-X) nor by a pin")
            }
            Self::Features => f.write_str("the device does not agree on features"),
        }
    }
}

impl Device<MmioTransport<'static>> {
    /// The device of a `virtio_mmio.device=` word. `None`, and a line for people, when this guest cannot use
    /// it.
    pub fn find(place: &MmioDevice) -> Option<Self> {
        let line = Line::route(place.irq, Trigger::Edge);
        match (hal::mmio_transport(place.address, place.size), line) {
            (Ok(transport), Some(line)) => Some(Self { transport, source: Source::Line(line) }),
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
    /// Resets the device, sets up its interrupts, and negotiates features: those of `wanted` that it offers (virtio 1.3,
    /// section 3.1.1, up to FEATURES_OK). Returns the features agreed on.
    ///
    /// # Errors
    /// [`Unready`].
    pub fn negotiate(&mut self, wanted: u64) -> Result<u64, Unready> {
        let transport = &mut self.transport;
        transport.set_status(DeviceStatus::empty());
        let deadline = Instant::in_millis(MILLIS_TO_RESET);
        while !transport.get_status().is_empty() {
            if deadline.has_passed() {
                return Err(Unready::Reset);
            }
            core::hint::spin_loop();
        }
        // Each step is a store of its own: there are devices that refuse two at once. Linux, which finds a device long before
        // its driver, does the same (`register_virtio_device`, `virtio_dev_probe`).
        let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(DeviceStatus::ACKNOWLEDGE);
        transport.set_status(status);
        if !self.source.start() {
            return Err(Unready::Interrupts);
        }
        let features = transport.read_device_features() & wanted;
        transport.write_driver_features(features);
        transport.set_status(status | DeviceStatus::FEATURES_OK);
        let agrees = transport.get_status().contains(DeviceStatus::FEATURES_OK);
        agrees.then_some(features).ok_or(Unready::Features)
    }

    /// The reasons for which interrupts came since the last call; see [`Source::reasons`]. The caller then looks at what they
    /// are about.
    pub fn interrupts(&mut self) -> InterruptStatus {
        self.source.reasons(|| self.transport.ack_interrupt())
    }
}
