//! The end of the guest by a panic or an exception, with a panic text on the serial port.
//!
//! Takes the place of Linux `panic`. Nothing here takes a lock or allocates.

use core::fmt;
use core::panic::Location;
use core::sync::atomic::{AtomicUsize, Ordering};

use tidevm_abi::{EXIT_PORT, ExitCode};

use crate::console::print_in_panic;
use crate::cpu::{self, port_write};

/// One more than the number of the CPU that writes the panic text; the other CPUs stop without one.
static PANICKING: AtomicUsize = AtomicUsize::new(0);

/// Ends the guest for `reason`: writes the panic text on the serial port, then `code` for the VMM.
pub fn die(code: ExitCode, reason: fmt::Arguments<'_>) -> ! {
    let me = cpu::this() + 1;
    match PANICKING.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            print_in_panic(format_args!("\npanic on CPU {}: {reason}\n", cpu::this()));
            port_write(EXIT_PORT, code as u8);
        }
        // This CPU faulted while it wrote its panic text. The text so far has to do.
        Err(reporting) if reporting == me => port_write(EXIT_PORT, code as u8),
        Err(_) => {}
    }
    cpu::halt()
}

/// Ends the guest because the kernel has no memory for something that boot cannot go on without. The VMM can
/// tell this panic from every other one ([`ExitCode::OutOfMemory`]).
#[track_caller]
pub fn out_of_memory(reason: fmt::Arguments<'_>) -> ! {
    die(ExitCode::OutOfMemory, format_args!("{reason} ({})", Location::caller()))
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(location) => die(ExitCode::Panic, format_args!("{} ({location})", info.message())),
        None => die(ExitCode::Panic, format_args!("{}", info.message())),
    }
}
