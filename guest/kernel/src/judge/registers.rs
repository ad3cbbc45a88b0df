//! The registers of a virtio device as they are, over virtio-mmio (virtio 1.3, section 4.2) or virtio-pci (4.1).
//!
//! Takes the place of `virtio-drivers`' transports, which check, order and retry what a driver does. It differs on purpose:
//! every access is exactly one access of the device, because rows are about what the device does with it.

use virtio_drivers::transport::DeviceType;
use virtio_mem::wire::F_UNPLUGGED_INACCESSIBLE;

use crate::mem::span::Span;

/// Bits of the device status (2.1).
pub const ACKNOWLEDGE: u32 = 1;
/// The guest knows how to drive the device.
pub const DRIVER: u32 = 2;
/// The driver is set up.
pub const DRIVER_OK: u32 = 4;
/// The features are agreed on.
pub const FEATURES_OK: u32 = 8;
/// The device cannot go on before a reset.
pub const NEEDS_RESET: u32 = 64;
/// The driver has given up.
pub const FAILED: u32 = 128;

/// `VIRTIO_F_VERSION_1` (6).
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_INDIRECT_DESC`.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Virtio-mem's feature that unplugged memory is inaccessible.
pub const INACCESSIBLE: u64 = 1 << F_UNPLUGGED_INACCESSIBLE;

/// Reasons of an interrupt.
pub const USED_BUFFER: u32 = 1;
/// The configuration changed.
pub const CONFIGURATION: u32 = 2;

/// Offsets of virtio-mmio's registers (4.2.2).
mod mmio {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Offsets in virtio-pci's common configuration (4.1.4.3).
mod common {
    pub const DEVICE_FEATURES_SEL: u64 = 0;
    pub const DEVICE_FEATURES: u64 = 4;
    pub const DRIVER_FEATURES_SEL: u64 = 8;
    pub const DRIVER_FEATURES: u64 = 12;
    pub const STATUS: u64 = 20;
    pub const GENERATION: u64 = 21;
    pub const QUEUE_SEL: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
    pub const QUEUE_DRIVER: u64 = 40;
    pub const QUEUE_DEVICE: u64 = 48;
}

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;

/// A device's registers.
#[derive(Debug)]
pub enum Registers {
    /// Over virtio-mmio: one range.
    Mmio(Span),
    /// Over virtio-pci: the structures that its capabilities name.
    Pci(PciParts),
}

/// The structures of a device on PCI.
#[derive(Debug)]
pub struct PciParts {
    /// Common configuration.
    pub common: Span,
    /// Notifications.
    pub notify: Span,
    /// Bytes between two queues' places in `notify`, per step of a queue's notification offset.
    pub multiplier: u64,
    /// Interrupt status.
    pub isr: Span,
    /// The configuration of the device type.
    pub config: Span,
    /// The vendor and the device, and the revision, as PCI's configuration space has them.
    pub identity: (u32, u8),
}

impl Registers {
    /// The name of the transport.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Mmio(_) => "mmio",
            Self::Pci(_) => "pci",
        }
    }

    /// Whether a virtio-mem device is there, as far as the registers say it.
    pub fn is_mem(&self) -> bool {
        match self {
            Self::Mmio(all) => {
                all.get::<u32>(mmio::MAGIC) == MAGIC
                    && all.get::<u32>(mmio::DEVICE_ID) == DeviceType::Memory as u32
            }
            Self::Pci(_) => true,
        }
    }

    /// What names the device: magic value, version and device type over virtio-mmio; vendor, device and revision over PCI.
    pub fn identity(&self) -> [u32; 3] {
        match self {
            Self::Mmio(all) => [mmio::MAGIC, mmio::VERSION, mmio::DEVICE_ID].map(|at| all.get(at)),
            Self::Pci(pci) => [pci.identity.0 & 0xffff, pci.identity.0 >> 16, pci.identity.1.into()],
        }
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        match self {
            Self::Mmio(all) => all.get(mmio::STATUS),
            Self::Pci(pci) => pci.common.get::<u8>(common::STATUS).into(),
        }
    }

    /// Writes the device status.
    pub fn set_status(&self, status: u32) {
        match self {
            Self::Mmio(all) => all.set(mmio::STATUS, status),
            Self::Pci(pci) => pci.common.set(common::STATUS, status as u8),
        }
    }

    /// All features that the device offers.
    pub fn features(&self) -> u64 {
        let word = |index: u32| match self {
            Self::Mmio(all) => {
                all.set(mmio::DEVICE_FEATURES_SEL, index);
                all.get::<u32>(mmio::DEVICE_FEATURES)
            }
            Self::Pci(pci) => {
                pci.common.set(common::DEVICE_FEATURES_SEL, index);
                pci.common.get::<u32>(common::DEVICE_FEATURES)
            }
        };
        u64::from(word(0)) | u64::from(word(1)) << 32
    }

    /// Accepts `features`.
    pub fn accept(&self, features: u64) {
        for (index, word) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            match self {
                Self::Mmio(all) => {
                    all.set(mmio::DRIVER_FEATURES_SEL, index);
                    all.set(mmio::DRIVER_FEATURES, word);
                }
                Self::Pci(pci) => {
                    pci.common.set(common::DRIVER_FEATURES_SEL, index);
                    pci.common.set(common::DRIVER_FEATURES, word);
                }
            }
        }
    }

    /// The configuration generation.
    pub fn generation(&self) -> u32 {
        match self {
            Self::Mmio(all) => all.get(mmio::GENERATION),
            Self::Pci(pci) => pci.common.get::<u8>(common::GENERATION).into(),
        }
    }

    /// Where the configuration of the device type begins, and its registers.
    fn config_space(&self) -> (&Span, u64) {
        match self {
            Self::Mmio(all) => (all, mmio::CONFIG),
            Self::Pci(pci) => (&pci.config, 0),
        }
    }

    /// The byte at `offset` of the configuration.
    pub fn config_8(&self, offset: u64) -> u8 {
        let (span, start) = self.config_space();
        span.get(start + offset)
    }

    /// The 16 bits at `offset` of the configuration.
    pub fn config_16(&self, offset: u64) -> u16 {
        let (span, start) = self.config_space();
        span.get(start + offset)
    }

    /// The 32 bits at `offset` of the configuration.
    pub fn config_32(&self, offset: u64) -> u32 {
        let (span, start) = self.config_space();
        span.get(start + offset)
    }

    /// Writes 32 bits of the configuration.
    pub fn set_config_32(&self, offset: u64, value: u32) {
        let (span, start) = self.config_space();
        span.set(start + offset, value);
    }

    /// Chooses the queue that the other calls are about.
    pub fn select(&self, queue: u16) {
        match self {
            Self::Mmio(all) => all.set(mmio::QUEUE_SEL, u32::from(queue)),
            Self::Pci(pci) => pci.common.set(common::QUEUE_SEL, queue),
        }
    }

    /// The most entries of the queue, before a driver has chosen fewer; 0 when there is no such queue.
    pub fn most_entries(&self) -> u32 {
        match self {
            Self::Mmio(all) => all.get(mmio::QUEUE_NUM_MAX),
            Self::Pci(pci) => pci.common.get::<u16>(common::QUEUE_SIZE).into(),
        }
    }

    /// Chooses the number of entries.
    pub fn set_entries(&self, entries: u16) {
        match self {
            Self::Mmio(all) => all.set(mmio::QUEUE_NUM, u32::from(entries)),
            Self::Pci(pci) => pci.common.set(common::QUEUE_SIZE, entries),
        }
    }

    /// Writes the addresses of the descriptor table, the driver's ring and the device's ring.
    pub fn set_rings(&self, rings: [u64; 3]) {
        let (span, offsets) = match self {
            Self::Mmio(all) => (all, [mmio::QUEUE_DESC, mmio::QUEUE_DRIVER, mmio::QUEUE_DEVICE]),
            Self::Pci(pci) => (&pci.common, [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE]),
        };
        for (offset, address) in offsets.into_iter().zip(rings) {
            span.set(offset, address as u32);
            span.set(offset + 4, (address >> 32) as u32);
        }
    }

    /// Whether the queue is ready.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Mmio(all) => all.get::<u32>(mmio::QUEUE_READY) != 0,
            Self::Pci(pci) => pci.common.get::<u16>(common::QUEUE_ENABLE) != 0,
        }
    }

    /// Makes the queue ready.
    pub fn set_ready(&self) {
        match self {
            Self::Mmio(all) => all.set(mmio::QUEUE_READY, 1_u32),
            Self::Pci(pci) => pci.common.set(common::QUEUE_ENABLE, 1_u16),
        }
    }

    /// Tells the device that `queue` has new buffers.
    pub fn notify(&self, queue: u16) {
        match self {
            Self::Mmio(all) => all.set(mmio::QUEUE_NOTIFY, u32::from(queue)),
            Self::Pci(pci) => {
                let offset = u64::from(pci.common.get::<u16>(common::QUEUE_NOTIFY_OFF));
                pci.notify.set(offset * pci.multiplier, queue);
            }
        }
    }

    /// Why there was an interrupt: bit 0 for buffers, bit 1 for the configuration. Over PCI the read acknowledges.
    pub fn interrupt_status(&self) -> u32 {
        match self {
            Self::Mmio(all) => all.get(mmio::INTERRUPT_STATUS),
            Self::Pci(pci) => pci.isr.get::<u8>(0).into(),
        }
    }

    /// Acknowledges these reasons. Over PCI they are acknowledged by the read.
    pub fn acknowledge(&self, reasons: u32) {
        if let Self::Mmio(all) = self {
            all.set(mmio::INTERRUPT_ACK, reasons);
        }
    }
}
