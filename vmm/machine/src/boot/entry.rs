//! The state of the first vCPU at the kernel's first instruction.
//!
//! Mirrors what PVH and Linux's 32-bit boot protocol have in common: flat 32-bit protected mode with paging
//! off, and one register that holds the address of the boot information. The other vCPUs wait for INIT and
//! SIPI in the state to which KVM resets them.

use kvm_bindings::kvm_segment;
use kvm_ioctls::VcpuFd;

/// RFLAGS: the bit that is always set.
const RFLAGS: u64 = 1 << 1;
/// CR0: protected mode, and the x87 type bit, which is always set.
const CR0: u64 = 1 << 0 | 1 << 4;

/// How the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Address of the first instruction, in flat 32-bit protected mode.
    pub address: u64,
    /// Content of `ebx`: the address of PVH's start info, or 0.
    pub start_info: u64,
    /// Content of `esi`: the address of Linux's boot parameters, or 0.
    pub zero_page: u64,
}

impl Entry {
    /// Sets the registers of `vcpu`, the first one, so that it enters the kernel when it runs.
    ///
    /// # Errors
    /// KVM's error.
    pub fn prepare(self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let mut regs = vcpu.get_regs()?;
        (regs.rip, regs.rflags) = (self.address, RFLAGS);
        (regs.rbx, regs.rsi) = (self.start_info, self.zero_page);
        vcpu.set_regs(&regs)?;
        let mut sregs = vcpu.get_sregs()?;
        // Selectors are arbitrary: a guest loads no segment before it has a descriptor table of its own.
        let code = flat(0x8, 0xb);
        let data = flat(0x10, 0x3);
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
        (sregs.cr0, sregs.cr4, sregs.efer) = (CR0, 0, 0);
        vcpu.set_sregs(&sregs)
    }
}

/// A 32-bit segment of 4 GiB from address 0 on, present and marked as accessed.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}
