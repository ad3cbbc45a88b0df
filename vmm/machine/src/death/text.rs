//! The text about a guest's death: the vCPU's registers, the code at its instruction pointer, and the last
//! lines on the serial port.

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use tidevm_abi::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress};

use super::unplugged::Unplugged;
use crate::memory::View;
use crate::registers;
use crate::symbols;

/// Bytes shown at the instruction pointer. An instruction has at most 15.
const CODE: usize = 16;

/// The text, for people. `unplugged` are the vCPU's addresses in memory that is not plugged, `image` is the kernel
/// file, and `serial_tail` is printable. It ends without a line break.
#[must_use]
pub fn of_vcpu(
    vcpu: &VcpuFd,
    index: usize,
    view: &View,
    unplugged: &[Unplugged],
    image: &[u8],
    serial_tail: &str,
) -> String {
    let mut text = match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            let mut text = place(index, &regs, &sregs, image);
            let code = code(vcpu, sregs.cs.base.wrapping_add(regs.rip), view);
            text += &format!("\n  code at rip: {}", hex(&code));
            for address in unplugged {
                text += &format!("\n  {address}");
            }
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

fn place(index: usize, regs: &kvm_regs, sregs: &kvm_sregs, image: &[u8]) -> String {
    let mut text = format!("  vcpu{index} at rip {:#018x}", regs.rip);
    if let Some(name) = symbols::name_at(image, regs.rip) {
        text += &format!(" in {name}");
    }
    text + &registers::rows(&registers::named(regs, sregs), 4, 2)
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
