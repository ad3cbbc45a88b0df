//! Interrupts and exceptions: which may come, and the one handler that all entries of the IDT lead to.
//!
//! Takes the place of Linux `arch/x86/kernel/traps.c` and `irq.c`. It differs on purpose: the handler only
//! sets flags and flushes TLBs, and the job loop does the work. So memory management never runs in interrupt
//! context, and none of its locks needs interrupts off. An exception ends the guest.
use core::arch::global_asm;
use core::fmt;

use tidevm_abi::ExitCode;
use x86_64::registers::control::Cr2;

use crate::cpu::ioapic::{self, FIRST_VECTOR};
use crate::cpu::{self, idt, lapic, msi, panic, stack, tlb};

global_asm!(
    include_str!("trap.s"),
    interrupt = sym interrupt,
    options(att_syntax)
);

/// Mask registers of the two 8259s.
const LEGACY_PIC_MASKS: [u16; 2] = [0x21, 0xa1];

/// Registers as `trap.s` leaves them.
#[repr(C)]
struct Frame {
    /// r15, r14, ..., rcx, rax, in the order of their addresses.
    registers: [u64; 15],
    vector: u64,
    /// The CPU's error code, or zero.
    error: u64,
    /// Address of the interrupted instruction.
    rip: u64,
    cs: u64,
    rflags: u64,
    /// Stack pointer at the interrupted instruction.
    rsp: u64,
    ss: u64,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Cr2::read_raw();
        if let (8 | 14, Some((cpu, stack))) = (self.vector, stack::guard_at(address)) {
            write!(f, "stack overflow: CPU {cpu} has used up {stack}, ")?;
        }
        let name = EXCEPTIONS.get(self.vector as usize).unwrap_or(&"unexpected interrupt");
        // An error code with bit 1 set names an entry of the IDT (Intel SDM volume 3, 6.13).
        if self.vector == 11 && self.error & 2 != 0 {
            write!(f, "unexpected interrupt {}, ", self.error >> 3)?;
        }
        write!(
            f,
            "{name} (vector {}, error {:#x}) at {:#x}, stack {:#x}, fault address {:#x}\nregisters r15..rax {:x?}",
            self.vector, self.error, self.rip, self.rsp, address, self.registers
        )
    }
}

/// Names of the exceptions, by vector.
const EXCEPTIONS: [&str; 20] = [
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

/// The exceptions that can come, as a set of vectors. The others are reserved, or no processor has them.
const CAN_COME: u32 = 0b1111_0111_1101_1111_1111;

/// The vectors of interrupts that can come at any time. A driver that has messages opens theirs ([`msi`]). Any other
/// vector is a fault: its entry is not present.
fn interrupts() -> impl Iterator<Item = u8> {
    let devices = FIRST_VECTOR..FIRST_VECTOR + ioapic::NR_GSI as u8;
    devices.chain([lapic::TIMER, lapic::WAKE, lapic::FLUSH, lapic::SPURIOUS])
}

/// Opens the entries of exceptions and interrupts. Called once, on the boot CPU.
pub fn init() {
    // Firmware may have left the 8259s enabled, at vectors that belong to exceptions.
    for mask in LEGACY_PIC_MASKS {
        cpu::port_write(mask, 0xff);
    }
    let exceptions = (0..EXCEPTIONS.len() as u8).filter(|&vector| CAN_COME & 1 << vector != 0);
    exceptions.chain(interrupts()).for_each(idt::open);
}

/// Loads the IDT on this CPU and starts its local APIC.
pub fn init_cpu() {
    idt::load();
    lapic::init_cpu();
}

/// Called by `trap.s` for every interrupt and exception.
extern "C" fn interrupt(frame: &mut Frame) {
    let vector = frame.vector as u8;
    match vector {
        lapic::TIMER | lapic::WAKE => {}
        lapic::FLUSH => tlb::serve(),
        lapic::SPURIOUS => return,
        _ if u32::from(vector.wrapping_sub(FIRST_VECTOR)) < ioapic::NR_GSI => {
            ioapic::raise(u32::from(vector - FIRST_VECTOR));
        }
        _ if msi::raise(vector) => {}
        _ => panic::die(ExitCode::Panic, format_args!("{frame}")),
    }
    cpu::area(cpu::this()).wakeup.raise();
    lapic::acknowledge();
}
