//! Interrupts and exceptions: the IDT and the one handler that all its entries lead to.
//!
//! Takes the place of Linux `arch/x86/kernel/traps.c` and `irq.c`. It differs on purpose: the handler only
//! sets flags and flushes TLBs, and the job loop does the work. So memory management never runs in interrupt
//! context, and none of its locks needs interrupts off. An exception ends the guest.
#![expect(unsafe_code, reason = "installs interrupt entries")]

use core::arch::global_asm;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use tidevm_abi::ExitCode;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, Segment};
use x86_64::instructions::tables::lidt;
use x86_64::registers::control::Cr2;
use x86_64::structures::DescriptorTablePointer;

use crate::cpu::ioapic::{self, FIRST_VECTOR};
use crate::cpu::{self, lapic, panic, stack, tlb};

global_asm!(
    include_str!("trap.s"),
    interrupt = sym interrupt,
    options(att_syntax)
);

/// Mask registers of the two 8259s.
const LEGACY_PIC_MASKS: [u16; 2] = [0x21, 0xa1];

/// The bits of a gate that is present, for ring 0, and entered with interrupts off.
const INTERRUPT_GATE: u64 = 0x8e << 40;

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

/// An entry of the IDT (Intel SDM volume 3, 6.14.1): two words.
type Gate = [AtomicU64; 2];
/// [`init`] writes it once. An entry that is zero is not present.
static IDT: [Gate; 256] = [const { [const { AtomicU64::new(0) }; 2] }; 256];

unsafe extern "C" {
    safe static interrupt_entries: u8;
}

/// The exceptions that can come, as a set of vectors. The others are reserved, or no processor has them.
const CAN_COME: u32 = 0b1111_0111_1101_1111_1111;

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
    // Every entry leads to the common path of `trap.s`, which restores all registers that it touches.
    let code = u64::from(CS::get_reg().0);
    let exceptions = (0..EXCEPTIONS.len() as u8).filter(|&vector| CAN_COME & 1 << vector != 0);
    for vector in exceptions.chain(interrupts()) {
        let entry = (&raw const interrupt_entries) as u64 + 16 * u64::from(vector);
        let low = entry & 0xffff
            | code << 16
            | stack_of(vector) << 32
            | INTERRUPT_GATE
            | (entry >> 16 & 0xffff) << 48;
        let gate = &IDT[usize::from(vector)];
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(entry >> 32, Ordering::Relaxed);
    }
}

/// The interrupt stack of an exception, as the IDT counts them: from 1 on, and 0 is the stack of the interrupted code.
fn stack_of(vector: u8) -> u64 {
    match vector {
        2 | 12 | 14 | 18 => u64::from(cpu::FAULT_STACK) + 1,
        8 => u64::from(cpu::DOUBLE_FAULT_STACK) + 1,
        _ => 0,
    }
}

/// Loads the IDT on this CPU and starts its local APIC.
pub fn init_cpu() {
    let base = VirtAddr::from_ptr(&raw const IDT);
    let table = DescriptorTablePointer { limit: size_of_val(&IDT) as u16 - 1, base };
    // SAFETY: the table is a static, `init` has filled it, and `cpu::init` set up the stacks that it names.
    unsafe { lidt(&table) };
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
