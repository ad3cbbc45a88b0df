//! Interrupts and exceptions: the IDT and the one handler that all its entries lead to.
//!
//! Takes the place of Linux `arch/x86/kernel/traps.c` and `irq.c`. It differs on purpose: the handler only
//! sets flags and flushes TLBs, and the job loop does the work. So memory management never runs in interrupt
//! context, and none of its locks needs interrupts off. An exception ends the guest.
#![expect(unsafe_code, reason = "installs interrupt entries")]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt;

use tidevm_abi::ExitCode;
use x86_64::VirtAddr;
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::InterruptDescriptorTable;

use crate::cpu::ioapic::{self, FIRST_VECTOR};
use crate::cpu::{self, lapic, panic, stack, tlb};

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

struct Idt(UnsafeCell<InterruptDescriptorTable>);
// SAFETY: `init` writes it once, on the boot CPU, before any other CPU runs; it is read-only afterwards.
unsafe impl Sync for Idt {}
static IDT: Idt = Idt(UnsafeCell::new(InterruptDescriptorTable::new()));

unsafe extern "C" {
    static interrupt_entries: u8;
}

/// The vectors of interrupts that can come. Any other one is a fault: its entry is not present.
fn interrupts() -> impl Iterator<Item = u8> {
    let devices = FIRST_VECTOR..FIRST_VECTOR + ioapic::NR_GSI as u8;
    devices.chain([lapic::TIMER, lapic::WAKE, lapic::FLUSH, lapic::SPURIOUS])
}

/// Fills the IDT. Called once, on the boot CPU.
pub fn init() {
    // Firmware may have left the 8259s enabled, at vectors that belong to exceptions.
    for mask in LEGACY_PIC_MASKS {
        cpu::port_write(mask, 0xff);
    }
    let entries = (&raw const interrupt_entries) as u64;
    let entry = |vector: u64| VirtAddr::new(entries + 16 * vector);
    // SAFETY: only the boot CPU runs, so no other CPU accesses the table. Every entry leads to the common
    // path of `trap.s`, which restores all registers it touches, and `cpu::init` set up the stack index.
    unsafe {
        let idt = &mut *IDT.0.get();
        idt.divide_error.set_handler_addr(entry(0));
        idt.debug.set_handler_addr(entry(1));
        idt.non_maskable_interrupt.set_handler_addr(entry(2)).set_stack_index(cpu::FAULT_STACK);
        idt.breakpoint.set_handler_addr(entry(3));
        idt.overflow.set_handler_addr(entry(4));
        idt.bound_range_exceeded.set_handler_addr(entry(5));
        idt.invalid_opcode.set_handler_addr(entry(6));
        idt.device_not_available.set_handler_addr(entry(7));
        idt.double_fault.set_handler_addr(entry(8)).set_stack_index(cpu::DOUBLE_FAULT_STACK);
        idt.invalid_tss.set_handler_addr(entry(10));
        idt.segment_not_present.set_handler_addr(entry(11));
        idt.stack_segment_fault.set_handler_addr(entry(12)).set_stack_index(cpu::FAULT_STACK);
        idt.general_protection_fault.set_handler_addr(entry(13));
        idt.page_fault.set_handler_addr(entry(14)).set_stack_index(cpu::FAULT_STACK);
        idt.x87_floating_point.set_handler_addr(entry(16));
        idt.alignment_check.set_handler_addr(entry(17));
        idt.machine_check.set_handler_addr(entry(18)).set_stack_index(cpu::FAULT_STACK);
        idt.simd_floating_point.set_handler_addr(entry(19));
        for vector in interrupts() {
            idt[vector].set_handler_addr(entry(u64::from(vector)));
        }
    }
}

/// Loads the IDT on this CPU and starts its local APIC.
pub fn init_cpu() {
    // SAFETY: the table is a static, and nothing writes it after `init`.
    unsafe { (*IDT.0.get()).load_unsafe() };
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
        _ => panic::die(ExitCode::Panic, format_args!("{frame}")),
    }
    cpu::area(cpu::this()).wakeup.raise();
    lapic::acknowledge();
}
