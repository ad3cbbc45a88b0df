//! A vCPU that waits for its first INIT and SIPI, as its thread sees it.
//!
//! EAGAIN of `KVM_RUN` has two meanings. Only for a vCPU that waits for its SIPI is it part of the wait; from any other
//! vCPU it is the host's refusal and ends the VM, and with it the wait.

use std::thread;
use std::time::Duration;

use kvm_bindings::KVM_MP_STATE_UNINITIALIZED;
use kvm_ioctls::VcpuFd;

/// The pause before a vCPU that waits for its SIPI runs again after an EAGAIN that was not the SIPI's.
const SIPI_PAUSE: Duration = Duration::from_millis(1);

/// Whether a vCPU waits for its first INIT and SIPI, as far as its thread knows.
///
/// KVM_RUN ends with EAGAIN whenever the wait ends. There is one other reason: KVM starts a thread of its own in
/// the first KVM_RUN of a machine (`kvm_mmu_post_init_vm`), and a limit of tasks forbids it. A vCPU that waits
/// gets that error too. It goes on waiting, until the first vCPU's error ends the VM.
#[derive(Debug)]
pub(super) struct SipiWait(bool);

impl SipiWait {
    /// The wait of `vcpu`, which has not run yet.
    pub(super) fn of(vcpu: &VcpuFd) -> Self {
        Self(is_uninitialized(vcpu))
    }

    /// Whether an EAGAIN of `vcpu` belongs to the wait.
    pub(super) fn explains_eagain_of(&mut self, vcpu: &VcpuFd) -> bool {
        self.explains_eagain(|| is_uninitialized(vcpu))
    }

    /// Whether an EAGAIN belongs to the wait. `uninitialized` tells whether the wait goes on.
    fn explains_eagain(&mut self, uninitialized: impl FnOnce() -> bool) -> bool {
        let explained = self.0;
        if explained {
            self.0 = uninitialized();
            if self.0 {
                thread::sleep(SIPI_PAUSE);
            }
        }
        explained
    }
}

fn is_uninitialized(vcpu: &VcpuFd) -> bool {
    vcpu.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_UNINITIALIZED)
}

#[cfg(test)]
mod tests {
    use super::SipiWait;

    #[test]
    fn an_eagain_belongs_to_the_wait_for_a_sipi_and_to_nothing_else() {
        let mut wait = SipiWait(true);
        assert!(wait.explains_eagain(|| true) && wait.explains_eagain(|| true), "it goes on waiting");
        assert!(wait.explains_eagain(|| false), "the SIPI came");
        assert!(!wait.explains_eagain(|| panic!("a vCPU waits once")));
        assert!(!SipiWait(false).explains_eagain(|| true), "the first vCPU never waits");
    }
}
