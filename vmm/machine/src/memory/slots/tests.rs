//! Slots of a machine of KVM: the kernel's own checks show what it was told, and a CPU sees where a slot leads.

use std::io::Write;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};

use super::{KvmSlots, Slots};
use crate::memory::fake::offsets;
use crate::memory::layout::KVM_TSS;
use crate::memory::mapping::{Mapping, Window};

const MIB: u64 = 1 << 20;

/// The slots of a new machine, and memory for them. [`None`] without KVM, which is told.
fn machine(name: &str) -> Option<(KvmSlots, Arc<Mapping>)> {
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm());
    match vm {
        Ok(vm) => Some((KvmSlots::new(Arc::new(vm)), Arc::new(Mapping::reserve(8 * MIB).unwrap()))),
        Err(error) => {
            writeln!(std::io::stderr(), "SKIP {name}: /dev/kvm cannot be used: {error}").unwrap();
            None
        }
    }
}

/// KVM refuses slots that overlap, so a refusal shows that a slot is there, and a success that it is gone.
#[test]
fn a_slot_is_there_until_it_is_removed_and_its_number_is_used_again() {
    let name = "a_slot_is_there_until_it_is_removed_and_its_number_is_used_again";
    let Some((mut slots, mapping)) = machine(name) else { return };
    let add = |slots: &mut KvmSlots, mib: u64, part| {
        slots.add(GuestAddress(mib * MIB), &mapping, part).map_err(|failed| failed.error.raw_os_error())
    };
    let all = offsets(0..8 * MIB);
    assert_eq!(add(&mut slots, 0, all), Ok(0));
    assert_eq!(add(&mut slots, 4, all), Err(Some(libc::EEXIST)), "it would overlap");
    assert_eq!(add(&mut slots, 8, all), Ok(1), "a slot that is refused has no number");
    assert_eq!(add(&mut slots, 32, offsets(4 * MIB..8 * MIB)), Ok(2));
    slots.remove(0).unwrap();
    slots.remove(1).unwrap();
    assert_eq!(add(&mut slots, 4, all), Ok(0), "the addresses of both are free");
    assert_eq!(add(&mut slots, 12, offsets(0..4 * MIB)), Ok(1));
    assert_eq!(add(&mut slots, 36, all), Ok(3), "the third slot has 4 MiB");
    assert_eq!(add(&mut slots, 35, all), Err(Some(libc::EEXIST)));
    assert!(slots.remove(9).is_err(), "there is no such slot");
}

#[test]
fn a_slot_keeps_its_memory_and_does_not_reach_beyond_it() {
    let Some((mut slots, mapping)) = machine("a_slot_keeps_its_memory_and_does_not_reach_beyond_it") else {
        return;
    };
    for outside in [0..8 * MIB + 4096, 8 * MIB..9 * MIB] {
        let refused = slots.add(GuestAddress(0), &mapping, offsets(outside)).unwrap_err();
        assert_eq!(refused.error.raw_os_error(), Some(libc::EINVAL));
    }
    assert_eq!(Arc::strong_count(&mapping), 1);
    let [low, high] = [offsets(0..4 * MIB), offsets(4 * MIB..8 * MIB)];
    assert_eq!(slots.add(GuestAddress(0), &mapping, low).unwrap(), 0);
    assert_eq!(slots.add(GuestAddress(4 * MIB), &mapping, high).unwrap(), 1);
    assert_eq!(Arc::strong_count(&mapping), 3);
    slots.remove(1).unwrap();
    assert_eq!(Arc::strong_count(&mapping), 2);
    drop(slots);
    assert_eq!(Arc::strong_count(&mapping), 1);
}

/// Each half of the memory has a program that writes its own number to a port. A CPU runs the one that the slot shows.
#[test]
fn a_slot_leads_to_its_own_part_of_the_memory() {
    let Some((mut slots, mapping)) = machine("a_slot_leads_to_its_own_part_of_the_memory") else { return };
    mapping.open(mapping.all()).unwrap();
    // SAFETY: all of the mapping is open, and no code closes it.
    let window = unsafe { Window::new(Arc::clone(&mapping), mapping.all(), GuestAddress(0)) };
    for half in [0, 1] {
        // mov al, half; out 0x10, al; hlt
        let program = [0xb0, half, 0xe6, 0x10, 0xf4];
        window.write_slice(&program, MemoryRegionAddress(u64::from(half) * 4 * MIB)).unwrap();
    }
    slots.add(GuestAddress(0), &mapping, offsets(4 * MIB..8 * MIB)).unwrap();
    slots.vm.set_tss_address(KVM_TSS as usize).unwrap();
    let mut cpu = slots.vm.create_vcpu(0).unwrap();
    let mut segments = cpu.get_sregs().unwrap();
    (segments.cs.base, segments.cs.selector) = (0, 0);
    cpu.set_sregs(&segments).unwrap();
    let mut registers = cpu.get_regs().unwrap();
    (registers.rip, registers.rflags) = (0, 2);
    cpu.set_regs(&registers).unwrap();
    match cpu.run().unwrap() {
        VcpuExit::IoOut(0x10, [1]) => {}
        exit => panic!("{exit:?}"),
    }
}
