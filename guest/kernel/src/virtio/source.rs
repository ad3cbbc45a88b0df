//! Where a device's interrupts come from: a line (virtio-mmio, and PCI's INTx), or messages (MSI-X; virtio 1.3, section
//! 4.1.5.1).
//!
//! Mirrors Linux `vp_find_vqs`, which prefers messages where the device has them: a message is the device's own, so no other
//! device is looked at, no line is masked and opened again, and the reason is known without a read of the device. There are
//! hosts on which a device has nothing else. Differs on purpose: one queue has a message of its own, because the only device
//! with a driver on PCI has one queue.
//!
//! Invariant: messages are in use from a successful [`Source::start`] on, and each start sets the device's vectors anew: a
//! reset of the device takes them away.

use virtio_drivers::transport::InterruptStatus;

use super::msix::Messages;
use crate::cpu::ioapic::Line;

/// A device's interrupts, as its driver sees them.
#[derive(Debug)]
pub enum Source {
    /// A line. The device's interrupt status has the reasons.
    Line(Line),
    /// Messages, each with its reason.
    Messages(Messages),
}

impl Source {
    /// Sets the device's vectors, after a reset and before FEATURES_OK. A device that takes none goes back to its line.
    /// Returns whether the device can interrupt.
    pub fn start(&mut self) -> bool {
        let Self::Messages(messages) = self else { return true };
        if messages.start() {
            return true;
        }
        match messages.give_up() {
            Some(line) => *self = Self::Line(line),
            None => return false,
        }
        true
    }

    /// The reasons for which interrupts came since the last call. `acknowledge` reads the interrupt status of a device with a
    /// line and acknowledges what it has read.
    ///
    /// The reasons are read once, and exactly those are acknowledged. Mirrors Linux's `vm_interrupt`. No reason is lost:
    /// - A device changes its queue or its configuration first, then records the reason, then raises the interrupt. So a
    ///   change whose reason was acknowledged came before the caller looks.
    /// - A reason that comes between the read and the acknowledgement stays. On virtio-mmio its interrupt is an edge of its
    ///   own, and `Line::fired` counts edges. On PCI the read acknowledges, and the line stays raised, so the interrupt
    ///   comes as soon as the line is opened again.
    /// - A message is counted when it comes, and has its reason with it.
    pub fn reasons(&mut self, acknowledge: impl FnOnce() -> InterruptStatus) -> InterruptStatus {
        match self {
            Self::Messages(messages) => messages.reasons(),
            Self::Line(line) => {
                if !line.fired() {
                    return InterruptStatus::empty();
                }
                let why = acknowledge();
                line.rearm();
                why
            }
        }
    }

    /// Whether an interrupt came since the last call of [`Self::reasons`].
    pub fn has_fired(&self) -> bool {
        match self {
            Self::Line(line) => line.has_fired(),
            Self::Messages(messages) => messages.has_fired(),
        }
    }
}
