//! What CPUID tells a guest about its vCPUs.
//!
//! KVM's own answer (`KVM_GET_SUPPORTED_CPUID`), completed where KVM leaves it to the VMM: the hypervisor
//! bit, the TSC deadline timer, and the topology. All vCPUs are cores of one package.
//!
//! Invariant: every leaf that holds a local APIC id holds the id of the vCPU that reads it.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

/// CPUID leaf 1, ECX: the local APIC timer counts to a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID leaf 1, ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID leaf 1, EDX: EBX names the number of logical processors.
const HTT: u32 = 1 << 28;

/// CPUID leaves that hold the topology, one level per sub-leaf.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// CPUID leaf with the number of physical address bits, in the lowest byte of EAX.
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// The number of physical address bits of a CPU without that leaf.
const LEAST_ADDRESS_BITS: u32 = 36;

/// The CPUID leaves that all vCPUs have in common. [`set_cpuid`] adds each vCPU's own identity.
///
/// # Errors
/// What KVM says.
pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx |= HYPERVISOR;
        if deadline {
            entry.ecx |= TSC_DEADLINE;
        }
    }
    for function in TOPOLOGY {
        add_levels(&mut cpuid, function);
    }
    Ok(cpuid)
}

/// The number of bits of a vCPU's physical addresses.
pub fn address_bits(cpuid: &CpuId) -> u32 {
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == ADDRESS_SIZES);
    leaf.map_or(LEAST_ADDRESS_BITS, |leaf| leaf.eax & 0xff)
}

/// Adds levels 1 and 2 to a topology leaf. KVM gives level 0 only and leaves the others to the VMM.
fn add_levels(cpuid: &mut CpuId, function: u32) {
    let levels: Vec<_> =
        cpuid.as_slice().iter().filter(|entry| entry.function == function).copied().collect();
    let Some(first) = levels.iter().find(|entry| entry.index == 0).copied() else { return };
    for index in [1, 2] {
        if levels.iter().all(|entry| entry.index != index) {
            // Fails when the list is full. The guest then sees one level fewer.
            drop(cpuid.push(kvm_cpuid_entry2 { index, ..first }));
        }
    }
}

/// Sets the CPUID of vCPU `id` of `count`. Its local APIC id is `id`, and all vCPUs are cores of one
/// package.
///
/// # Errors
/// What KVM says.
pub fn set_cpuid(vcpu: &VcpuFd, supported: &CpuId, id: u8, count: u8) -> Result<(), kvm_ioctls::Error> {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        identify(entry, id, count);
    }
    vcpu.set_cpuid2(&cpuid)
}

fn identify(entry: &mut kvm_cpuid_entry2, id: u8, count: u8) {
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | u32::from(count) << 16 | u32::from(id) << 24;
            if count > 1 {
                entry.edx |= HTT;
            }
        }
        // Deterministic cache parameters: bits 31-26 are the number of cores of the package, minus one.
        0x4 if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3ff_ffff | (u32::from(count) - 1).min(0x3f) << 26;
        }
        // Extended topology: level 0 is threads (one per core), level 1 is cores.
        0xb | 0x1f => {
            let core_bits = u8::BITS - (count - 1).leading_zeros();
            let (shift, threads, kind) = match entry.index {
                0 => (0, 1, 1),
                1 => (core_bits, count.into(), 2),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = threads;
            entry.ecx = entry.index | kind << 8;
            entry.edx = id.into();
        }
        0x8000_001e => entry.eax = id.into(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{ADDRESS_SIZES, CpuId, TOPOLOGY, add_levels, address_bits, identify, kvm_cpuid_entry2};

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: 1, ..Default::default() }
    }

    #[test]
    fn every_leaf_agrees_on_the_apic_id() {
        let mut leaves = [entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0x1f, 0), entry(0x8000_001e, 0)];
        leaves.iter_mut().for_each(|leaf| identify(leaf, 3, 5));
        assert_eq!(leaves[0].ebx >> 24, 3);
        assert_eq!(leaves[0].ebx >> 16 & 0xff, 5);
        assert_eq!((leaves[1].edx, leaves[2].edx, leaves[3].edx, leaves[4].eax), (3, 3, 3, 3));
    }

    #[test]
    fn addresses_are_as_long_as_the_host_says() {
        let sizes = kvm_cpuid_entry2 { eax: 0x3028, ..entry(ADDRESS_SIZES, 0) };
        assert_eq!(address_bits(&CpuId::from_entries(&[entry(1, 0), sizes]).unwrap()), 40);
        assert_eq!(address_bits(&CpuId::from_entries(&[entry(1, 0)]).unwrap()), 36);
    }

    #[test]
    fn levels_that_kvm_leaves_out_are_added() {
        let first = kvm_cpuid_entry2 { flags: 1, ..entry(0xb, 0) };
        let mut cpuid = CpuId::from_entries(&[entry(1, 0), first]).unwrap();
        TOPOLOGY.iter().for_each(|&function| add_levels(&mut cpuid, function));
        add_levels(&mut cpuid, 0xb);
        let entries: Vec<_> =
            cpuid.as_slice().iter().map(|leaf| (leaf.function, leaf.index, leaf.flags)).collect();
        assert_eq!(entries, [(1, 0, 0), (0xb, 0, 1), (0xb, 1, 1), (0xb, 2, 1)]);
    }

    #[test]
    fn the_package_holds_all_cores() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (254, 8)] {
            let mut leaf = entry(0xb, 1);
            identify(&mut leaf, 0, count);
            assert_eq!((leaf.eax, leaf.ebx, leaf.ecx), (bits, count.into(), 1 | 2 << 8), "{count} vCPUs");
        }
    }
}
