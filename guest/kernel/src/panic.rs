//! The end of a guest that found itself broken: a report on the serial port, then
//! the [`ExitCode`] of a panic. Nothing here takes a lock or allocates.

use core::fmt;
use core::panic::Location;
use core::sync::atomic::{AtomicBool, Ordering};

use tidevm_abi::{EXIT_PORT, ExitCode};

use crate::console::print_in_panic;
use crate::cpu::{self, port_write};
use crate::irq::Frame;

/// Set by the CPU whose panic is reported; others stop without a word.
static PANICKING: AtomicBool = AtomicBool::new(false);

/// Ends the guest for `reason`, with `code` for the VMM.
fn die(code: ExitCode, reason: fmt::Arguments<'_>) -> ! {
    if !PANICKING.swap(true, Ordering::AcqRel) {
        print_in_panic(format_args!("\npanic on CPU {}: {reason}\n", cpu::this()));
        port_write(EXIT_PORT, code as u8);
    }
    cpu::halt()
}

/// Ends the guest because boot cannot go on without memory that is not there. The VMM can tell this panic
/// from every other one ([`ExitCode::OutOfMemory`]).
#[track_caller]
pub fn out_of_memory(reason: fmt::Arguments<'_>) -> ! {
    die(ExitCode::OutOfMemory, format_args!("{reason} ({})", Location::caller()))
}

/// Ends the guest for an exception that nothing handles.
pub fn exception(frame: &Frame, fault_address: u64) -> ! {
    const NAMES: [&str; 20] = [
        "divide error",
        "debug",
        "NMI",
        "breakpoint",
        "overflow",
        "bound range exceeded",
        "invalid opcode",
        "device not available",
        "double fault",
        "coprocessor segment overrun",
        "invalid TSS",
        "segment not present",
        "stack-segment fault",
        "general protection fault",
        "page fault",
        "reserved",
        "x87 floating point",
        "alignment check",
        "machine check",
        "SIMD floating point",
    ];
    let name = NAMES.get(frame.vector as usize).unwrap_or(&"unexpected interrupt");
    die(
        ExitCode::Panic,
        format_args!(
            "{name} (vector {}, error {:#x}) at {:#x}, stack {:#x}, fault address {fault_address:#x}\nregisters r15..rax {:x?}",
            frame.vector, frame.error, frame.rip, frame.rsp, frame.registers
        ),
    )
}

/// Writes [`ExitCode::PowerOff`].
pub fn power_off() -> ! {
    port_write(EXIT_PORT, ExitCode::PowerOff as u8);
    print_in_panic(format_args!("the machine does not end; it is halted\n"));
    cpu::halt()
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(location) => die(ExitCode::Panic, format_args!("{} ({location})", info.message())),
        None => die(ExitCode::Panic, format_args!("{}", info.message())),
    }
}

#[cfg(not(target_os = "none"))]
const _: fn(ExitCode, fmt::Arguments<'_>) -> ! = die;
