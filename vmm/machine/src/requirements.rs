//! What this VMM needs of a host's KVM.

use kvm_ioctls::{Cap, Kvm};

/// The version of KVM's interface. It has been the only one since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// The extensions of KVM that this VMM relies on.
pub const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
];

/// The first thing that `kvm` lacks.
pub fn missing(kvm: &Kvm) -> Option<&'static str> {
    if kvm.get_api_version() != API_VERSION {
        return Some("version 12 of its interface");
    }
    let missing = CAPABILITIES.into_iter().find(|&(capability, _)| !kvm.check_extension(capability));
    missing.map(|(_, name)| name)
}
