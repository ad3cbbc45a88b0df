//! The control channel as a port of Linux's virtio-console driver: what device and driver say about the port.
//!
//! Mirrors the device with `VIRTIO_CONSOLE_F_MULTIPORT` (virtio 1.3, section 5.3.6.2). Without that feature Linux takes the
//! channel for a console: it writes its log there, and puts a terminal in front of it, which cuts records into pieces. With
//! it, port 0 is a file for one program, and one buffer is what one read or write of that program moves. So queues 0 and 1
//! carry records as they do for tidevm's own guest.
//!
//! Invariants: a message is due at most once, however often the driver asks for it. The driver drops what comes while no
//! program has the port open, so no call is sent then.

use serde::{Deserialize, Serialize};

/// `VIRTIO_CONSOLE_F_MULTIPORT`: the number of the bit.
pub const F_MULTIPORT: u32 = 1;

/// Ports of the device.
pub const PORTS: u32 = 1;

/// Queue that carries messages about the port to the driver.
pub const TO_DRIVER: usize = 2;

/// Queue that carries messages about the port from the driver.
pub const FROM_DRIVER: usize = 3;

/// Number of queues: two of the port, and two for messages about it.
pub const QUEUES: usize = 4;

/// Bytes of a message: the port, the event, its value.
pub const MESSAGE: usize = 8;

/// The port's number.
const PORT: u32 = 0;

/// Events (virtio 1.3, section 5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;

/// The port, and what the driver is still to be told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The driver asks which ports there are.
    add: bool,
    /// The driver has the port, and does not know that the VMM has opened its end.
    open: bool,
    /// A program of the guest has the port open.
    opened: bool,
}

impl Port {
    /// Takes a message of the driver. Returns whether it was one.
    pub fn take(&mut self, message: &[u8]) -> bool {
        let Some((id, event, value)) = read(message) else { return false };
        match (event, value) {
            // Value 0: the driver could not set the device or the port up, and there will be no program.
            (DEVICE_READY, _) => self.add = value == 1,
            (PORT_READY, _) if id == PORT => self.open = value == 1,
            (PORT_OPEN, 0 | 1) if id == PORT => self.opened = value == 1,
            _ => return false,
        }
        true
    }

    /// The next message for the driver.
    #[must_use]
    pub fn due(&self) -> Option<[u8; MESSAGE]> {
        if self.add {
            Some(message(PORT_ADD))
        } else if self.open {
            Some(message(PORT_OPEN))
        } else {
            None
        }
    }

    /// The message that was due has been sent.
    pub fn sent(&mut self) {
        if self.add { self.add = false } else { self.open = false }
    }

    /// Whether a program of the guest reads the port.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.opened
    }
}

fn read(message: &[u8]) -> Option<(u32, u16, u16)> {
    let [a, b, c, d, e, f, g, h] = *message.first_chunk::<MESSAGE>()?;
    Some((u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h])))
}

/// `event` of the port, with the value 1.
fn message(event: u16) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    message[..4].copy_from_slice(&PORT.to_le_bytes());
    message[4..6].copy_from_slice(&event.to_le_bytes());
    message[6..].copy_from_slice(&1_u16.to_le_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::Port;

    #[test]
    fn a_driver_is_told_of_the_port_in_order() {
        let mut port = Port::default();
        assert_eq!(port.due(), None);
        // Both at once, and each twice.
        for message in [[0, 0, 0, 0, 3, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1, 0]] {
            assert!(port.take(&message) && port.take(&message));
        }
        assert_eq!(port.due(), Some([0, 0, 0, 0, 1, 0, 1, 0]));
        port.sent();
        assert_eq!(port.due(), Some([0, 0, 0, 0, 6, 0, 1, 0]));
        port.sent();
        assert_eq!(port.due(), None);
        assert!(port.take(&[0, 0, 0, 0, 6, 0, 1, 0]) && port.is_open());
        assert!(port.take(&[0, 0, 0, 0, 6, 0, 0, 0]) && !port.is_open());
    }

    #[test]
    fn what_is_no_message_about_the_port_changes_nothing() {
        for bytes in [
            &[][..],
            &[0; 7],
            &[1, 0, 0, 0, 3, 0, 1, 0],
            &[1, 0, 0, 0, 6, 0, 1, 0],
            &[0, 0, 0, 0, 6, 0, 2, 0],
            &[0, 0, 0, 0, 9, 0, 1, 0],
            &[0xff; 8],
        ] {
            let mut port = Port::default();
            assert!(!port.take(bytes), "{bytes:?}");
            assert_eq!(port, Port::default());
        }
        let mut port = Port::default();
        assert!(port.take(&[0; 8]), "a driver that gives up");
        assert_eq!(port.due(), None);
    }
}
