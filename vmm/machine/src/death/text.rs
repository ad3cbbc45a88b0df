//! The text about a guest's death: the vCPU's registers, the code at its instruction pointer, and the last
//! lines on the serial port.

use std::fmt::Write;

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use tidevm_abi::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::View;
use crate::symbols;

/// Bytes shown at the instruction pointer. An instruction has at most 15.
const CODE: usize = 16;

/// The text, for people. `image` is the kernel file, and `serial_tail` is printable. It ends without a line
/// break.
#[must_use]
pub fn of_vcpu(vcpu: &VcpuFd, index: usize, view: &View, image: &[u8], serial_tail: &str) -> String {
    let mut text = match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            let mut text = registers(index, &regs, &sregs, image);
            let code = code(vcpu, sregs.cs.base.wrapping_add(regs.rip), view);
            text += &format!("\n  code at rip: {}", hex(&code));
            text
        }
        (Err(error), _) | (_, Err(error)) => {
            format!("  vcpu{index}: KVM does not give its registers: {error}")
        }
    };
    if !serial_tail.is_empty() {
        text += "\n";
        text += &last_lines(serial_tail);
    }
    text
}

/// The last lines on the serial port, for people. It ends without a line break.
#[must_use]
pub fn last_lines(serial_tail: &str) -> String {
    if serial_tail.is_empty() {
        return "  nothing is on the serial port".to_owned();
    }
    let mut text = "  last on the serial port:".to_owned();
    for line in serial_tail.lines() {
        text += &format!("\n  | {line}");
    }
    text
}

fn registers(index: usize, regs: &kvm_regs, sregs: &kvm_sregs, image: &[u8]) -> String {
    let mut text = format!("  vcpu{index} at rip {:#018x}", regs.rip);
    if let Some(name) = symbols::name_at(image, regs.rip) {
        text += &format!(" in {name}");
    }
    let named = [
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
    ];
    for (position, (name, value)) in named.into_iter().enumerate() {
        text += if position % 4 == 0 { "\n  " } else { "  " };
        // Writing to a string does not fail.
        let _ = write!(text, "{name:>4} {value:016x}");
    }
    text
}

/// The bytes from `address` on, read through the guest's page tables, up to the first one that is not mapped.
fn code(vcpu: &VcpuFd, address: u64, view: &View) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < CODE {
        let linear = address.wrapping_add(code.len() as u64);
        let Ok(translation) = vcpu.translate_gva(linear) else { break };
        if translation.valid == 0 {
            break;
        }
        let in_page = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
        let mut bytes = vec![0; in_page.min(CODE - code.len())];
        if view.read_slice(&mut bytes, GuestAddress(translation.physical_address)).is_err() {
            break;
        }
        code.append(&mut bytes);
    }
    code
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "not mapped, or not in memory".to_owned();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
