//! A vCPU on its way to another process.
//!
//! Mirrors `save_state` and `restore_state` of Firecracker's `vmm/src/arch/x86_64/vcpu.rs`, and with it the order of the
//! requests (Linux `Documentation/virt/kvm/api.rst`): the state of the processor comes first, because reading it changes pending
//! events, which come last. Registers that are specific to a model (MSRs) differ on purpose: all that KVM lists are saved, and
//! set where they differ from those of a new vCPU, so that a host is asked for no more than it has to do.
//!
//! Invariant: the vCPU has completed its last exit. KVM finishes an access to a register only when the vCPU enters again.
#![expect(unsafe_code, reason = "KVM reads as many bytes of an XSAVE area as it wants")]

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

/// The time stamp counter.
const TSC: u32 = 0x10;

/// When the local APIC's timer ends, by the time stamp counter. It acts on a local APIC in that mode.
const TSC_DEADLINE: u32 = 0x6e0;

/// Most MSRs that are read at once: KVM takes 256.
const AT_ONCE: usize = 128;

/// The state of a vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

/// What KVM cannot do with a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("KVM cannot {what}: {error}")]
pub struct VcpuError {
    /// The step.
    pub what: Step,
    /// KVM's error.
    pub error: kvm_ioctls::Error,
}

/// A step of saving or restoring a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A part of the state is read.
    Get(&'static str),
    /// A part of the state is set.
    Set(&'static str),
    /// A register that is specific to a model is set.
    SetMsr(u32, u64),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Get(part) => write!(f, "tell the {part} of a vCPU"),
            Self::Set(part) => write!(f, "set the {part} of a vCPU"),
            Self::SetMsr(index, value) => write!(f, "set MSR {index:#x} of a vCPU to {value:#x}"),
        }
    }
}

/// For `map_err`: reading `part` failed.
fn get(part: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError { what: Step::Get(part), error }
}

/// For `map_err`: setting `part` failed.
fn set(part: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError { what: Step::Set(part), error }
}

impl VcpuState {
    /// The state of `vcpu`, with those of the MSRs `indexes` that it has.
    ///
    /// # Errors
    /// KVM's error.
    pub fn of(vcpu: &VcpuFd, indexes: &[u32]) -> Result<Self, VcpuError> {
        let mp_state = vcpu.get_mp_state().map_err(get("activity"))?;
        let regs = vcpu.get_regs().map_err(get("registers"))?;
        let sregs = vcpu.get_sregs().map_err(get("special registers"))?;
        let xsave = Box::new(vcpu.get_xsave().map_err(get("XSAVE area"))?);
        let xcrs = vcpu.get_xcrs().map_err(get("XCRs"))?;
        let debug = vcpu.get_debug_regs().map_err(get("debug registers"))?;
        let lapic = Box::new(vcpu.get_lapic().map_err(get("local APIC"))?);
        let msrs = msrs(vcpu, indexes)?;
        let events = vcpu.get_vcpu_events().map_err(get("events"))?;
        Ok(Self { mp_state, regs, sregs, xsave, xcrs, debug, lapic, msrs, events })
    }

    /// Sets the state of `vcpu`, which is new and has its CPUID.
    ///
    /// # Errors
    /// KVM's error; the vCPU cannot be used.
    pub fn apply(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        vcpu.set_mp_state(self.mp_state).map_err(set("activity"))?;
        vcpu.set_regs(&self.regs).map_err(set("registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(set("special registers"))?;
        // SAFETY: KVM reads more than the 4096 bytes of the area only for features that the process has asked for
        // (ARCH_REQ_XCOMP_GUEST_PERM), and no code here does.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(set("XSAVE area"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(set("XCRs"))?;
        vcpu.set_debug_regs(&self.debug).map_err(set("debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(set("local APIC"))?;
        self.apply_msrs(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(set("events"))
    }

    fn apply_msrs(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        let indexes: Vec<_> = self.msrs.iter().map(|(index, _)| *index).collect();
        let new = msrs(vcpu, &indexes)?;
        let mut differ: Vec<_> =
            self.msrs.iter().copied().filter(|msr| msr.0 == TSC || !new.contains(msr)).collect();
        differ.sort_by_key(|(index, _)| match *index {
            TSC => 0,
            TSC_DEADLINE => 2,
            _ => 1,
        });
        for (index, value) in differ {
            let entry = kvm_msr_entry { index, data: value, ..Default::default() };
            let step = Step::SetMsr(index, value);
            let failed = |errno| VcpuError { what: step, error: kvm_ioctls::Error::new(errno) };
            let one = Msrs::from_entries(&[entry]).map_err(|_| failed(libc::ENOMEM))?;
            match vcpu.set_msrs(&one) {
                Ok(1) => {}
                Ok(_) => return Err(failed(libc::EINVAL)),
                Err(error) => return Err(failed(error.errno())),
            }
        }
        Ok(())
    }

    /// The time stamp counter.
    pub fn tsc(&self) -> Option<u64> {
        self.msrs.iter().find(|msr| msr.0 == TSC).map(|msr| msr.1)
    }

    /// Sets the time stamp counter. vCPUs are read one after another, and a guest expects their counters to agree.
    pub fn set_tsc(&mut self, value: u64) {
        self.msrs.iter_mut().filter(|msr| msr.0 == TSC).for_each(|msr| msr.1 = value);
    }
}

/// The MSRs of `vcpu` among `indexes`. Some that KVM lists exist only on other CPUs, or with a feature that the vCPU does not
/// have: KVM stops at the first of those, and is asked again for the rest.
fn msrs(vcpu: &VcpuFd, indexes: &[u32]) -> Result<Vec<(u32, u64)>, VcpuError> {
    let mut read = Vec::with_capacity(indexes.len());
    let mut left = indexes;
    while !left.is_empty() {
        let asked: Vec<_> =
            left.iter().take(AT_ONCE).map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let all = asked.len();
        let no_memory = |_| get("MSRs")(kvm_ioctls::Error::new(libc::ENOMEM));
        let mut asked = Msrs::from_entries(&asked).map_err(no_memory)?;
        let count = vcpu.get_msrs(&mut asked).map_err(get("MSRs"))?.min(all);
        read.extend(asked.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
        let skipped = usize::from(count < all);
        left = left.get(count + skipped..).unwrap_or_default();
    }
    Ok(read)
}
