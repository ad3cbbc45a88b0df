//! The least that a start can cost: this program, run again, asks KVM for a machine with the same guest, and does
//! nothing else. It has no options, no devices, no threads and no filters.
#![expect(unsafe_code, reason = "gives memory of this process to KVM")]

use std::env;
use std::io::Write;
use std::process::Command;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::guest::{ADDRESS, CODE};

/// Has this program run as the floor.
pub const ARGUMENT: &str = "--floor";
const MEMORY: usize = 128 << 20;

/// The command that does it.
pub fn command() -> Command {
    let mut command = Command::new(env::current_exe().expect("the path of this program"));
    command.arg(ARGUMENT);
    command
}

/// Runs the guest. Does not return: the guest halts for good.
pub fn run() {
    let kvm = Kvm::new().expect("/dev/kvm");
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("the CPUID of KVM");
    let machine = kvm.create_vm().expect("a machine");
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    memory.write_slice(&CODE, GuestAddress(ADDRESS.into())).expect("the guest fits");
    let host = memory.get_host_address(GuestAddress(0)).expect("the memory is there");
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: host as u64,
        ..Default::default()
    };
    // SAFETY: the memory outlives the machine, because this function does not return before the process ends.
    unsafe { machine.set_user_memory_region(region) }.expect("a memslot");
    machine.create_irq_chip().expect("an interrupt chip");
    let mut vcpu = machine.create_vcpu(0).expect("a vCPU");
    vcpu.set_cpuid2(&cpuid).expect("its CPUID");
    let mut registers = vcpu.get_regs().expect("its registers");
    (registers.rip, registers.rflags) = (ADDRESS.into(), 1 << 1);
    vcpu.set_regs(&registers).expect("its registers");
    let mut special = vcpu.get_sregs().expect("its special registers");
    let flat = |selector, type_| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    special.cs = flat(0x8, 0xb);
    (special.ds, special.es, special.ss) = (flat(0x10, 0x3), flat(0x10, 0x3), flat(0x10, 0x3));
    special.cr0 = 1 << 0 | 1 << 4;
    vcpu.set_sregs(&special).expect("its special registers");
    loop {
        if let VcpuExit::IoOut(_, bytes) = vcpu.run().expect("the guest runs") {
            let mut output = std::io::stdout();
            output.write_all(bytes).and_then(|()| output.flush()).expect("somebody reads");
        }
    }
}
