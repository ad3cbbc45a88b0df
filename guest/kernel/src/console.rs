//! The first serial port (a 16550): text for people, and the keys that they type.
//!
//! Takes the place of Linux's 8250 console. Every byte costs an exit, so messages for programs go through
//! [`crate::control`] where there is such a channel.

use core::fmt::{self, Write};

use spin::Mutex;
use tidevm_abi::SERIAL_PORT;

use crate::cpu::ioapic::{Line, Trigger};
use crate::cpu::{port_read, port_write};

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // An emulated port is ready as long as its host reads what the guest writes. A byte is lost when
            // the port is not ready for 10 ms (Linux `wait_for_xmitr`).
            (0..MOST_READS).find(|_| port_read(SERIAL_PORT + STATUS) & EMPTY != 0);
            port_write(SERIAL_PORT, byte);
        }
        Ok(())
    }
}

/// ISA interrupt of the port.
const INTERRUPT: u32 = 4;
/// Offset of the interrupt enable register.
const ENABLE: u16 = 1;
/// Offset of the line status register.
const STATUS: u16 = 5;
const RECEIVED: u8 = 1;
const EMPTY: u8 = 1 << 5;
/// Reads of the status register before a byte is lost; each takes at least a microsecond.
const MOST_READS: u32 = 10_000;
/// Value that a read gives where there is no port.
const NO_PORT: u8 = 0xff;

/// Makes the port raise an interrupt for each byte that arrives. `None` when there is no port.
pub fn listen() -> Option<Line> {
    if port_read(SERIAL_PORT + STATUS) == NO_PORT {
        return None;
    }
    let line = Line::route(INTERRUPT, Trigger::Edge)?;
    port_write(SERIAL_PORT + ENABLE, RECEIVED);
    Some(line)
}

/// The next byte that arrived.
pub fn read() -> Option<u8> {
    (port_read(SERIAL_PORT + STATUS) & RECEIVED != 0).then(|| port_read(SERIAL_PORT))
}

static SERIAL: Mutex<Serial> = Mutex::new(Serial);

/// Prints; used through [`println!`] and [`print!`].
pub fn write(text: fmt::Arguments<'_>) {
    // Writing to the port cannot fail.
    let _ = SERIAL.lock().write_fmt(text);
}

/// Prints without the lock, whose holder may be the CPU that panics: for [`crate::cpu::panic`].
pub fn print_in_panic(text: fmt::Arguments<'_>) {
    let _ = Serial.write_fmt(text);
}

/// Prints one line.
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::write(format_args!("{}\n", format_args!($($argument)*))) };
}
pub(crate) use println;

/// Prints without ending the line.
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::write(format_args!($($argument)*)) };
}
pub(crate) use print;
