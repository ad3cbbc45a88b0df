//! The messages of a virtio device on PCI (MSI-X; virtio 1.3, section 4.1.5.1.2): one for changes of the configuration, one
//! for the queue, both to the boot CPU.
//!
//! Mirrors Linux `msix_capability_init` and `vp_request_msix_vectors`. A device with a single entry in its table sends one
//! message for both, as with Linux's second try. What the device made of a vector is read back: it answers with
//! [`NO_VECTOR`] when it cannot.
//!
//! Invariant: the device sends a message only while the table's entries are set: [`Messages::find`] sets them before it lets
//! messages come.

use virtio_drivers::transport::InterruptStatus;
use virtio_drivers::transport::pci::VIRTIO_PCI_CAP_COMMON_CFG;
use virtio_drivers::transport::pci::bus::{
    Command, ConfigurationAccess, DeviceFunction, PCI_CAP_ID_VNDR, PciRoot,
};

use tidevm_firmware::{MSIX_ENABLE, MSIX_FUNCTION_MASK, MsixTable};

use super::ports::{Ports, line_of};
use crate::console::println;
use crate::cpu::ioapic::Line;
use crate::cpu::msi::Message;
use crate::mem::span::Span;

/// The capability's id.
const MSIX: u8 = 0x11;
/// The queue that has a message.
const QUEUE: u16 = 0;
/// The answer of a device that cannot use a vector.
const NO_VECTOR: u16 = 0xffff;

/// Offsets in the common configuration (virtio 1.3, section 4.1.4.3), and its size.
mod common {
    pub const CONFIG_VECTOR: u64 = 16;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const SIZE: u64 = 56;
}

/// The messages of a device.
#[derive(Debug)]
pub struct Messages {
    function: DeviceFunction,
    /// Offset of the capability in the configuration space.
    capability: u8,
    /// The common configuration.
    common: Span,
    /// For changes of the configuration. Without `queue`, for used buffers too.
    config: Message,
    /// For used buffers.
    queue: Option<Message>,
}

impl Messages {
    /// The messages of the device at `function`, which has its registers in place. `None` when it has no such capability, or
    /// one that cannot be used.
    pub fn find(root: &mut PciRoot<Ports>, function: DeviceFunction) -> Option<Self> {
        let capability = root.capabilities(function).find(|capability| capability.id == MSIX)?.offset;
        let control = Ports.read_word(function, capability);
        let table = MsixTable::parse(control, Ports.read_word(function, capability + 4))?;
        let used = table.entries.min(2);
        let bar = root.bar_info(function, table.bar).ok()??.memory_address_size()?;
        let (start, size) = table.place(bar, used)?;
        let entries = Span::registers(start, size).ok()?;
        let common = common_configuration(root, function)?;
        let config = Message::new()?;
        let queue = if used > 1 { Some(Message::new()?) } else { None };
        Ports.write_word(function, capability, control | MSIX_ENABLE | MSIX_FUNCTION_MASK);
        for (index, message) in (0..).zip([Some(&config), queue.as_ref()].into_iter().flatten()) {
            for (word, value) in (0..).zip(message.entry()) {
                entries.set(index * 16 + word * 4, value);
            }
        }
        let (_, command) = root.get_status_command(function);
        root.set_command(function, command | Command::INTERRUPT_DISABLE);
        Ports.write_word(function, capability, control & !MSIX_FUNCTION_MASK | MSIX_ENABLE);
        Some(Self { function, capability, common, config, queue })
    }

    /// Sets the device's vectors. Returns whether it took them.
    pub fn start(&mut self) -> bool {
        let queue = u16::from(self.queue.is_some());
        self.common.set(common::CONFIG_VECTOR, 0_u16);
        self.common.set(common::QUEUE_SELECT, QUEUE);
        self.common.set(common::QUEUE_VECTOR, queue);
        let taken = |register| self.common.get::<u16>(register);
        taken(common::CONFIG_VECTOR) == 0 && taken(common::QUEUE_VECTOR) == queue
    }

    /// Stops messages. Returns the device's line, if it has one.
    pub fn give_up(&self) -> Option<Line> {
        let [config, queue]: [u16; 2] =
            [common::CONFIG_VECTOR, common::QUEUE_VECTOR].map(|register| self.common.get(register));
        println!(
            "virtio-pci at {}: messages are not used: the device has vectors {config:#x} and {queue:#x}; {NO_VECTOR:#x} is none",
            self.function
        );
        let control = Ports.read_word(self.function, self.capability);
        Ports.write_word(self.function, self.capability, control & !MSIX_ENABLE);
        let mut root = PciRoot::new(Ports);
        let (_, command) = root.get_status_command(self.function);
        root.set_command(self.function, command & !Command::INTERRUPT_DISABLE);
        line_of(self.function)
    }

    /// The reasons of the messages that came since the last call.
    pub fn reasons(&mut self) -> InterruptStatus {
        let mut why = InterruptStatus::empty();
        why.set(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT, self.config.fired());
        let used = match &mut self.queue {
            Some(queue) => queue.fired(),
            None => !why.is_empty(),
        };
        why.set(InterruptStatus::QUEUE_INTERRUPT, used);
        why
    }

    /// Whether a message came since the last call of [`Self::reasons`].
    pub fn has_fired(&self) -> bool {
        self.config.has_fired() || self.queue.as_ref().is_some_and(Message::has_fired)
    }
}

/// The common configuration of the device at `function`.
fn common_configuration(root: &mut PciRoot<Ports>, function: DeviceFunction) -> Option<Span> {
    let is_it = |kind| kind == VIRTIO_PCI_CAP_COMMON_CFG;
    let mut capabilities = root.capabilities(function).filter(|capability| capability.id == PCI_CAP_ID_VNDR);
    let place = capabilities.find(|capability| is_it((capability.private_header >> 8) as u8))?.offset;
    let word = |offset| Ports.read_word(function, place + offset);
    let (start, size) = root.bar_info(function, word(4) as u8).ok()??.memory_address_size()?;
    let (offset, length) = (u64::from(word(8)), u64::from(word(12)));
    if length < common::SIZE || offset + length > size {
        return None;
    }
    Span::registers(start + offset, common::SIZE).ok()
}
