//! What a vCPU is before its first instruction: CPUID and registers.
//!
//! Mirrors the x86/HVM direct boot ABI for the first vCPU; the others wait for INIT and SIPI in the
//! state that KVM resets them to.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_segment};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::boot::Entry;

/// CPUID leaf 1, ECX: the local APIC timer counts to a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID leaf 1, ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID leaf 1, EDX: EBX names the number of logical processors.
const HTT: u32 = 1 << 28;

/// CPUID leaves that hold the topology, one level a sub-leaf.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// CPUID leaf whose EAX has the number of physical address bits in its lowest byte, and that number
/// where there is no such leaf.
const ADDRESS_SIZES: u32 = 0x8000_0008;
const LEAST_ADDRESS_BITS: u32 = 36;

/// RFLAGS: the bit that is always set.
const RFLAGS: u64 = 1 << 1;
/// CR0: protected mode; the x87 kind that is always there.
const CR0: u64 = 1 << 0 | 1 << 4;

/// What CPUID says on all vCPUs, but for what names the vCPU.
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

/// How many bits the physical addresses of vCPUs have.
pub fn address_bits(cpuid: &CpuId) -> u32 {
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == ADDRESS_SIZES);
    leaf.map_or(LEAST_ADDRESS_BITS, |leaf| leaf.eax & 0xff)
}

/// KVM gives the first level of a topology leaf only, and leaves the others to the VMM.
fn add_levels(cpuid: &mut CpuId, function: u32) {
    let levels: Vec<_> =
        cpuid.as_slice().iter().filter(|entry| entry.function == function).copied().collect();
    let Some(first) = levels.iter().find(|entry| entry.index == 0).copied() else { return };
    for index in [1, 2] {
        if levels.iter().all(|entry| entry.index != index) {
            // Fails when the list is full, and then there is no room for these leaves.
            drop(cpuid.push(kvm_cpuid_entry2 { index, ..first }));
        }
    }
}

/// Tells vCPU `id` of `count` who it is: its local APIC id is `id`, all vCPUs are cores of one
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
        // Deterministic cache parameters: bits 31-26 are the cores of the package less one.
        0x4 if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3ff_ffff | (u32::from(count) - 1).min(0x3f) << 26;
        }
        // Extended topology: level 0 is threads (one a core), level 1 cores.
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

/// Puts the first vCPU to the kernel's entry: flat 32-bit protected mode, paging off, `ebx` or `esi`
/// leads to what the boot protocol wants.
///
/// # Errors
/// What KVM says.
pub fn enter_kernel(vcpu: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (entry.address, RFLAGS);
    (regs.rbx, regs.rsi) = (entry.start_info, entry.zero_page);
    vcpu.set_regs(&regs)?;
    let mut sregs = vcpu.get_sregs()?;
    // Selectors are arbitrary: a guest loads no segment before it has a table of its own.
    let code = flat(0x8, 0xb);
    let data = flat(0x10, 0x3);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
    (sregs.cr0, sregs.cr4, sregs.efer) = (CR0, 0, 0);
    vcpu.set_sregs(&sregs)
}

/// A 32-bit segment of 4 GiB from 0, readable and writable or executable, touched before.
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
