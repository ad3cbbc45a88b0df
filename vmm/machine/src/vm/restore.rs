//! Restoring a machine: in which order the parts of a snapshot come back.
//!
//! Mirrors Firecracker's `build_microvm_from_snapshot` (`vmm/src/builder.rs`): memory, vCPUs, the clock, the interrupt chips, and
//! devices last, whose interrupts lead to the chips.
//!
//! Invariant: a guest runs only if all of it came back. Every part is new before, so that nothing has to be taken back.

use std::fmt::Display;
use std::sync::atomic::Ordering;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};

use super::shared::VmShared;
use crate::error::{StartError, kvm};
use crate::memory::Memory;
use crate::memory::range::GuestRange;
use crate::snapshot::machine::DevicesState;
use crate::snapshot::read::Restored;
use crate::snapshot::vcpu::VcpuError;
use crate::sync::lock;

/// The CPUID leaves of `restored`, if this host, whose leaves are `host`, can give them.
///
/// # Errors
/// It cannot.
pub(super) fn restored_cpuid(restored: &Restored, host: &CpuId) -> Result<CpuId, StartError> {
    restored.check_host(host.as_slice())?;
    let cpuid = CpuId::from_entries(&restored.state.cpuid);
    Ok(cpuid.map_err(|_| restored.snapshot.contradiction("it has too many CPUID leaves".to_owned()))?)
}

/// Makes everything usable that was plugged, and fills memory, which is new.
pub(super) fn restore_memory(restored: &Restored, memory: &Memory) -> Result<(), StartError> {
    for (index, mem) in restored.state.devices.mem.iter().enumerate() {
        let plugged = mem.plugged();
        let plugged = plugged
            .map_err(|error| restored.snapshot.contradiction(format!("hotplug device {index}: {error}")))?;
        for span in plugged.runs() {
            let range = GuestRange::new(span.addr()..span.end());
            let done = range.map(|range| memory.plug(index, range));
            if let Some(Err(error)) = done {
                return Err(restored
                    .snapshot
                    .host(format!("it does not plug what was plugged: {error}"))
                    .into());
            }
        }
    }
    Ok(restored.load_memory(memory)?)
}

/// Brings a new machine of KVM with its new vCPUs to the state of `restored`.
pub(super) fn restore_machine(
    restored: &Restored,
    machine: &VmFd,
    vcpus: &[VcpuFd],
) -> Result<(), StartError> {
    let state = &restored.state;
    for (index, (vcpu, saved)) in vcpus.iter().zip(&state.vcpus).enumerate() {
        let refused = |error: VcpuError| restored.snapshot.host(format!("vCPU {index}: {error}"));
        saved.apply(vcpu).map_err(refused)?;
    }
    let mut clock = state.clock;
    // The other flags tell what KVM knew of it.
    clock.flags = 0;
    machine.set_clock(&clock).map_err(kvm("set the clock"))?;
    for chip in &state.chips {
        machine.set_irqchip(chip).map_err(kvm("set the state of an interrupt chip"))?;
    }
    Ok(())
}

/// Brings new devices and what is known about the guest to the state of `restored`. The interrupts of the devices lead to the
/// machine of KVM, and its memory is there.
pub(super) fn restore_devices(restored: &Restored, shared: &VmShared) -> Result<(), StartError> {
    let (devices, state) = (&shared.devices, &restored.state);
    let refused =
        |what: &str, error: &dyn Display| restored.snapshot.contradiction(format!("{what}: {error}"));
    let DevicesState { control, mem, balloon, disks, serial } = &state.devices;
    lock(&devices.control).restore(control).map_err(|error| refused("the control channel", &error))?;
    for (index, (device, saved)) in devices.mem.iter().zip(mem).enumerate() {
        let restored = lock(&device.device).restore(saved);
        restored.map_err(|error| refused(&format!("hotplug device {index}"), &error))?;
    }
    if let (Some(device), Some(saved)) = (&devices.balloon, balloon) {
        lock(&device.device).restore(saved).map_err(|error| refused("the balloon", &error))?;
    }
    for (index, (device, saved)) in devices.disks.iter().zip(disks).enumerate() {
        let restored = lock(&device.device).restore(saved);
        restored.map_err(|error| refused(&format!("disk {index}"), &error))?;
    }
    devices.serial.restore(serial).map_err(|error| refused("the serial port", &error))?;
    shared.state.restore_guest(&state.guest);
    shared.next_call.store(state.guest.next_call, Ordering::Relaxed);
    devices.kick_all();
    Ok(())
}
