//! What a reset makes anew: the machine of KVM and its vCPUs.
//!
//! A reset keeps the devices, which belong to the VMM and reset themselves, and the host memory behind guest
//! memory. It keeps nothing of KVM. A new machine of KVM, with new memslots, interrupt chips and vCPUs, is in
//! the state in which a machine starts, including state that KVM's interface cannot name. So starting and
//! resetting are one path, and every start tests it.
//!
//! Order of the KVM calls: boot memslots, ioeventfds, interrupt chip, vCPUs. Once the interrupt chip exists,
//! each change of memslots or ioeventfds waits for a grace period of KVM; in another order the same calls
//! take 50 times as long. There is no PIT: guests have their local APIC's timer.
//!
//! The old machine of KVM is closed before the interrupts of the new one are registered: since Linux 6.17 an
//! eventfd raises the interrupts of one machine only (EBUSY). The memslots hold the machine, and
//! [`Memory::reset`](crate::memory::Memory::reset) drops them; the vCPUs hold it too, and their threads have
//! closed them by then. So does [`Hardware`], for saves, up to the reset.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::look::LookResult;
use super::restore::restore_machine;
use super::shared::VmShared;
use super::vcpu::{STOP_LIMIT, StillRunning, Vcpus};
use crate::death::{Death, DeathKind, text};
use crate::error::{StartError, kvm};
use crate::hint::MAKE_A_MACHINE;
use crate::memory::layout;
use crate::memory::slots::KvmSlots;
use crate::snapshot::read::Restored;
use crate::{boot, cpuid};

/// By how many millionths the frequency of a time stamp counter may differ: as Linux's NTP and QEMU have it.
const TSC_TOLERANCE: u64 = 250;

/// The machine of KVM behind a VM.
#[derive(Debug)]
pub(super) struct Hardware {
    kvm: Kvm,
    /// What every vCPU has in common. KVM takes a while to tell it, so it is asked once.
    cpuid: CpuId,
    /// The frequency of the vCPUs' time stamp counters, once there are vCPUs.
    tsc_khz: u32,
    shared: Arc<VmShared>,
    /// The machine that runs. The guest's memory and the vCPUs hold it too.
    machine: Option<Arc<VmFd>>,
    vcpus: Vcpus,
    /// Kept as long as the VM may start again.
    initrd: Option<Vec<u8>>,
}

/// Why a VM that was reset does not start again.
#[derive(Debug, thiserror::Error)]
enum ResetError {
    #[error("the guest reset the machine")]
    Unwanted,
    #[error(transparent)]
    Vcpus(#[from] StillRunning),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// An empty machine of KVM.
pub(super) fn new_machine(kvm_device: &Kvm) -> Result<Arc<VmFd>, StartError> {
    kvm_device.create_vm().map(Arc::new).map_err(kvm(MAKE_A_MACHINE))
}

impl Hardware {
    /// Hardware without vCPUs.
    pub(super) fn new((kvm, cpuid): (Kvm, CpuId), shared: Arc<VmShared>, initrd: Option<Vec<u8>>) -> Self {
        let vcpus = Vcpus::new(Arc::clone(&shared));
        Self { kvm, cpuid, tsc_khz: 0, shared, machine: None, vcpus, initrd }
    }

    /// Connects the devices to `machine`, which has nothing but memory yet, and loads the kernel, or brings it to the state
    /// of the snapshot `restored`. The vCPUs are ready to run.
    ///
    /// # Errors
    /// KVM or the host refuses, or the kernel cannot be booted.
    pub(super) fn assemble(
        &mut self,
        machine: Arc<VmFd>,
        restored: Option<&Restored>,
    ) -> Result<Vec<VcpuFd>, StartError> {
        let shared = Arc::clone(&self.shared);
        let VmShared { config, kernel, memory, devices, .. } = &*shared;
        devices.register_kicks(&machine)?;
        machine.set_tss_address(layout::KVM_TSS as usize).map_err(kvm("place its own pages"))?;
        machine.create_irq_chip().map_err(kvm("make an interrupt chip"))?;
        let vcpus = self.make_vcpus(&machine)?;
        devices.register_interrupts(&machine)?;
        self.tsc_khz = vcpus[0].get_tsc_khz().map_err(kvm("tell the frequency of the TSC"))?;
        match restored {
            Some(restored) => {
                self.check_tsc(restored, &vcpus)?;
                restore_machine(restored, &machine, &vcpus)?;
                memory.start_huge_pages();
            }
            None => {
                let initrd = self.initrd.as_deref();
                let entry = boot::load(config, kernel, initrd, self.tsc_khz, &memory.view())?;
                memory.start_huge_pages();
                entry.prepare(&vcpus[0]).map_err(kvm("set registers"))?;
            }
        }
        self.machine = Some(machine);
        if !config.can_reset() {
            self.initrd = None;
        }
        Ok(vcpus)
    }

    /// The machine that runs.
    pub(super) fn machine(&self) -> Option<&VmFd> {
        self.machine.as_deref()
    }

    /// What every vCPU has in common.
    pub(super) fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        self.cpuid.as_slice()
    }

    /// The frequency of the vCPUs' time stamp counters.
    pub(super) fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Gives new vCPUs the frequency of the saved ones, unless theirs is as good: hosts measure their own a little differently
    /// each time they start. A guest asks for it once.
    fn check_tsc(&mut self, restored: &Restored, vcpus: &[VcpuFd]) -> Result<(), StartError> {
        let (saved, own) = (restored.state.tsc_khz, self.tsc_khz);
        if u64::from(saved.abs_diff(own)) * 1_000_000 <= u64::from(saved) * TSC_TOLERANCE {
            return Ok(());
        }
        for vcpu in vcpus {
            vcpu.set_tsc_khz(saved).map_err(|error| {
                restored.snapshot.host(format!(
                    "its time stamp counter has {saved} kHz, this host's has {own} kHz, and KVM cannot change that: {error}"
                ))
            })?;
        }
        self.tsc_khz = saved;
        Ok(())
    }

    fn make_vcpus(&self, machine: &VmFd) -> Result<Vec<VcpuFd>, StartError> {
        let count = self.shared.config.cpus;
        let make = |id: u8| {
            let vcpu = machine.create_vcpu(id.into()).map_err(kvm("make a vCPU"))?;
            cpuid::set_cpuid(&vcpu, &self.cpuid, id, count).map_err(kvm("set CPUID"))?;
            Ok(vcpu)
        };
        (0..count).map(make).collect()
    }

    /// Makes the threads of the vCPUs, for [`Hardware::run`].
    ///
    /// # Errors
    /// The host provides no thread, or one cannot be locked in.
    pub(super) fn prepare(&mut self) -> Result<(), StartError> {
        self.vcpus.prepare()
    }

    /// Lets the vCPUs run.
    pub(super) fn run(&mut self, vcpus: Vec<VcpuFd>) {
        self.vcpus.start(vcpus);
    }

    /// The guest or the embedder asked for a reset: starts the guest again, or ends the VM if the guest asked and
    /// the configuration says so. The event loop calls this, so no queue is served meanwhile.
    pub(super) fn reset(&mut self) {
        let Err(error) = self.restart() else { return };
        let death = match &error {
            ResetError::Unwanted => {
                let text = text::last_lines(&self.shared.bus.serial_tail());
                Death { kind: DeathKind::UnwantedReset, text }
            }
            _ => {
                let refused = matches!(&error, ResetError::Start(error) if error.is_refusal());
                Death { kind: DeathKind::ResetFailed { refused }, text: format!("  {error}") }
            }
        };
        self.shared.state.change(|state| state.died(death));
    }

    fn restart(&mut self) -> Result<(), ResetError> {
        // The event loop may not even stop the vCPUs then: see `confine::rules`.
        if !self.shared.config.can_reset() {
            return Err(ResetError::Unwanted);
        }
        self.vcpus.stop(STOP_LIMIT)?;
        if self.is_over() {
            return Ok(());
        }
        // A vCPU may have asked while the embedder's reset stopped it.
        if self.shared.guest_resets() && !self.shared.config.reboot {
            return Err(ResetError::Unwanted);
        }
        // Only now no vCPU can ask any more: requests of several vCPUs are one reset.
        self.shared.reset_due.store(false, Ordering::Release);
        self.shared.devices.disconnect();
        self.machine = None;
        let machine = new_machine(&self.kvm)?;
        let slots = Box::new(KvmSlots::new(Arc::clone(&machine)));
        self.shared.memory.reset(slots).map_err(StartError::from)?;
        // Taking back much memory takes the host a while, in which the embedder may have ended the VM.
        if self.is_over() {
            return Ok(());
        }
        let vcpus = self.assemble(machine, None)?;
        self.shared.devices.reset(&self.shared.state);
        self.run(vcpus);
        Ok(())
    }

    /// Brings all vCPUs out of a guest that is to stand still, and returns whether none is left in it.
    pub(super) fn park(&self) -> bool {
        self.vcpus.park()
    }

    /// Looks at all vCPUs.
    pub(super) fn look(&self) -> Vec<LookResult> {
        self.vcpus.look()
    }

    fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Acquire) || self.shared.state.snapshot().ended()
    }

    /// Ends the vCPUs, for good.
    pub(super) fn end(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        self.vcpus.end(STOP_LIMIT).unwrap_or_else(|running| log::error!("{running}"));
    }
}
