//! What the threads of a machine that can be saved call beside their other rules. The files of the snapshot are open.

use kvm_bindings::{kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_msrs, kvm_xcrs, kvm_xsave};
use syscalls::Sysno;

use super::{READ, Rule, WRITE, any, ioctl, kvm};

/// The rules of a vCPU, whose state its own thread reads.
pub(super) const VCPU_SAVES: &[Rule] = &[ioctl(
    &[
        (kvm(0x88, READ | WRITE, size_of::<kvm_msrs>()), "KVM_GET_MSRS"),
        (kvm(0xa1, READ, size_of::<kvm_debugregs>()), "KVM_GET_DEBUGREGS"),
        (kvm(0xa4, READ, size_of::<kvm_xsave>()), "KVM_GET_XSAVE"),
        (kvm(0xa6, READ, size_of::<kvm_xcrs>()), "KVM_GET_XCRS"),
    ],
    "the state of a vCPU that is saved",
)];

/// The rules of the thread that saves the machine.
pub(super) const SESSION_SAVES: &[Rule] = &[
    ioctl(
        &[
            (kvm(0x62, READ | WRITE, size_of::<kvm_irqchip>()), "KVM_GET_IRQCHIP"),
            (kvm(0x7c, READ, size_of::<kvm_clock_data>()), "KVM_GET_CLOCK"),
        ],
        "the interrupt chips and the clock of a machine that is saved",
    ),
    any(Sysno::ftruncate, "the files of the snapshot"),
    any(Sysno::pwrite64, "the files of the snapshot"),
    any(Sysno::fsync, "the files of the snapshot"),
    any(Sysno::fdatasync, "what the guest has written to its disks"),
    any(Sysno::read, "the answer of the child that gives the snapshot its name"),
];
