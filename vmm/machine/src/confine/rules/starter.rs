//! What a thread calls beside the rules of the other kinds to start VMs.

use kvm_bindings::kvm_cpuid2;
use syscalls::Sysno;

use super::{NONE, READ, Rule, WRITE, any, ioctl, kvm};

/// The rules of [`super::Kind::Starter`] beside those of the VMs that it starts.
pub(super) const STARTER: &[Rule] = &[
    any(Sysno::rt_sigtimedwait, "the thread for the grace of a VM"),
    any(Sysno::clone3, "threads of a VM and of its session"),
    any(Sysno::clone, "as clone3, for older C libraries"),
    any(Sysno::rseq, "a thread that starts"),
    any(Sysno::set_robust_list, "a thread that starts"),
    any(Sysno::set_tid_address, "a thread that starts"),
    any(Sysno::prlimit64, "the size of a stack; core dumps are off"),
    any(Sysno::openat, "/dev/kvm, /proc, results; Landlock bounds which"),
    any(Sysno::fstat, "results"),
    any(Sysno::newfstatat, "results"),
    any(Sysno::statx, "results"),
    any(Sysno::lseek, "results"),
    any(Sysno::fcntl, "copies of descriptors"),
    any(Sysno::eventfd2, "events of a VM"),
    any(Sysno::timerfd_create, "timers of a VM"),
    any(Sysno::signalfd4, "termination signals"),
    any(Sysno::epoll_create1, "the loops of a VM"),
    any(Sysno::rt_sigaction, "signal handlers of a VM"),
    any(Sysno::prctl, "names of threads; the confinement of a VM"),
    any(Sysno::seccomp, "the confinement of a VM"),
    any(Sysno::capget, "the confinement of a VM"),
    any(Sysno::capset, "the confinement of a VM"),
    any(Sysno::landlock_create_ruleset, "the confinement of a VM"),
    any(Sysno::landlock_restrict_self, "the confinement of a VM"),
    ioctl(
        &[
            (kvm(0x00, NONE, 0), "KVM_GET_API_VERSION"),
            (kvm(0x03, NONE, 0), "KVM_CHECK_EXTENSION"),
            (kvm(0x05, READ | WRITE, size_of::<kvm_cpuid2>()), "KVM_GET_SUPPORTED_CPUID"),
        ],
        "the start of a VM",
    ),
];
