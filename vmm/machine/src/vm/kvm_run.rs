//! What the last `KVM_RUN` left in the page that a vCPU shares with KVM, where `kvm-ioctls` does not tell it.
//!
//! Mirrors `struct kvm_run` of Linux. Invariant: the caller has looked at the exit reason of the last run, which says which
//! member of the union is current.
#![expect(unsafe_code, reason = "members of a union, and bytes that KVM names by their offset")]

use kvm_ioctls::VcpuFd;

/// The width of the port access for which the last run ended, and the bytes of all its repetitions. `kvm-ioctls`
/// does not tell the width.
pub(super) fn port_access(vcpu: &mut VcpuFd) -> (usize, &mut [u8]) {
    let run = std::ptr::from_mut(vcpu.get_kvm_run());
    // SAFETY: every member of the union is plain numbers, so any bytes are valid for it. That this member is the
    // current one follows from the exit reason of the last run, KVM_EXIT_IO.
    let io = unsafe { (*run).__bindgen_anon_1.io };
    let (width, size) = (usize::from(io.size), usize::from(io.size) * io.count as usize);
    // SAFETY: KVM put `size` bytes at this offset into the mapping of the vCPU, which `kvm-ioctls` mapped as a whole
    // and unmaps with the vCPU. The result borrows the vCPU, so nothing else uses the bytes meanwhile.
    let data = unsafe { std::slice::from_raw_parts_mut(run.cast::<u8>().add(io.data_offset as usize), size) };
    (width, data)
}

/// The kind of the internal error with which the last run ended.
pub(super) fn suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: every member of the union is plain numbers, so any bytes are valid for it. That this member is
    // the current one follows from the exit reason of the last run, KVM_EXIT_INTERNAL_ERROR.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}
