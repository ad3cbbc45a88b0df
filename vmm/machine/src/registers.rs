//! The registers of a vCPU that are shown to people: in the text about a death, and in the report on a guest that
//! does not answer.

use std::fmt::Write;

use kvm_bindings::{kvm_regs, kvm_sregs};

/// A register: its name, and its value.
pub type Register = (&'static str, u64);

/// All of them except the instruction pointer, in the order in which they are shown.
#[must_use]
pub fn named(regs: &kvm_regs, sregs: &kvm_sregs) -> Vec<Register> {
    vec![
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rsp", regs.rsp),
        ("rbp", regs.rbp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rfl", regs.rflags),
        ("cs", sregs.cs.selector.into()),
        ("efer", sregs.efer),
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
        ("gdt", sregs.gdt.base),
        ("idt", sregs.idt.base),
    ]
}

/// Rows of `per_row` registers, aligned, each behind `indent` spaces. There is a line break before each row.
#[must_use]
pub fn rows(registers: &[Register], per_row: usize, indent: usize) -> String {
    let mut text = String::new();
    for row in registers.chunks(per_row.max(1)) {
        let cells: Vec<_> = row.iter().map(|(name, value)| format!("{name:>4} {value:016x}")).collect();
        // Writing to a string does not fail.
        let _ = write!(text, "\n{:indent$}{}", "", cells.join("  "));
    }
    text
}
