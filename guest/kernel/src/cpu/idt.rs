//! The interrupt descriptor table: which vectors have an entry, the same for all CPUs.
//!
//! Mirrors Linux `arch/x86/kernel/idt.c`. Every entry leads to the common path of `trap.s`, which restores all registers
//! that it touches.
//!
//! Invariant: an entry that is present stays as it is.
#![expect(unsafe_code, reason = "names the interrupt entries and loads the table")]

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, Segment};
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use crate::cpu;

/// The bits of a gate that is present, for ring 0, and entered with interrupts off.
const INTERRUPT_GATE: u64 = 0x8e << 40;

/// An entry of the IDT (Intel SDM volume 3, 6.14.1): two words.
type Gate = [AtomicU64; 2];
/// An entry that is zero is not present.
static IDT: [Gate; 256] = [const { [const { AtomicU64::new(0) }; 2] }; 256];

unsafe extern "C" {
    safe static interrupt_entries: u8;
}

/// Lets the interrupt or exception `vector` come. The boot CPU alone calls it.
pub fn open(vector: u8) {
    let code = u64::from(CS::get_reg().0);
    let entry = (&raw const interrupt_entries) as u64 + 16 * u64::from(vector);
    let low =
        entry & 0xffff | code << 16 | stack_of(vector) << 32 | INTERRUPT_GATE | (entry >> 16 & 0xffff) << 48;
    let gate = &IDT[usize::from(vector)];
    // The low word, which has the bit that the entry is present, comes last.
    gate[1].store(entry >> 32, Ordering::Relaxed);
    gate[0].store(low, Ordering::Release);
}

/// The interrupt stack of an exception, as the IDT counts them: from 1 on, and 0 is the stack of the interrupted code.
fn stack_of(vector: u8) -> u64 {
    match vector {
        2 | 12 | 14 | 18 => u64::from(cpu::FAULT_STACK) + 1,
        8 => u64::from(cpu::DOUBLE_FAULT_STACK) + 1,
        _ => 0,
    }
}

/// Loads the table on this CPU.
pub fn load() {
    let base = VirtAddr::from_ptr(&raw const IDT);
    let table = DescriptorTablePointer { limit: size_of_val(&IDT) as u16 - 1, base };
    // SAFETY: the table is a static, an entry that is present leads to `trap.s`, and `cpu::init` set up the stacks that
    // entries name.
    unsafe { lidt(&table) };
}
