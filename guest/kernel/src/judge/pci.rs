//! The structures of a virtio-mem device on PCI (virtio 1.3, section 4.1.4): where its capabilities say that they are.
//!
//! Mirrors Linux `vp_modern_probe`. Differs on purpose: structures in I/O ports are not used, and a capability that lies is
//! taken at its word, as long as its structure can be mapped.

use alloc::vec::Vec;

use virtio_drivers::transport::pci::bus::{DeviceFunction, PCI_CAP_ID_VNDR, PciRoot};

use super::memory::Span;
use super::registers::{PciParts, Registers};
use crate::cpu::ioapic::Line;
use crate::virtio::pci::{self, Ports};

/// Types of structures.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// PCI's configuration register with the interrupt pin, in its second byte; 0 is none.
const INTERRUPT: u8 = 0x3c;

/// The first virtio-mem device on PCI, and its interrupts if it has a pin for them.
pub fn find() -> Option<(Registers, Option<Line>)> {
    let mut found = None;
    pci::each_mem_function(|root, function| {
        if found.is_none() {
            let [_, pin, ..] = pci::read(function, INTERRUPT).to_le_bytes();
            let line = (pin != 0).then(|| pci::line_of(function));
            found = parts(root, function).map(|parts| (Registers::Pci(parts), line));
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
        let word = |offset| pci::read(function, place + offset);
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
        identity: (pci::read(function, 0), pci::read(function, 8) as u8),
    })
}
