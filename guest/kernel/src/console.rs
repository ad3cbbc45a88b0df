//! Text for people, on the first serial port. One exit a byte: what programs need goes through
//! [`crate::control`] instead.

use core::fmt::{self, Write};

use spin::Mutex;
use tidevm_abi::SERIAL_PORT;

use crate::cpu::port_write;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // No look at the line status: the port is emulated and always ready, and the look
            // would be one more exit a byte.
            port_write(SERIAL_PORT, byte);
        }
        Ok(())
    }
}

static SERIAL: Mutex<Serial> = Mutex::new(Serial);

/// Prints; used through [`println!`].
pub fn print(text: fmt::Arguments<'_>) {
    // Writing to the port cannot fail.
    let _ = SERIAL.lock().write_fmt(text);
}

/// Prints even if the lock's holder will never release it: for the panic handler.
pub fn print_in_panic(text: fmt::Arguments<'_>) {
    let _ = Serial.write_fmt(text);
}

/// Prints one line.
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}
pub(crate) use println;
