//! How the guest ends the machine or has it start again: the exit port, ACPI's registers, and the keyboard controller.
//!
//! Mirrors Linux `machine_power_off` (`acpi_hw_extended_sleep`) and `native_machine_emergency_restart`, which tries ACPI's
//! reset register first and the keyboard controller second. Differs on purpose: the exit port comes before all of them,
//! because tidevm and QEMU tell a power-off from other ends by it.
//!
//! Nothing here takes a lock or allocates, but [`found`], which runs at boot.
#![expect(unsafe_code, reason = "writes registers where firmware's tables say they are")]

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tidevm_abi::{EXIT_PORT, ExitCode};
use tidevm_firmware::{Fadt, Register};

use crate::console::{print_in_panic, println};
use crate::cpu::time::Instant;
use crate::cpu::{self, port_write};
use crate::mem::paging::{self, TableSource};

/// The keyboard controller's command port, and the command that resets the machine.
const KEYBOARD: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// A VMM may end the machine by another thread than the one that runs the CPU.
const MILLIS_TO_END: u64 = 100;

/// Fields of the sleep control register (ACPI 6.5, section 4.8.3.7).
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;

/// A byte that is to be written to a register.
struct Store {
    /// The I/O port, or the virtual address, which is above all ports; 0 is none.
    place: AtomicU64,
    value: AtomicU8,
}

impl Store {
    const fn none() -> Self {
        Self { place: AtomicU64::new(0), value: AtomicU8::new(0) }
    }

    /// Notes that `value` is to be written to `register`.
    fn set(&self, register: Register, value: u8, tables: &mut dyn TableSource) {
        let place = match register {
            Register::Port(port) => port.into(),
            Register::Memory(address) => match paging::map_device(address, 1, tables) {
                Ok(start) => start as u64,
                Err(error) => {
                    println!("ACPI's register at {address:#x} is not used: {error:?}");
                    return;
                }
            },
        };
        self.value.store(value, Ordering::Relaxed);
        self.place.store(place, Ordering::Release);
    }

    /// Writes the byte, if there is a register, and gives the machine time to end.
    fn perform(&self) {
        let (place, value) = (self.place.load(Ordering::Acquire), self.value.load(Ordering::Relaxed));
        match u16::try_from(place) {
            Ok(0) => return,
            Ok(port) => port_write(port, value),
            // SAFETY: `set` mapped the register of one byte at this address, for good.
            Err(_) => unsafe { (place as *mut u8).write_volatile(value) },
        }
        wait_for_end();
    }
}

fn wait_for_end() {
    let end = Instant::in_millis(MILLIS_TO_END);
    while !end.has_passed() {
        core::hint::spin_loop();
    }
}

static POWER_OFF: Store = Store::none();
static RESET: Store = Store::none();

/// Notes what ACPI says: its registers, and the sleep type of the power-off.
pub fn found(fadt: &Fadt, sleep_type: Option<u8>, tables: &mut dyn TableSource) {
    if let Some((register, value)) = fadt.reset {
        RESET.set(register, value, tables);
    }
    if let (Some(register), Some(sleep_type)) = (fadt.sleep_control, sleep_type) {
        POWER_OFF.set(register, sleep_type << SLEEP_TYPE_SHIFT | SLEEP_ENABLE, tables);
    }
}

/// Ends the machine: writes [`ExitCode::PowerOff`] to the exit port, then powers off by ACPI.
pub fn off() -> ! {
    port_write(EXIT_PORT, ExitCode::PowerOff as u8);
    POWER_OFF.perform();
    print_in_panic(format_args!("the machine does not end; it is halted\n"));
    cpu::halt()
}

/// Resets the machine.
pub fn reset() -> ! {
    RESET.perform();
    port_write(KEYBOARD, KEYBOARD_RESET);
    wait_for_end();
    print_in_panic(format_args!("the machine does not reset; it is halted\n"));
    cpu::halt()
}
