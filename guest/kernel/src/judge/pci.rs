//! The structures of a virtio-mem device on PCI (virtio 1.3, section 4.1.4): where its capabilities say that they are.
//!
//! Mirrors Linux `vp_modern_probe`. Differs on purpose: structures in I/O ports are not used, and a capability that lies is
//! taken at its word, as long as its structure can be mapped.

use alloc::vec::Vec;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PCI_CAP_ID_VNDR, PciRoot};

use super::registers::{PciParts, Registers};
use crate::mem::span::Span;
use crate::virtio::pci;
use crate::virtio::ports::Ports;
use crate::virtio::source::Source;

/// Types of structures.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// The first virtio-mem device on PCI, and its interrupts if it has any.
pub fn find() -> Option<(Registers, Option<Source>)> {
    let mut found = None;
    pci::each_mem_function(|root, function| {
        if found.is_none() {
            let registers = parts(root, function).map(Registers::Pci);
            found = registers.map(|registers| (registers, pci::source_of(root, function)));
        }
    });
    found
}

fn parts(root: &mut PciRoot<Ports>, function: DeviceFunction) -> Option<PciParts> {
    let mut spans = [const { None }; 5];
    let mut multiplier = 0;
    let capabilities = root.capabilities(function).filter(|capability| capability.id == PCI_CAP_ID_VNDR);
    let places: Vec<_> =
        capabilities.map(|capability| (capability.offset, (capability.private_header >> 8) as u8)).collect();
    for (place, kind) in places {
        let word = |offset| Ports.read_word(function, place + offset);
        let Some(slot) = spans.get_mut(usize::from(kind)).filter(|slot| slot.is_none()) else { continue };
        let bar = root.bar_info(function, word(4) as u8).ok().flatten();
        let Some((base, size)) = bar.and_then(|bar| bar.memory_address_size()) else { continue };
        let (offset, length) = (u64::from(word(8)), u64::from(word(12)));
        if length == 0 || offset + length > size {
            continue;
        }
        if kind == NOTIFY {
            multiplier = word(16).into();
        }
        *slot = Span::registers(base + offset, length).ok();
    }
    let mut take = |kind: u8| spans[usize::from(kind)].take();
    Some(PciParts {
        common: take(COMMON)?,
        notify: take(NOTIFY)?,
        multiplier,
        isr: take(ISR)?,
        config: take(DEVICE)?,
        identity: (Ports.read_word(function, 0), Ports.read_word(function, 8) as u8),
    })
}
