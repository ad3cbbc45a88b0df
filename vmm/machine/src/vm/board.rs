//! What a reset makes anew, and what it makes it from.
//!
//! A reset keeps the devices, which are the VMM's own and reset themselves, and the host memory behind
//! guest memory. Of KVM it keeps nothing: a new machine of KVM, with new memslots, interrupt chips and
//! vCPUs, is in the state that a machine starts in, down to what has no name in KVM's interface. So
//! starting and resetting are one path, and every start tests it.
//!
//! Order of the KVM calls: boot memslots, ioeventfds, interrupt chip, vCPUs. A change of slots or
//! of ioeventfds after the interrupt chip was made waits for a grace period of KVM, which makes
//! the same calls 50 times slower in another order. There is no PIT: guests have their local
//! APIC's timer.
//!
//! The old machine of KVM is closed before the interrupts of the new one are registered: since Linux
//! 6.17 an eventfd raises the interrupts of one machine only (EBUSY). It is held by its slots, which
//! [`Memory::reset`](crate::memory::Memory::reset) drops, and by its vCPUs, whose threads have ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::devices::Devices;
use super::start::{StartError, host, kvm};
use crate::config::Config;
use crate::memory::layout;
use crate::memory::slots::KvmSlots;
use crate::state::{Death, DeathKind, State};
use crate::vcpu::{Machine, STOP_LIMIT, StillRunning, Vcpus};
use crate::{boot, cpuid};

/// A machine's hardware.
#[derive(Debug)]
pub(super) struct Board {
    config: Config,
    kvm: Kvm,
    devices: Devices,
    pub(super) machine: Arc<Machine>,
    vcpus: Vcpus,
    /// Kept as long as the machine may start again.
    initrd: Option<Vec<u8>>,
}

/// Why a machine that was reset does not start again.
#[derive(Debug, thiserror::Error)]
enum ResetError {
    #[error(transparent)]
    Vcpus(#[from] StillRunning),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// An empty machine of KVM.
pub(super) fn new_vm(kvm_device: &Kvm) -> Result<Arc<VmFd>, StartError> {
    kvm_device.create_vm().map(Arc::new).map_err(kvm("make a machine"))
}

impl Board {
    pub(super) fn new(
        config: Config,
        kvm: Kvm,
        devices: Devices,
        machine: Arc<Machine>,
        initrd: Option<Vec<u8>>,
    ) -> Self {
        let vcpus = Vcpus::new(Arc::clone(&machine));
        Self { config, kvm, devices, machine, vcpus, initrd }
    }

    /// Connects the devices to `vm`, in which nothing is yet but boot memory, and loads the kernel.
    /// The vCPUs are ready to run. Memory alone holds `vm` from then on.
    ///
    /// # Errors
    /// What KVM, the host or the kernel is not good for.
    pub(super) fn assemble(&mut self, vm: Arc<VmFd>) -> Result<Vec<VcpuFd>, StartError> {
        self.devices.register_kicks(&vm)?;
        vm.set_tss_address(layout::KVM_TSS as usize).map_err(kvm("place its own pages"))?;
        vm.create_irq_chip().map_err(kvm("make an interrupt chip"))?;
        let vcpus = self.make_vcpus(&vm)?;
        self.devices.register_interrupts(&vm)?;
        let tsc_khz = vcpus[0].get_tsc_khz().map_err(kvm("tell the frequency of the TSC"))?;
        let Machine { kernel, memory, .. } = &*self.machine;
        let entry = boot::load(&self.config, kernel, self.initrd.as_deref(), tsc_khz, &memory.view())?;
        if !self.config.reboot {
            self.initrd = None;
        }
        entry.prepare(&vcpus[0]).map_err(kvm("set registers"))?;
        Ok(vcpus)
    }

    fn make_vcpus(&self, vm: &VmFd) -> Result<Vec<VcpuFd>, StartError> {
        let cpuid = cpuid::supported_cpuid(&self.kvm).map_err(kvm("tell its CPUID"))?;
        let count = self.config.cpus;
        let make = |id: u8| {
            let vcpu = vm.create_vcpu(id.into()).map_err(kvm("make a vCPU"))?;
            cpuid::set_cpuid(&vcpu, &cpuid, id, count).map_err(kvm("set CPUID"))?;
            Ok(vcpu)
        };
        (0..count).map(make).collect()
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// The host gives no thread. The machine is over then, even if one that ran for a moment reset it.
    pub(super) fn run(&mut self, vcpus: Vec<VcpuFd>) -> Result<(), StartError> {
        let started = self.vcpus.start(vcpus);
        if started.is_err() {
            self.end();
        }
        started.map_err(host("start a vCPU thread"))
    }

    /// The guest asked for a reset: starts again, or ends if that is what a reset shall do. Called by
    /// the event loop, so no queue is served meanwhile.
    pub(super) fn reset(&mut self) {
        if !self.config.reboot {
            self.machine.shared.change(State::power_off);
        } else if let Err(error) = self.restart() {
            let death = Death { kind: DeathKind::ResetFailed, report: format!("  {error}") };
            self.machine.shared.change(|state| state.died(death));
        }
    }

    fn restart(&mut self) -> Result<(), ResetError> {
        self.vcpus.stop(STOP_LIMIT)?;
        // Only now nobody asks any more: several vCPUs that do are reset once.
        if let Err(error) = self.machine.reset.read()
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::debug!("reset: {error}");
        }
        if self.is_over() {
            return Ok(());
        }
        // Before memory: nobody writes to buffers of the guest that was.
        self.devices.reset();
        let vm = new_vm(&self.kvm)?;
        let memory = &self.machine.memory;
        memory.reset(Box::new(KvmSlots::new(Arc::clone(&vm)))).map_err(StartError::from)?;
        // That took the host some time if it was much.
        if self.is_over() {
            return Ok(());
        }
        let vcpus = self.assemble(vm)?;
        self.machine.shared.restart();
        Ok(self.run(vcpus)?)
    }

    fn is_over(&self) -> bool {
        self.machine.over.load(Ordering::Acquire) || self.machine.shared.snapshot().ended()
    }

    /// Ends the vCPUs, for good.
    pub(super) fn end(&mut self) {
        self.machine.over.store(true, Ordering::Release);
        self.vcpus.stop(STOP_LIMIT).unwrap_or_else(|running| log::error!("{running}"));
    }
}
