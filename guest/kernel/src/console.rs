//! The first serial port (a 16550): text for people, and what they type. One exit a byte: what programs
//! need goes through [`crate::control`] where there is such a channel.

use core::fmt::{self, Write};

use spin::Mutex;
use tidevm_abi::SERIAL_PORT;

use crate::cpu::ioapic::{Line, Trigger};
use crate::cpu::{port_read, port_write};

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // An emulated port is ready as long as somebody reads what it writes. What nobody takes
            // for so long is lost (Linux `wait_for_xmitr`, 10 ms).
            (0..MOST_LOOKS).find(|_| port_read(SERIAL_PORT + STATUS) & EMPTY != 0);
            port_write(SERIAL_PORT, byte);
        }
        Ok(())
    }
}

/// ISA interrupt of the port.
const INTERRUPT: u32 = 4;
/// Registers, as offsets: interrupt enable and line status.
const ENABLE: u16 = 1;
const STATUS: u16 = 5;
const RECEIVED: u8 = 1;
const EMPTY: u8 = 1 << 5;
/// Each takes at least a microsecond.
const MOST_LOOKS: u32 = 10_000;
/// What a port that is not there reads as.
const NO_PORT: u8 = 0xff;

/// Has the port interrupt for each byte that comes. `None` when there is no port.
pub fn listen() -> Option<Line> {
    if port_read(SERIAL_PORT + STATUS) == NO_PORT {
        return None;
    }
    let line = Line::route(INTERRUPT, Trigger::Edge)?;
    port_write(SERIAL_PORT + ENABLE, RECEIVED);
    Some(line)
}

/// The next byte that came.
pub fn read() -> Option<u8> {
    (port_read(SERIAL_PORT + STATUS) & RECEIVED != 0).then(|| port_read(SERIAL_PORT))
}

static SERIAL: Mutex<Serial> = Mutex::new(Serial);

/// Prints; used through [`println!`] and [`print!`].
pub fn write(text: fmt::Arguments<'_>) {
    // Writing to the port cannot fail.
    let _ = SERIAL.lock().write_fmt(text);
}

/// Prints even if the lock's holder will never release it: for the panic handler.
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
